"""`fourierft`: the transform, PEFT's numbers, stacks, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference import fourierft as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)


def test_agrees_with_peft_and_with_the_transform():
    own = layer("fourierft")
    places, values = own["index"], own["fourierft_spectrum"]
    change = reference.change(own["w"].shape, places, values)
    assert_close(own["merged"], (own["w"] + 30 * change).astype("f4"))
    tx = lrk.fourierft(7, scale=30.0)
    state = tx.init(KEY, {"w": jnp.asarray(own["w"].T)})
    index = np.ravel_multi_index(tuple(places[::-1]), own["w"].T.shape).astype("i4")
    fixed = {"w": {**state.fixed["w"], "index": jnp.asarray(index)}}
    grads = {"c": jnp.asarray(own["grad_fourierft_spectrum"])}
    state = lrk.State({"w": {"c": jnp.asarray(values)}}, fixed)
    assert_agrees(tx, state, own, grads)


def test_each_layer_of_a_stack_has_frequencies_of_its_own():
    params = {"w": jnp.asarray(numbers(1, 4, 2, 3, 3))}
    axes = {"w": lrk.Axes((2,), (3,), (0, 1))}
    init = jax.nn.initializers.normal(1.0)
    tx = lrk.fourierft(5, select=lrk.matching("w"), axes=axes, init=init)
    state = jax.jit(tx.init)(KEY, params)
    c, index = (
        np.asarray(x["w"][n]) for x, n in zip(state, ("c", "index"), strict=True)
    )
    assert index.shape == c.shape == (3, 5)
    assert [len(set(row)) for row in index] == [5, 5, 5]
    assert len({tuple(row) for row in index}) == 3
    formed = jax.jit(lambda s: lrk.materialize(tx.apply(params, s))["w"])(state)
    want = np.asarray(params["w"], np.float64)
    for i in range(3):
        places = np.stack(np.unravel_index(index[i], (3, 8)))
        want[:, :, i] += np.moveaxis(
            reference.change((3, 8), places, c[i]).reshape(3, 4, 2), 0, 2
        )
    assert_close(formed, jnp.asarray(want, jnp.float32))


def test_refuses_more_coefficients_than_entries():
    with pytest.raises(ValueError, match="fourierft: count must be at least 1, got 0"):
        lrk.fourierft(0)
    with pytest.raises(
        ValueError,
        match=r"fourierft: .*count 31 exceeds 30\. Lower the count to 30, or",
    ):
        lrk.fourierft(31).init(KEY, {"w": jnp.ones((6, 5))})
