"""`subspace.over`: a subspace of what another transform trains."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.reference.subspace import moved, normalised
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(5)
PARAMS = {
    "bias": jnp.asarray(numbers(1, 3)),
    "kernel": jnp.asarray(numbers(2, 4, 3)),
    "ids": jnp.arange(4),
}
DENSE = lrk.subspace.dense()
D = 5
INNER = {
    "lora": (lambda: lrk.lora(2, alpha=3.0), ["kernel/a", "kernel/b"]),
    "lori": (lambda: lrk.lori(2), ["kernel/b"]),
    "dora": (lambda: lrk.dora(2), ["kernel/0/a", "kernel/0/b", "kernel/1/m"]),
    "chain": (
        lambda: lrk.chain(
            lrk.lora(1), lrk.identity(), lrk.lora(2), lrk.full(select=bias)
        ),
        ["kernel/0/a", "kernel/0/b", "kernel/2/a", "kernel/2/b", "bias/3/d"],
    ),
}
bias = lrk.matching("bias")
each = pytest.mark.parametrize("name", INNER)


def moved_state(state, z):
    *none, _ = state.trainable
    return state._replace(trainable=(*none, {"subspace": {"z": jnp.asarray(z)}}))


@each
def test_moves_what_the_inner_transform_trains(name):
    make, names = INNER[name]
    inner, tx = make(), lrk.subspace.over(make(), D, DENSE)
    state, start = tx.init(KEY, PARAMS), inner.init(KEY, PARAMS)
    assert_close(state.fixed[:2], (start.fixed, start.trainable))
    assert list(state.fixed[2]) == names
    assert lrk.count(state)[0] == D
    assert len(jax.tree.leaves(state.trainable)) == 1
    z = numbers(3, D)
    p = normalised([state.fixed[2][path]["p"] for path in names])
    flat, treedef = jax.tree.flatten(start.trainable)
    want = moved([np.asarray(x) for x in flat], p, z)
    trained = treedef.unflatten([jnp.asarray(x, jnp.float32) for x in want])
    same = inner.apply(PARAMS, start._replace(trainable=trained))
    got = tx.apply(PARAMS, moved_state(state, z))
    assert_close(got, same)
    assert got["ids"] is PARAMS["ids"]


@each
def test_starts_as_the_inner_transform(name):
    tx = lrk.subspace.over(INNER[name][0](), D, lrk.subspace.gather())
    adapted = tx.apply(PARAMS, tx.init(KEY, PARAMS))
    assert_close(lrk.materialize(adapted), PARAMS)


def test_adapters_stay_factored_and_z_learns_from_the_start():
    tx = lrk.subspace.over(lrk.lora(2), D, DENSE)
    state = tx.init(KEY, PARAMS)
    assert isinstance(tx.apply(PARAMS, state)["kernel"], lrk.LowRank)
    x = jnp.asarray(numbers(7, 6, 4))

    def loss(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return jnp.sum(lrk.lift(lambda p, x: x @ p["kernel"])(adapted, x) ** 3)

    grads = jax.grad(loss)(state.trainable)
    assert np.abs(grads[2]["subspace"]["z"]).min() > 0


def test_dtypes_of_the_inner_transform_stay():
    def init(key, params):
        del key
        return lrk.State({"w": {"d": jnp.zeros_like(params["w"])}}, {})

    def apply(params, state, *, key=None):
        del key
        return {"w": params["w"] + state.trainable["w"]["d"]}

    tx = lrk.subspace.over(lrk.Transform(init, apply), 2, DENSE)
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    state = moved_state(tx.init(KEY, params), np.ones(2, np.float32))
    assert tx.apply(params, state)["w"].dtype == jnp.bfloat16


def test_passes_keys_on():
    tx = lrk.subspace.over(lrk.lora(2, dropout=0.5), D, DENSE)
    state = tx.init(KEY, PARAMS)
    tx.apply(PARAMS, state, key=KEY)
    with pytest.raises(TypeError, match="dropout needs a key"):
        tx.apply(PARAMS, state)


# --- messages -------------------------------------------------------------------------


def test_refuses_what_cannot_be_wrapped():
    with untyped(), pytest.raises(TypeError, match="over: expected a transform, got 8"):
        lrk.subspace.over(8, D, DENSE)
    with untyped(), pytest.raises(TypeError, match="over: expected a Projection"):
        lrk.subspace.over(lrk.lora(2), D, lrk.subspace.dense)
    with pytest.raises(ValueError, match="over: d must be at least 1, got 0"):
        lrk.subspace.over(lrk.lora(2), 0, DENSE)


def test_refuses_what_has_nothing_to_move():
    with pytest.raises(ValueError, match="over: the transform trains nothing"):
        lrk.subspace.over(lrk.identity(), 1, DENSE).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="d=15 exceeds the 14 entries of 'kernel/a', "):
        lrk.subspace.over(lrk.lora(2), 15, DENSE).init(KEY, PARAMS)

    def counts(key, params):
        del key, params
        return lrk.State({"w": {"n": jnp.arange(3)}}, {})

    tx = lrk.subspace.over(lrk.identity()._replace(init=counts), 1, DENSE)
    with pytest.raises(ValueError, match=r"cannot move 'w/n': not floating"):
        tx.init(KEY, PARAMS)


def test_refuses_states_of_others():
    tx = lrk.subspace.over(lrk.lora(2), D, DENSE)
    with pytest.raises(ValueError, match=r"a state of 3 members, got \[None, None\]"):
        tx.apply(PARAMS, lrk.lora(2).init(KEY, PARAMS))
    other = lrk.subspace.over(lrk.lora(2), D, lrk.subspace.gather())
    with pytest.raises(ValueError, match="'kernel/a' lacks fixed 'p'"):
        tx.apply(PARAMS, other.init(KEY, PARAMS))
