"""`hydra`: against the equations, what is trained, several axes, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference import hydra as reference
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(2, 6, 5)), "bias": jnp.asarray(numbers(3, 5))}
X = jnp.asarray(numbers(4, 7, 6))


def model(params, x):
    return x @ params["w"] + params["bias"][None]


def moved(state, seed=9):
    leaves, treedef = jax.tree.flatten(state.trainable)
    new = [x + numbers(seed + i, *x.shape) for i, x in enumerate(leaves)]
    return state._replace(trainable=jax.tree.unflatten(treedef, new))


@pytest.mark.parametrize(
    ("arguments", "scale"), [({}, 1.0), ({"alpha": 3}, 1.5), ({"scale": 0.2}, 0.2)]
)
def test_forward_follows_the_equations(arguments, scale):
    tx = lrk.hydra(2, 3, **arguments)
    state = moved(tx.init(KEY, PARAMS))
    own = state.trainable["w"]
    parts = (own["a"], own["b"], own["router"], scale)
    want = reference.forward(X, PARAMS["w"], *parts) + np.asarray(PARAMS["bias"])
    got = lrk.lift(model)(tx.apply(PARAMS, state), X)
    assert_close(got, want.astype(np.float32))


def test_gradients_are_the_slopes_of_the_equations():
    tx = lrk.hydra(2, 3, alpha=3)
    state = moved(tx.init(KEY, PARAMS))

    def objective(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.sum(lrk.lift(model)(adapted, X) ** 2)

    def exact(own):
        parts = [own[n] for n in ("a", "b", "router")]
        y = reference.forward(X, PARAMS["w"], *parts, 1.5) + np.asarray(PARAMS["bias"])
        return np.sum(y**2)

    grads = jax.grad(objective)(state.trainable)["w"]
    own = {n: np.asarray(x, np.float64) for n, x in state.trainable["w"].items()}
    for i, name in enumerate(("a", "b", "router")):
        step = {**own, name: numbers(30 + i, *own[name].shape).astype(np.float64)}
        ahead = {**own, name: own[name] + 1e-5 * step[name]}
        behind = {**own, name: own[name] - 1e-5 * step[name]}
        slope = (exact(ahead) - exact(behind)) / 2e-5
        got = np.sum(np.asarray(grads[name], np.float64) * step[name])
        np.testing.assert_allclose(got, slope, rtol=1e-4)


def test_what_is_trained_and_drawn():
    state = lrk.hydra(2, 3, alpha=3).init(KEY, PARAMS)
    shapes = {n: x.shape for n, x in state.trainable["w"].items()}
    assert shapes == {"a": (6, 2), "b": (3, 2, 5), "router": (6, 3)}
    assert not state.trainable["w"]["b"].any()
    assert lrk.count(state) == (6 * 2 + 3 * 2 * 5 + 6 * 3, 0)
    square = lrk.hydra(3, 3).init(KEY, PARAMS).trainable["w"]
    assert not np.allclose(square["a"], square["router"])
    bound = 1 / np.sqrt(6)
    assert np.abs(square["router"]).max() <= bound


def test_stacks_and_several_output_axes():
    params = {"w": jnp.asarray(numbers(2, 3, 6, 2, 4))}
    axes = {"w": lrk.Axes((0,), (1,), (2, 3))}
    tx = lrk.hydra(2, 3, select=lrk.matching("w"), axes=axes)
    state = moved(tx.init(KEY, params))
    shapes = {n: x.shape for n, x in state.trainable["w"].items()}
    assert shapes == {"a": (3, 6, 2), "b": (3, 3, 2, 2, 4), "router": (3, 6, 3)}

    def each(params, x):
        return jnp.einsum("nk,lkab->lnab", x, params["w"])

    got = lrk.lift(each)(tx.apply(params, state), X)
    for i in range(3):
        own = {n: x[i] for n, x in state.trainable["w"].items()}
        flat = own["b"].reshape(3, 2, 8), own["router"], 1.0
        base = params["w"][i].reshape(6, 8)
        want = reference.forward(X, base, own["a"], *flat)
        assert_close(got[i].reshape(7, 8), want.astype(np.float32))


def test_refuses_wrong_hyperparameters():
    with pytest.raises(ValueError, match="hydra: rank must be at least 1, got 0"):
        lrk.hydra(0, 2)
    with pytest.raises(ValueError, match="hydra: heads must be at least 1, got 0"):
        lrk.hydra(2, 0)
    with untyped(), pytest.raises(TypeError, match="hydra: heads must be an int, got"):
        lrk.hydra(2, 2.0)
    with pytest.raises(ValueError, match="hydra: got both alpha and scale"):
        lrk.hydra(2, 2, alpha=1, scale=1)


def test_refuses_leaves_and_states_that_do_not_fit():
    tx = lrk.hydra(6, 2, select=lrk.matching("."))
    with pytest.raises(ValueError, match=r"hydra: cannot adapt 'bias' .* needs 2 axes"):
        tx.init(KEY, PARAMS)
    with pytest.raises(ValueError, match="rank 6 exceeds 5"):
        lrk.hydra(6, 2).init(KEY, PARAMS)
    other = lrk.lora(2).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="'w' lacks trainable 'router'"):
        lrk.hydra(2, 2).apply(PARAMS, other)
    stacked = lrk.stack([lrk.hydra(2, 2).init(KEY, PARAMS)] * 2)
    with pytest.raises(ValueError, match="do not fit a weight .* inside jax.vmap"):
        lrk.hydra(2, 2).apply(PARAMS, stacked)
