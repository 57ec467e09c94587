"""`hira`: the equation, PEFT's numbers, composition, messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.adapters.peft_layers import assert_agrees, layer
from tests.network import numbers
from tests.reference import hira as reference
from tests.tolerances import assert_close

KEY = jax.random.key(0)


def test_agrees_with_peft_and_with_the_equation():
    own = layer("hira")
    want = reference.weight(own["w"], own["hira_A"], own["hira_B"], 1.0)
    assert_close(own["merged"], want.astype("f4"))
    tx = lrk.hira(2)
    state = tx.init(KEY, {"w": jnp.asarray(own["w"].T)})
    names = {"a": "hira_A", "b": "hira_B"}
    values = {n: jnp.asarray(own[torch].T) for n, torch in names.items()}
    grads = {n: jnp.asarray(own["grad_" + torch].T) for n, torch in names.items()}
    assert_agrees(tx, state._replace(trainable={"w": values}), own, grads)


def test_behind_lora_it_is_in_proportion_to_the_sum():
    params = {"w": jnp.asarray(numbers(1, 6, 5))}
    tx = lrk.chain(lrk.lora(2), lrk.hira(1, scale=0.5))
    shapes = jax.eval_shape(tx.init, KEY, params)
    low, own = (
        {n: numbers(3, *x.shape) for n, x in part["w"].items()}
        for part in shapes.trainable
    )
    scales = tuple({"w": {"scale": jnp.float32(s)}} for s in (1.0, 0.5))
    arrays = jax.tree.map(jnp.asarray, ({"w": low}, {"w": own}))
    formed = jax.jit(lambda s: lrk.materialize(tx.apply(params, s))["w"])
    inner = np.asarray(params["w"], np.float64) + low["a"] @ low["b"]
    want = reference.weight(inner, own["b"], own["a"], 0.5)
    assert_close(formed(lrk.State(arrays, scales)), want.astype("f4"))


def test_refuses_a_leaf_that_has_no_dense_form():
    params = {"w": jnp.ones((6, 5))}
    message = (
        r"hira: cannot adapt 'w' of shape \(6, 5\): Routed has no dense form\. Put "
        r"hira before what acts inside the product, or leave these out with select=\."
    )
    routed = lrk.hydra(2, 2).apply(params, lrk.hydra(2, 2).init(KEY, params))
    with pytest.raises(ValueError, match=message):
        lrk.hira(2).init(KEY, routed)
    with pytest.raises(ValueError, match=message):
        lrk.hira(2).apply(routed, lrk.hira(2).init(KEY, params))
