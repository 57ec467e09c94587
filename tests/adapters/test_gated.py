"""`gated` and `learn_scale`: the equations, states, what can be weighed, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import filled, numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(2, 6, 5)), "bias": jnp.asarray(numbers(3, 5))}
X = jnp.asarray(numbers(4, 7, 6))


def model(params, x):
    return x @ params["w"] + params["bias"][None]


def by_lift(tx, state):
    def objective(trainable):
        adapted = tx.apply(PARAMS, lrk.State(trainable, state.fixed), key=KEY)
        out = lrk.lift(model)(adapted, X)
        return jnp.sum(out**2), out

    return lambda trainable: jax.grad(objective, has_aux=True)(trainable)


def test_gated_lora_is_the_layer_written_by_hand():
    """UniPELT, section 3: the update of LoRA times a sigmoid of the input."""
    tx = lrk.gated(lrk.lora(2, alpha=4))
    state = filled(tx, PARAMS)

    def by_hand(trainable):
        low, own = trainable[0]["w"], trainable[1]["w"]
        opening = jax.nn.sigmoid(X @ own["gate"] + own["gate_bias"])
        out = X @ PARAMS["w"] + PARAMS["bias"][None]
        out += opening[:, None] * 2.0 * (X @ low["a"] @ low["b"])
        return jnp.sum(out**2), out

    got, want = jax.jit(
        lambda t: (by_lift(tx, state)(t), jax.grad(by_hand, has_aux=True)(t))
    )(state.trainable)
    assert_close(got, want)


def test_a_gated_chain_is_weighed_as_a_whole():
    """The serial adapter reads what LoRA gives; the gate weighs both together."""
    inner = lrk.chain(lrk.lora(2), lrk.bottleneck(2, activation=jnp.tanh))
    tx = lrk.gated(inner)
    state = filled(tx, PARAMS)
    alone = lrk.State(state.trainable[0], state.fixed[0])
    own = state.trainable[1]["w"]

    @jax.jit
    def three():
        before = model(PARAMS, X)
        after = lrk.lift(model)(inner.apply(PARAMS, alone), X)
        return before, after, lrk.lift(model)(tx.apply(PARAMS, state), X)

    before, after, got = three()
    opening = jax.nn.sigmoid(X @ own["gate"] + own["gate_bias"])[:, None]
    assert_close(got, before + opening * (after - before))


def test_gates_start_at_a_half_and_nothing_changes():
    tx = lrk.gated(lrk.lora(2))
    state = tx.init(KEY, PARAMS)
    assert_close(state.trainable[0], lrk.lora(2).init(KEY, PARAMS).trainable)
    assert state.trainable[1]["w"]["gate"].shape == (6,)
    assert not any(x.any() for x in state.trainable[1]["w"].values())
    assert state.fixed[1] == {}
    assert lrk.count(state) == (6 * 2 + 2 * 5 + 6 + 1, 0)


def test_dropout_below_a_gate_takes_the_key():
    tx = lrk.gated(lrk.lora(2, dropout=0.5))
    state = filled(tx, PARAMS)
    assert tx.apply(PARAMS, state, key=KEY)["w"].stochastic
    with pytest.raises(TypeError, match="lora: dropout needs a key"):
        tx.apply(PARAMS, state)


def test_refuses_what_cannot_be_weighed():
    with untyped(), pytest.raises(TypeError, match="gated: expected a transform, got"):
        lrk.gated(lrk.lora)
    with pytest.raises(ValueError, match=r"changes no weight.* learn_scale"):
        lrk.gated(lrk.identity()).init(KEY, PARAMS)
    chip = lrk.rram.crossbar(lrk.rram.Device(adc=lrk.rram.Converter(6)))
    message = r"replaced at 'w' \(Crossbar\): expected operators over it"
    with pytest.raises(ValueError, match=message):
        lrk.gated(chip).init(KEY, PARAMS)
    biases = lrk.full(select=lrk.matching("bias"))
    with pytest.raises(ValueError, match=r"gated: cannot adapt 'bias' .*needs 2 axes"):
        lrk.gated(biases).init(KEY, PARAMS)


def test_refuses_states_that_do_not_fit():
    tx = lrk.gated(lrk.lora(2))
    state = filled(tx, PARAMS)
    inner = lrk.State(state.trainable[0], state.fixed[0])
    with pytest.raises(ValueError, match="gated: expected a state of 2 members"):
        tx.apply(PARAMS, inner)
    none = lrk.State((inner.trainable, {}), (inner.fixed, {}))
    with pytest.raises(ValueError, match="has gates for , but .* changes 'w'"):
        tx.apply(PARAMS, none)
    gate = {"w": {"gate": jnp.zeros(5), "gate_bias": jnp.zeros(())}}
    wrong = lrk.State((inner.trainable, gate), (inner.fixed, {}))
    with pytest.raises(ValueError, match=r"'w': factors \(gate \(5,\)"):
        tx.apply(PARAMS, wrong)


def test_a_learned_scale_is_the_scale_with_its_gradient():
    chain = lrk.chain(
        lrk.lora(2, scale=0.5), lrk.bottleneck(2, activation=jnp.tanh, scale=3.0)
    )
    tx = lrk.learn_scale(chain)
    state = tx.init(KEY, PARAMS)
    scales = [float(member["w"]["scale"]) for member in state.trainable]
    assert scales == [0.5, 3.0]
    assert state.fixed == ({"w": {}}, {"w": {}})
    state = filled(tx, PARAMS)
    (grads, out) = jax.jit(by_lift(tx, state))(state.trainable)
    fixed = tuple({"w": {"scale": member["w"]["scale"]}} for member in state.trainable)
    same, out_fixed = jax.jit(by_lift(chain, lrk.State(None, fixed)))(state.trainable)
    assert_close(out, out_fixed)
    low, low_fixed = grads[0]["w"], same[0]["w"]
    assert_close({n: low[n] for n in "ab"}, {n: low_fixed[n] for n in "ab"})
    assert all(np.abs(member["w"]["scale"]) > 0 for member in grads)


def test_rows_that_are_added_have_a_learned_scale_too():
    params = {"key": {"kernel": jnp.ones((3, 2))}}
    tx = lrk.learn_scale(lrk.prefix(4, select=lrk.matching("key")))
    state = filled(tx, params)
    own = state.trainable["key/kernel"]
    tree = tx.apply(params, state)
    assert_close(tree["key"]["prefix"], own["scale"] * own["rows"])


def test_learn_scale_refuses_what_has_none():
    with untyped(), pytest.raises(TypeError, match="learn_scale: expected a transform"):
        lrk.learn_scale(2.0)
    biases = lrk.full(select=lrk.matching("bias"))
    with pytest.raises(ValueError, match="learn_scale: the transform keeps no scale"):
        lrk.learn_scale(biases).init(KEY, PARAMS)
