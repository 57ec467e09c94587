"""`bottleneck`: the equations, the layer's own bias, gradients, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.reference import bottleneck as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
NAMES = ("down", "up", "down_bias", "up_bias")
PARAMS = {
    "kernel": jnp.asarray(numbers(2, 6, 5)),
    "bias": jnp.asarray(numbers(3, 5)),
}
X = jnp.asarray(numbers(4, 7, 6))


def model(params, x):
    return x @ params["kernel"] + params["bias"][None]


def own_bias(path):
    return path.replace("kernel", "bias")


def parts(state):
    return [state.trainable["kernel"][name] for name in NAMES]


def test_without_its_bias_the_layer_adds_it_behind_the_adapter():
    tx = lrk.bottleneck(2, scale=0.5)
    state = filled(tx, PARAMS)
    want = reference.serial(X, PARAMS["kernel"], parts(state), 0.5)
    got = jax.jit(lrk.lift(model))(tx.apply(PARAMS, state), X)
    assert_close(got, (want + np.asarray(PARAMS["bias"])).astype(np.float32))


def test_told_of_the_bias_it_is_the_published_placement():
    tx = lrk.bottleneck(2, scale=0.5, bias=own_bias)
    state = filled(tx, PARAMS)
    own = parts(state)
    want = reference.serial(X, PARAMS["kernel"], own, 0.5, PARAMS["bias"])
    got = jax.jit(lrk.lift(model))(tx.apply(PARAMS, state), X)
    assert_close(got, want.astype(np.float32))


def test_gradients_are_those_of_a_layer_written_by_hand():
    tx = lrk.chain(
        lrk.full(select=lrk.matching("bias")),
        lrk.bottleneck(
            2, activation=jnp.tanh, bias=own_bias, select=lrk.matching("kernel")
        ),
    )
    state = filled(tx, PARAMS)

    def by_lift(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.sum(lrk.lift(model)(adapted, X) ** 2)

    def by_hand(trainable):
        delta, own = trainable[0]["bias"]["d"], trainable[1]["kernel"]
        h = X @ PARAMS["kernel"] + (PARAMS["bias"] + delta)[None]
        inner = jnp.tanh(h @ own["down"] + own["down_bias"][None])
        return jnp.sum((h + inner @ own["up"] + own["up_bias"][None]) ** 2)

    got, want = jax.jit(lambda t: (jax.grad(by_lift)(t), jax.grad(by_hand)(t)))(
        state.trainable
    )
    assert_close(got, want)


def test_several_output_axes_and_stacks_read_their_biases():
    params = {
        "kernel": jnp.asarray(numbers(2, 3, 6, 2, 4)),
        "bias": jnp.asarray(numbers(3, 3, 2, 4)),
    }
    axes = {"kernel": lrk.Axes((0,), (1,), (2, 3))}
    select = lrk.matching("kernel")
    tx = lrk.bottleneck(2, bias=own_bias, select=select, axes=axes)
    state = filled(tx, params)
    shapes = {n: x.shape for n, x in state.trainable["kernel"].items()}
    assert shapes == {
        "down": (3, 2, 4, 2),
        "up": (3, 2, 2, 4),
        "down_bias": (3, 2),
        "up_bias": (3, 2, 4),
    }

    def each(params, x):
        y = jnp.einsum("nk,lkab->lnab", x, params["kernel"])
        return y + params["bias"][:, None]

    got = jax.jit(lrk.lift(each))(tx.apply(params, state), X)
    for i in range(3):
        down, up, low, high = (x[i] for x in parts(state))
        own = down.reshape(8, 2), up.reshape(2, 8), low, high.reshape(8)
        base, bias = params["kernel"][i].reshape(6, 8), params["bias"][i].reshape(8)
        want = reference.serial(X, base, own, 1.0, bias)
        assert_close(got[i].reshape(7, 8), want.astype(np.float32))


def test_on_a_chip_the_network_reads_what_the_chip_gives():
    params = {"kernel": PARAMS["kernel"], "bias": PARAMS["bias"]}
    chip = lrk.rram.crossbar(
        lrk.rram.Device(adc=lrk.rram.Converter(6)), select=lrk.is_matrix
    )
    tx = lrk.chain(chip, lrk.bottleneck(2, bias=own_bias))
    state = filled(tx, params)
    programmed = chip.apply(params, lrk.State(state.trainable[0], state.fixed[0]))
    plain = np.asarray(lrk.lift(jnp.matmul)(X, programmed["kernel"]))
    own = [state.trainable[1]["kernel"][n] for n in NAMES]
    want = reference.serial(plain, np.eye(5), own, 1.0, params["bias"])
    got = lrk.lift(model)(tx.apply(params, state), X)
    assert_close(got, want.astype(np.float32))


def test_what_is_trained_and_drawn():
    state = lrk.bottleneck(2).init(KEY, PARAMS)
    own = state.trainable["kernel"]
    assert {n: x.shape for n, x in own.items()} == {
        "down": (5, 2),
        "up": (2, 5),
        "down_bias": (2,),
        "up_bias": (5,),
    }
    assert [n for n in NAMES if own[n].any()] == ["down"]
    # Houlsby et al., section 2.1: 2 m d + d + m numbers for each adapter.
    assert lrk.count(state) == (2 * 5 * 2 + 5 + 2, 0)
    small = jax.nn.initializers.truncated_normal(0.01)
    near = lrk.bottleneck(2, init=small, init_up=small).init(KEY, PARAMS)
    own = near.trainable["kernel"]
    assert 0 < np.abs(own["up"]).max() <= 0.03
    assert not np.allclose(own["up"].T, own["down"])


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="bottleneck: rank must be at least 1, got 0"):
        lrk.bottleneck(0)
    with untyped():
        with pytest.raises(TypeError, match="activation must be a function .* 'relu'"):
            lrk.bottleneck(2, activation="relu")
        with pytest.raises(TypeError, match="bias must be a function of a kernel's"):
            lrk.bottleneck(2, bias="bias")
        with pytest.raises(TypeError, match="bottleneck: scale must be a number"):
            lrk.bottleneck(2, scale="4")


def test_refuses_leaves_and_states_that_do_not_fit():
    params = PARAMS | {"steps": jnp.ones((2, 2), int)}
    message = r"cannot adapt 'steps' of shape \(2, 2\): not floating"
    with pytest.raises(ValueError, match=message):
        lrk.bottleneck(2, select=lrk.matching("kernel|steps")).init(KEY, params)
    other = lrk.lora(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="'kernel' lacks trainable 'down'"):
        lrk.bottleneck(2).apply(PARAMS, other)
    stacked = lrk.stack([lrk.bottleneck(2).init(KEY, PARAMS)] * 2)
    with pytest.raises(ValueError, match="do not fit a weight .* inside jax.vmap"):
        lrk.bottleneck(2).apply(PARAMS, stacked)


def test_names_every_bias_that_cannot_be_read():
    params = {
        "one": {"kernel": jnp.ones((3, 2)), "bias": jnp.ones(3)},
        "two": {"kernel": jnp.ones((2, 2))},
    }
    tx = lrk.bottleneck(1, bias=own_bias, select=lrk.matching("kernel"))
    message = (
        r"'one/bias' of shape \(3,\) is not \(2,\); 'two/kernel' has no bias at "
        r"'two/bias' \(the nearest are 'one/bias'"
    )
    with pytest.raises(ValueError, match=message):
        tx.init(KEY, params)
    dropped = {"one": {"kernel": jnp.ones((3, 2)), "bias": _NoArray()}}
    with pytest.raises(ValueError, match=r"'one/bias' \(_NoArray\) has no dense form"):
        tx.init(KEY, dropped)


class _NoArray(lrk.Operator):
    """A bias that cannot be formed."""

    own_dense = False
    shape, dtype = (2,), jnp.float32
