"""`shira`: the sparse delta, PEFT's numbers, random places, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference import shira as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)
PARAMS = {"w": jnp.asarray(numbers(1, 6, 5))}


def test_agrees_with_peft_and_with_the_equation():
    own = layer("shira")
    mask = np.zeros((6, 5), bool)
    mask.T[tuple(own["index"])] = True
    order = np.lexsort(own["index"])  # by input, then by output
    tx = lrk.shira(mask={"w": mask})
    state = tx.init(KEY, PARAMS)
    b = own["shira_weight"][order]
    state = state._replace(trainable={"w": {"b": jnp.asarray(b)}})
    want = reference.weight(own["w"].T, b, mask, 1.0)
    assert_close(own["merged"].T, want.astype("f4"))
    slope = reference.gradient(own["x"], own["g"], mask, 1.0).astype("f4")
    assert_close(own["grad_shira_weight"][order], slope)
    assert_agrees(tx, state, own, {"b": jnp.asarray(slope)})


def test_random_places_are_distinct_and_of_the_density():
    tx = lrk.shira(0.4, scale=0.5)
    state = jax.jit(tx.init)(KEY, PARAMS)
    index = np.asarray(state.fixed["w"]["index"])
    assert len(set(index)) == 12 == lrk.count(state)[0]
    assert np.array_equal(index, np.sort(index))
    assert 0 <= index[0] <= index[-1] < 30
    b = numbers(3, 12)
    state = state._replace(trainable={"w": {"b": jnp.asarray(b)}})
    mask = np.isin(np.arange(30), index).reshape(6, 5)
    want = reference.weight(PARAMS["w"], b, mask, 0.5)
    assert_close(lrk.materialize(tx.apply(PARAMS, state))["w"], want.astype("f4"))


def test_the_largest_weights_are_a_mask_and_adapters_merge():
    scores = {p: {"b": jnp.abs(w)} for p, w in PARAMS.items()}
    mask = lrk.score_mask(scores, density=0.2)
    trees = []
    for i in range(2):
        tx = lrk.shira(mask=mask) if i else lrk.shira(0.2)
        state = tx.init(jax.random.key(i), PARAMS)
        b = {"w": {"b": jnp.asarray(numbers(i, 6))}}
        trees.append(tx.apply(PARAMS, state._replace(trainable=b)))
    merged = lrk.materialize(lrk.merging.task_arithmetic(trees))["w"]
    change = sum(tree["w"].d for tree in trees)
    assert_close(merged, PARAMS["w"] + change)


def test_refuses_what_is_no_mask():
    for wrong in ({}, {"density": 0.1, "mask": {"w": jnp.ones((6, 5))}}):
        with pytest.raises(ValueError, match="shira: pass one of density and mask"):
            lrk.shira(**wrong)
    with pytest.raises(ValueError, match=r"shira: density must lie in \(0, 1\]"):
        lrk.shira(1.5)
    mask = {"w": np.ones((5, 6)), "v": np.ones(2)}
    message = r"shira: the mask does not fit: 'v': not selected; 'w': expected shape"
    with pytest.raises(ValueError, match=message):
        lrk.shira(mask=mask).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="shira: masks must hold 0 and 1"):
        lrk.shira(mask={"w": np.full((6, 5), 2)})
    with pytest.raises(ValueError, match=r"shira: cannot train \['order'\]"):
        lrk.shira(0.5, select=lrk.matching("order")).init(KEY, {"order": np.arange(3)})
