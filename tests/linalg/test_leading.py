"""`leading_vectors`: the same subspace, whichever way it is found."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import factored_svd, leading_vectors
from lowrank.linalg._leading import LARGE
from tests.network import numbers


def projected(x, u):
    return np.asarray(u) @ (np.asarray(u).T @ x)


@pytest.mark.parametrize(("n", "m"), [(LARGE, LARGE + 3), (LARGE + 3, LARGE)])
def test_a_wide_product_is_cut_as_its_svd_cuts_it(n, m):
    x = numbers(1, n, m).astype(np.float32) * (numbers(2, n, m) > 0.5)
    eye = np.eye(min(n, m), dtype=np.float32)
    a, b = (eye, x) if n < m else (x, eye)
    u = jax.jit(leading_vectors, static_argnums=2)(a, b, 3)
    np.testing.assert_allclose(u.T @ u, np.eye(3), atol=2e-6)
    exact, _, _ = np.linalg.svd(x.astype(np.float64), full_matrices=False)
    want = projected(x, exact[:, :3])
    error = np.linalg.norm(projected(x, u) - want) / np.linalg.norm(want)
    assert error < 1e-4
    left = np.linalg.norm(x - projected(x, u)) / np.linalg.norm(x - want)
    assert left == pytest.approx(1, abs=4e-6)  # u is orthonormal to 2e-6, as above


def test_a_thin_product_goes_through_its_svd():
    a, b = (jnp.asarray(numbers(i, *s)) for i, s in ((1, (6, 3)), (2, (3, 4))))
    assert np.array_equal(leading_vectors(a, b, 2), factored_svd(a, b)[0][:, :2])


def test_derivatives_are_those_of_the_svd():
    a, b = (jnp.asarray(numbers(i, *s)) for i, s in ((1, (6, 3)), (2, (3, 4))))

    def with_(vectors):
        def cut(a):
            u = vectors(a)
            return jnp.sum((u @ (u.T @ a @ b)) ** 3)

        return jax.grad(cut)(a)

    one = with_(lambda a: leading_vectors(a, b, 2))
    two = with_(lambda a: factored_svd(a, b)[0][:, :2])
    np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5)
