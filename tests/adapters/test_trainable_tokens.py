"""`trainable_tokens`: the moved table, PEFT's numbers, tied use, padding, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference.trainable_tokens import table
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
SELECT = lrk.matching("w")
PARAMS = {"w": jnp.asarray(numbers(1, 6, 4))}


def state_of(tx, d, params=PARAMS):
    state = tx.init(KEY, params)
    return state._replace(trainable={"w": {"d": jnp.asarray(d)}})


def test_a_tied_table_has_the_moved_rows_and_their_gradient():
    tx, d = lrk.trainable_tokens([4, 1], select=SELECT), numbers(2, 2, 4)
    state, tokens = state_of(tx, d), jnp.asarray([[0, 4], [1, 1]])
    assert_close(tx.init(KEY, PARAMS).trainable["w"]["d"], jnp.zeros((2, 4)))

    def model(w, tokens):
        return jnp.tanh(w[tokens]) @ w.T

    @jax.jit
    def both(d):
        def loss(d, run):
            adapted = tx.apply(PARAMS, state._replace(trainable={"w": {"d": d}}))["w"]
            out = run(adapted)
            return jnp.sum(jnp.sin(out)), out

        def formed(op):
            return model(lrk.materialize(op), tokens)

        lifted = lrk.lift(lambda w: model(w, tokens))
        slope = jax.grad(loss, has_aux=True)
        return slope(d, lifted), slope(d, formed)

    got, want = both(jnp.asarray(d))
    assert_close(got, want)
    moved = table(PARAMS["w"], d, [4, 1])
    assert_close(got[1], (np.tanh(moved[tokens]) @ moved.T).astype("f4"))


def test_agrees_with_peft():
    own = layer("tokens")
    tx = lrk.trainable_tokens(own["index"], select=SELECT)
    params = {"w": jnp.asarray(own["w"])}
    d = own["trainable_tokens_delta"] - own["w"][own["index"]]
    grads = {"d": jnp.asarray(own["grad_trainable_tokens_delta"])}
    own.pop("bias", None)
    assert_agrees(
        tx, state_of(tx, d, params), own, grads, lambda x, w: w[x], w=own["w"]
    )


def test_axes_name_the_tokens_of_an_output_layer():
    axes = {"w": lrk.Axes((), (1,), (0,))}
    tx = lrk.trainable_tokens([3], select=SELECT, axes=axes)
    d = numbers(2, 1, 6)
    formed = lrk.materialize(tx.apply(PARAMS, state_of(tx, d)))["w"]
    assert_close(formed, table(PARAMS["w"].T, d, [3]).T.astype("f4"))


def test_states_of_other_tokens_are_padded_side_by_side():
    makers = [lrk.trainable_tokens(own, select=SELECT) for own in ([2], [0, 5])]
    states = [state_of(tx, numbers(3, n, 4)) for n, tx in enumerate(makers, 1)]
    stacked = lrk.stack(states)
    assert stacked.trainable["w"]["d"].shape == (2, 2, 4)
    assert lrk.count(stacked) == (4 + 8, 0)
    both = jax.vmap(lambda s: lrk.materialize(makers[0].apply(PARAMS, s))["w"])(stacked)
    want = [lrk.materialize(makers[0].apply(PARAMS, s))["w"] for s in states]
    assert_close(both, jnp.stack(want))
    assert_close(lrk.unstack(stacked)[0], states[0])


def test_refuses_tokens_that_are_none():
    with pytest.raises(ValueError, match=r"none below 0 and none twice, got \[1, 1\]"):
        lrk.trainable_tokens([1, 1], select=SELECT)
    with pytest.raises(ValueError, match="at least one token"):
        lrk.trainable_tokens([], select=SELECT)
    with untyped(), pytest.raises(TypeError, match="index must hold integers"):
        lrk.trainable_tokens([1.5], select=SELECT)
    params = {"w": PARAMS["w"], "w3": jnp.ones((2, 7, 4))}
    axes = {"w3": lrk.Axes((0,), (1,), (2,))}
    tx = lrk.trainable_tokens([6], select=SELECT, axes=axes)
    message = r"'w' of shape \(6, 4\): token 6 of 6; 'w3' .*: needs one axis of tokens"
    with pytest.raises(ValueError, match=message):
        tx.init(KEY, params)
