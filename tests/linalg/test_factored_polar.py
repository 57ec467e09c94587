"""`factored_polar`: values, the support, and derivatives where values repeat."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import factored_polar, support
from tests.network import numbers
from tests.reference.merging_subspace import polar
from tests.tolerances import assert_close

A, B = jnp.asarray(numbers(1, 2, 7, 3)), jnp.asarray(numbers(2, 2, 3, 5))


def product(a, b):
    u, _, vt = factored_polar(jnp.asarray(a), jnp.asarray(b))
    return u @ vt


def test_the_product_is_the_polar_factor_of_each_matrix():
    u, s, vt = factored_polar(A, B)
    assert (u.shape, s.shape, vt.shape) == ((2, 7, 3), (2, 3), (2, 3, 5))
    want = [polar(np.asarray(a, np.float64) @ b) for a, b in zip(A, B, strict=True)]
    assert_close(u @ vt, np.stack(want).astype(np.float32))
    assert_close(u * s[..., None, :] @ vt, A @ B)


def test_directions_that_the_product_lacks_are_zero():
    twice, again = jnp.concatenate([A, A], -1), jnp.concatenate([B, -2 * B], -2)
    u, s, vt = factored_polar(twice, again)
    assert np.asarray(jnp.sum(s > 0, -1)).tolist() == [3, 3]
    assert not u[..., 3:].any()
    assert not vt[..., 3:, :].any()
    assert_close(u @ vt, -product(A, B))
    none = factored_polar(A, 0 * B)
    assert not any(x.any() for x in none)


def test_what_counts_as_rounding_is_relative():
    s = jnp.array([1e-3, 1e-6, 1e-9])
    assert support(s, 8).tolist() == [True, True, False]
    assert support(s, 8, jnp.array([10.0])).tolist() == [True, False, False]
    assert support(jnp.zeros(2), 8).tolist() == [False, False]
    assert support(jnp.zeros((2, 0)), 8).shape == (2, 0)


@pytest.mark.parametrize("spectrum", [(3.0, 2.0, 0.5), (1.0, 1.0, 1.0)])
def test_the_derivative_of_the_product_is_exact(spectrum):
    left, right = np.linalg.qr(A[0])[0], np.linalg.qr(B[0].T)[0].T
    a, b = left * np.float32(spectrum), right
    da, db = numbers(3, 7, 3), numbers(4, 3, 5)

    def along(step):
        x, y = (v.astype(np.float64) for v in (a, b))
        return polar((x + step * da) @ (y + step * db))

    _, tangent = jax.jvp(product, (a, b), (da, db))
    want = (along(1e-5) - along(-1e-5)) / 2e-5
    np.testing.assert_allclose(tangent, want, rtol=1e-4, atol=1e-4)
    pulled = jax.vjp(product, a, b)[1](jnp.ones((7, 5)))
    got = sum(float(jnp.vdot(x, d)) for x, d in zip(pulled, (da, db), strict=True))
    assert got == pytest.approx(want.sum(), rel=1e-3)


def test_singular_values_have_their_derivative():
    def nuclear(a):
        return jnp.sum(factored_polar(a, B[0])[1])

    want = product(A[0], B[0]) @ B[0].T
    assert_close(jax.grad(nuclear)(A[0]), want)
