"""`thin_qr`: orthonormal and exact, also where columns are dependent."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import thin_qr
from tests.network import numbers

TALL = jnp.asarray(numbers(1, 9, 3))
CASES = {
    "tall": TALL,
    "square": jnp.asarray(numbers(2, 4, 4)),
    "wide": jnp.asarray(numbers(3, 2, 5)),
    "repeated columns": TALL[:, jnp.array([0, 1, 0])],
    "zero": jnp.zeros((9, 3)),
    "nearly dependent": TALL * jnp.array([[1.0, 1e-6, 1.0]]) + TALL[:, :1],
    "huge": 1e25 * TALL,
    "tiny": 1e-25 * TALL,
    "far scales": TALL * jnp.array([[1.0, 1e-4, 1e3]]),
}


def assert_factored(x, q, r):
    x, q, r = (np.asarray(v, np.float64) for v in (x, q, r))
    k = min(x.shape)
    assert (q.shape, r.shape) == ((x.shape[0], k), (k, x.shape[1]))
    np.testing.assert_allclose(q.T @ q, np.eye(k), atol=2e-6)
    np.testing.assert_allclose(q @ r, x, atol=3e-6 * max(np.abs(x).max(), 1e-300))
    np.testing.assert_array_equal(r, np.triu(r))


@pytest.mark.parametrize("name", CASES)
def test_it_is_a_thin_qr(name):
    assert_factored(CASES[name], *thin_qr(CASES[name]))


def test_a_stack_is_one_qr_each_whatever_its_members():
    for second in ("tall", "repeated columns"):
        x = jnp.stack([TALL, CASES[second]])
        q, r = thin_qr(x)
        for i in range(2):
            assert_factored(x[i], q[i], r[i])
    q, r = jax.vmap(thin_qr)(x)
    assert_factored(x[1], q[1], r[1])


def test_independent_columns_need_no_householder_reflections():
    """The sign of the diagonal tells which method ran: Cholesky's is positive."""
    assert (jnp.diagonal(thin_qr(TALL)[1]) > 0).all()
    assert (jnp.diagonal(jnp.linalg.qr(TALL)[1]) < 0).any()


def test_matrices_without_columns_have_a_qr():
    q, r = thin_qr(jnp.zeros((4, 0)))
    assert (q.shape, r.shape) == ((4, 0), (0, 0))
