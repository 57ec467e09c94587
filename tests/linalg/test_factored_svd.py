"""`factored_svd`: against the dense SVD, and its derivatives where it is degenerate."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import factored_svd
from tests.network import numbers
from tests.tolerances import assert_close


def truncated(a, b, rank):
    u = factored_svd(a, b)[0][..., :rank]
    return u @ ((jnp.matrix_transpose(u) @ a) @ b)


def dense(x, rank):
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return (u[..., :rank] * s[..., None, :rank]) @ vt[..., :rank, :]


def orthogonal(seed, n, r):
    return np.linalg.qr(numbers(seed, n, r).astype(np.float64))[0].astype(np.float32)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ((6, 3), (3, 4)),
        ((2, 6, 3), (2, 3, 4)),
        ((3, 7), (7, 4)),
        ((6, 5), (5, 4)),
    ],
    ids=["thin", "stacked", "wide", "wide-b"],
)
def test_it_is_the_svd_of_the_product(a, b):
    a, b = numbers(1, *a), numbers(2, *b)
    u, s, vt = factored_svd(jnp.asarray(a), jnp.asarray(b))
    k = min(a.shape[-2], a.shape[-1], b.shape[-1])
    x = np.asarray(a, np.float64) @ b
    assert_close(u * s[..., None, :] @ vt, x.astype(np.float32))
    want = np.linalg.svd(x, compute_uv=False)[..., :k]
    assert_close(s, want.astype(np.float32))
    eye = np.broadcast_to(np.eye(k, dtype=np.float32), (*a.shape[:-2], k, k))
    assert_close(jnp.matrix_transpose(u) @ u, eye)
    assert_close(vt @ jnp.matrix_transpose(vt), eye)


def test_half_precision_is_taken_apart_in_float32():
    a, b = (jnp.asarray(numbers(i, 3, 3), jnp.bfloat16) for i in (1, 2))
    u, s, vt = factored_svd(a, b)
    assert {x.dtype for x in (u, s, vt)} == {jnp.dtype("float32")}
    want = a.astype(jnp.float32) @ b.astype(jnp.float32)
    assert_close(u * s[None] @ vt, want)


def test_without_ranks_there_is_nothing():
    u, s, vt = factored_svd(jnp.ones((2, 6, 0)), jnp.ones((2, 0, 4)))
    assert (u.shape, s.shape, vt.shape) == ((2, 6, 0), (2, 0), (2, 0, 4))


def test_vectors_of_zero_singular_values_still_span_the_first_factor():
    a, b = numbers(1, 6, 3), numbers(2, 3, 4)
    b[1:] = 0
    u, s, _ = factored_svd(jnp.asarray(a), jnp.asarray(b))
    assert int(jnp.sum(s > 1e-5)) == 1
    assert_close(u @ (u.T @ a), a)


def slopes(a, b, rank, step=1e-5):
    """Directional derivatives of the truncation: ours, and from differences."""
    da, db = numbers(8, *a.shape), numbers(9, *b.shape)
    _, got = jax.jvp(lambda a, b: truncated(a, b, rank), (a, b), (da, db))
    a, b, da, db = (np.asarray(x, np.float64) for x in (a, b, da, db))
    up, down = (dense((a + h * da) @ (b + h * db), rank) for h in (step, -step))
    return got, (up - down) / (2 * step)


@pytest.mark.parametrize(
    ("values", "rank"),
    [([3, 2, 1, 0.5], 2), ([2, 2, 1, 0.5], 2), ([2, 1, 1, 1], 1), ([3, 2, 2, 1], 3)],
    ids=["distinct", "repeated-kept", "repeated-cut", "repeated-inside"],
)
def test_the_derivative_of_a_truncation(values, rank):
    a = jnp.asarray(orthogonal(1, 6, 4) * np.array(values, np.float32))
    b = jnp.asarray(orthogonal(2, 5, 4).T)
    got, want = slopes(a, b, rank)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_reverse_mode_is_forward_mode_transposed():
    a, b = jnp.asarray(numbers(1, 6, 3)), jnp.asarray(numbers(2, 3, 4))
    da, db = jnp.asarray(numbers(3, 6, 3)), jnp.asarray(numbers(4, 3, 4))
    own = [jnp.asarray(numbers(i, *x.shape)) for i, x in enumerate(factored_svd(a, b))]
    _, forward = jax.jvp(factored_svd, (a, b), (da, db))
    _, pull = jax.vjp(factored_svd, a, b)
    ga, gb = pull(tuple(own))
    left = sum(jnp.vdot(g, t) for g, t in zip(own, forward, strict=True))
    assert_close(left, jnp.vdot(ga, da) + jnp.vdot(gb, db), "float16")


def test_second_derivatives_are_those_of_the_gradient():
    a, b = jnp.asarray(numbers(1, 6, 3)), jnp.asarray(numbers(2, 3, 4))
    da = jnp.asarray(numbers(3, 6, 3))

    def slope(a):
        return jax.grad(lambda a: jnp.sum(truncated(a, b, 2) ** 3))(a)

    _, got = jax.jvp(slope, (a,), (da,))
    want = (slope(a + 1e-2 * da) - slope(a - 1e-2 * da)) / 2e-2
    np.testing.assert_allclose(got, want, atol=2e-2 * float(jnp.max(jnp.abs(want))))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (np.zeros((6, 3)), np.zeros((3, 4))),
        (np.eye(6, 3), np.eye(3, 4)),
        (np.ones((6, 3)), np.ones((3, 4))),
    ],
    ids=["zero", "equal", "rank-one"],
)
def test_gradients_are_finite_whatever_the_spectrum(a, b):
    def total(a, b):
        u, s, vt = factored_svd(a, b)
        return jnp.sum(u**3) + jnp.sum(s) + jnp.sum(vt**3)

    a, b = jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    first, second = jax.grad(total, (0, 1))(a, b)
    curved = jax.grad(lambda a: jnp.sum(jax.grad(total)(a, b) ** 2))(a)
    assert all(bool(jnp.isfinite(x).all()) for x in (first, second, curved))
