"""What the laws cannot know of `frozen_a`: its reference, its messages, its edge."""

import jax
import jax.numpy as jnp
import pytest

import lowrank as lrk
from docs.skeleton.method import frozen_a
from docs.skeleton.reference import frozen_a_grad, frozen_a_weight
from tests.tolerances import assert_close

PARAMS = {"w": jax.random.normal(jax.random.key(1), (5, 3)), "bias": jnp.ones(3)}


@pytest.fixture
def state():
    state = frozen_a(2, alpha=4.0).init(jax.random.key(0), PARAMS)
    b = jax.random.normal(jax.random.key(2), (2, 3))
    return state._replace(trainable={"w": {"b": b}})


def test_agrees_with_the_reference(state):
    adapted = frozen_a(2, alpha=4.0).apply(PARAMS, state)
    expected = frozen_a_weight(
        PARAMS["w"], state.fixed["w"]["a"], state.trainable["w"]["b"], 4.0
    )
    assert_close(lrk.materialize(adapted)["w"], expected.astype("float32"))


def test_gradient_agrees_with_the_reference(state):
    tx, x = frozen_a(2, alpha=4.0), jnp.arange(20.0).reshape(4, 5) / 20
    model = lrk.lift(lambda params, x: x @ params["w"] + params["bias"][None])

    def loss(trainable):
        adapted = tx.apply(PARAMS, state._replace(trainable=trainable))
        return model(adapted, x).sum()

    expected = frozen_a_grad(state.fixed["w"]["a"], x.T @ jnp.ones((4, 3)), 4.0)
    got = jax.grad(loss)(state.trainable)
    assert_close(got["w"]["b"], expected.astype("float32"))


def test_refuses_a_rank_below_one():
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        frozen_a(0)


def test_names_every_leaf_that_is_no_matrix():
    params = {"bias": jnp.ones(3), "kernel": jnp.ones((2, 3, 4))}
    tx = frozen_a(2, select=lrk.matching("."))
    with pytest.raises(ValueError, match=r"'bias' of shape \(3,\), 'kernel'"):
        tx.init(jax.random.key(0), params)


def test_rank_may_exceed_the_kernel():
    adapted = frozen_a(9).apply(PARAMS, frozen_a(9).init(jax.random.key(0), PARAMS))
    assert_close(lrk.materialize(adapted), PARAMS)
