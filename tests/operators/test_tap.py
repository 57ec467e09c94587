"""`Tap`: multiplies as its weight does; the gradient of its `a` is `X^T X`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.operators._tap import Tap
from tests.network import numbers
from tests.tolerances import assert_close

W = jnp.asarray(numbers(1, 4, 3))
X = jnp.asarray(numbers(2, 5, 4))


def tap(eye):
    return Tap(W, eye, jnp.zeros((4, 3)))


def test_products_are_those_of_the_weight():
    assert_close(lrk.lift(jnp.matmul)(X, tap(jnp.eye(4))), X @ W)
    assert_close(
        lrk.lift(lambda w: w[jnp.array([3, 0])])(tap(jnp.eye(4))), W[jnp.array([3, 0])]
    )
    assert_close(lrk.materialize(tap(jnp.eye(4))), W)
    assert not tap(jnp.eye(4)).additive


@pytest.mark.parametrize("cotangent", [0.0, 3.0])
def test_the_gradient_is_the_gram_matrix_whatever_the_cotangent(cotangent):
    def product(eye, x):
        return lrk.lift(jnp.matmul)(x, tap(eye))

    y, pull = jax.vjp(product, jnp.eye(4), X)
    gram, dx = pull(jnp.full_like(y, cotangent))
    assert_close(gram, X.T @ X)
    assert_close(dx, jnp.full_like(y, cotangent) @ W.T)


def test_it_stays_an_operator_where_factors_would_be_formed():
    thin = Tap(jnp.ones((4, 1)), jnp.eye(4), jnp.zeros((4, 1)))
    assert isinstance(thin.settle(), Tap)
    delta = lrk.Delta(W, W)
    settled = tap(jnp.eye(4)).replace(w=delta).settle()
    assert_close(settled.w, 2 * np.asarray(W))


def test_a_member_picked_from_a_stack_gets_its_own_gram_matrix():
    w, x = jnp.asarray(numbers(3, 2, 4, 3)), X

    def picked(eye, i):
        stacked = Tap(w, eye, jnp.zeros((2, 4, 3)))
        return lrk.lift(lambda w, i: x @ w[i])(stacked, i)

    eyes = jnp.broadcast_to(jnp.eye(4), (2, 4, 4))
    y, pull = jax.vjp(lambda eye: picked(eye, jnp.array(1)), eyes)
    assert_close(y, x @ w[1])
    (gram,) = pull(jnp.zeros_like(y))
    assert_close(gram, jnp.stack([jnp.zeros((4, 4)), x.T @ x]))
