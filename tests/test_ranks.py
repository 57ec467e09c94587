"""Adapters of different ranks, made one size."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close

PARAMS = {"w": jnp.asarray(numbers(1, 3, 4, 3)), "v": jnp.asarray(numbers(2, 4, 4))}
KEY = jax.random.key(0)
AXES = {"w": lrk.Axes((0,), (1,), (2,))}


def made(rank, factory=lrk.lora, **options):
    """A state of some rank, filled without a draw."""
    tx = factory(rank, alpha=4, select=lambda *_: True, axes=AXES, **options)
    flat, treedef = jax.tree.flatten(jax.eval_shape(tx.init, KEY, PARAMS))
    filled = [numbers(i, *x.shape).astype(x.dtype) for i, x in enumerate(flat)]
    return jax.tree.unflatten(treedef, filled)


def change(state, path):
    """What the factors of a leaf add, without their scale."""
    own = {**state.fixed[path], **state.trainable[path]}
    return own["a"] @ own["b"]


@pytest.mark.parametrize("factory", [lrk.lora, lrk.lori])
def test_padded_states_stack_and_stand_for_the_same_weights(factory):
    one, two = (made(r, factory) for r in (1, 3))
    padded = lrk.pad_ranks([one, two])
    assert padded[1].trainable["v"]["b"] is two.trainable["v"]["b"]
    assert padded[0].fixed["w"]["scale"] is one.fixed["w"]["scale"]
    shapes = {x.trainable["w"]["b"].shape for x in padded}
    assert shapes == {(3, 3, 3)}
    for path in PARAMS:
        assert_close(np.asarray(change(padded[0], path)), change(one, path))
    assert lrk.stack(padded).trainable["v"]["b"].shape == (2, 3, 4)


def test_states_are_padded_under_jit_too():
    own = [made(r) for r in (1, 3)]
    assert_close(
        jax.jit(lrk.pad_ranks)(own), jax.tree.map(jnp.asarray, lrk.pad_ranks(own))
    )


def test_what_differs_in_more_than_rank_is_named():
    one = made(1)
    other = one._replace(
        trainable=one.trainable | {"v": {"a": np.ones((5, 1)), "b": np.ones((1, 1))}}
    )
    message = r"stored, unpacked factors at 'trainable/v/a': \[\(4, 1\), \(5, 1\)\]\. P"
    with pytest.raises(ValueError, match=message):
        lrk.pad_ranks([one, other])
    seeds = [made(r, lrk.lori, store_a=False) for r in (1, 2)]
    with pytest.raises(ValueError, match="'trainable/v/b'.*; 'trainable/w/b'"):
        lrk.pad_ranks(seeds)
    with pytest.raises(ValueError, match="pad_ranks: expected at least one state"):
        lrk.pad_ranks([])
    with pytest.raises(ValueError, match="pad_ranks: the states differ in structure"):
        lrk.pad_ranks([one, made(1, lrk.lori)])
