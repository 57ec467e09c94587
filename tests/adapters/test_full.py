"""`full`: a plain trainable delta."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.network import numbers
from tests.tolerances import assert_close
from tests.untyped import untyped

KEY = jax.random.key(0)
PARAMS = {
    "kernel": jnp.asarray(numbers(1, 6, 4)),
    "bias": jnp.asarray(numbers(2, 4), jnp.bfloat16),
    "ids": jnp.arange(3),
}
BIAS = lrk.matching("bias$")


def test_the_delta_is_float32_zero_and_all_there_is():
    state = lrk.full(select=BIAS).init(KEY, PARAMS)
    assert list(state.trainable) == ["bias"]
    assert list(state.trainable["bias"]) == ["d"]
    assert_close(state.trainable["bias"]["d"], np.zeros(4, np.float32))
    assert state.fixed == {}


def test_adds_the_delta_in_the_dtype_of_the_leaf():
    tx = lrk.full(select=BIAS)
    d = numbers(3, 4)
    adapted = tx.apply(PARAMS, lrk.State({"bias": {"d": jnp.asarray(d)}}, {}))
    assert isinstance(adapted["bias"], lrk.Delta)
    assert adapted["kernel"] is PARAMS["kernel"]
    want = jnp.asarray(np.asarray(PARAMS["bias"], np.float32) + d, jnp.bfloat16)
    assert_close(lrk.materialize(adapted)["bias"], want)


def test_its_gradient_is_that_of_fine_tuning():
    tx = lrk.full(select=lrk.matching("kernel"))
    state = tx.init(KEY, PARAMS)
    x = jnp.asarray(numbers(4, 5, 6))

    def model(params, x):
        return jnp.tanh(x @ params["kernel"]).sum()

    def lifted(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return lrk.lift(model)(adapted, x)

    plain = jax.grad(model)({"kernel": PARAMS["kernel"]}, x)
    assert_close(jax.grad(lifted)(state.trainable)["kernel"]["d"], plain["kernel"])


def test_stacks_on_another_delta():
    tx = lrk.chain(lrk.full(select=BIAS), lrk.full(select=BIAS))
    one = {"bias": {"d": jnp.ones(4)}}
    adapted = tx.apply(PARAMS, lrk.State((one, one), ({}, {})))
    want = (PARAMS["bias"].astype(jnp.float32) + 2).astype(jnp.bfloat16)
    assert_close(lrk.materialize(adapted)["bias"], want)


def test_refuses_leaves_that_are_not_floating():
    with pytest.raises(ValueError, match=r"full: cannot train \['ids'\]: not floating"):
        lrk.full(select=lrk.matching(".")).init(KEY, PARAMS)


def test_refuses_an_empty_selection():
    with pytest.raises(ValueError, match="full: the selection matches none of 3"):
        lrk.full(select=lrk.matching("norm")).init(KEY, PARAMS)


def test_refuses_a_state_of_another_tree():
    state = lrk.full(select=BIAS).init(KEY, PARAMS)
    with pytest.raises(ValueError, match="full: the state has 'bias'"):
        lrk.full(select=BIAS).apply({"kernel": PARAMS["kernel"]}, state)


def test_refuses_a_delta_of_another_shape():
    state = lrk.State({"bias": {"d": jnp.ones(3)}}, {})
    with pytest.raises(
        ValueError, match=r"full: 'bias': an array of \(3,\) does not fit"
    ):
        lrk.full(select=BIAS).apply(PARAMS, state)


def test_refuses_a_state_without_a_delta():
    state = lrk.State({"bias": {"a": jnp.ones(4)}}, {})
    with pytest.raises(ValueError, match="full: .* 'bias' lacks trainable 'd'"):
        lrk.full(select=BIAS).apply(PARAMS, state)


def test_refuses_what_is_no_key():
    with (
        untyped(),
        pytest.raises(TypeError, match="full: expected one random key, got None"),
    ):
        lrk.full(select=BIAS).init(None, PARAMS)
