"""Shared subspaces, angles and cosines."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank import analysis
from tests.analysis.cases import STACK, A, B, W, delta, low
from tests.network import numbers
from tests.reference import analysis as reference
from tests.reference.merging_exact import slope
from tests.tolerances import assert_close

TWO = numbers(11, 6, 2)
EYE = np.eye(6, dtype=np.float32)


def test_similarity_is_that_of_the_paper():
    grid = analysis.similarity_grid(jnp.asarray(A), jnp.asarray(TWO))
    want = [[reference.similarity(A.T, TWO.T, i, j) for j in (1, 2)] for i in (1, 2, 3)]
    assert_close(grid, np.float32(want))
    assert_close(analysis.subspace_similarity(A, TWO, 3, 1), grid[2, 0])


def test_similarity_of_changes_is_that_of_their_input_directions():
    got = analysis.subspace_similarity(low(), TWO, 2, 2)
    assert_close(got, np.float32(reference.similarity(delta().T, TWO.T, 2, 2)))


def test_a_known_similarity():
    one, two = EYE[:, :2] * [2, 1], EYE[:, [1, 2, 3]] * [3, 2, 1]
    want = [[0, 0, 0], [1, 0.5, 0.5]]
    assert_close(analysis.similarity_grid(one, two), np.float32(want))
    lacking = EYE[:, [0, 0]]  # of rank one
    assert_close(analysis.subspace_similarity(lacking, EYE, 2, 6), jnp.float32(0.5))


def test_similarity_has_gradients():
    def wanted(flat):
        return reference.similarity(flat.reshape(A.shape).T, TWO.T, 2, 1)

    got = jax.grad(lambda a: analysis.subspace_similarity(a, TWO, 2, 1))(jnp.asarray(A))
    want = slope(wanted, A.reshape(-1)).reshape(A.shape)
    np.testing.assert_allclose(got, want, atol=2e-4 * np.abs(want).max())


def test_angles():
    got = analysis.principal_angles(A, TWO)
    assert_close(got, np.float32(reference.angles(A, TWO)))
    assert_close(analysis.principal_angles(TWO, A), got)


@pytest.mark.parametrize("angle", [0.0, 1e-5, 1e-3, 0.7, 1.5, np.pi / 2])
def test_known_angles_small_ones_too(angle):
    turned = np.cos(angle) * EYE[:, :1] + np.sin(angle) * EYE[:, 2:3]
    two = np.concatenate([turned, EYE[:, 3:4]], axis=1)
    got = analysis.principal_angles(EYE[:, :2] @ [[1, 2], [1, -1]], two)
    np.testing.assert_allclose(got, [angle, np.pi / 2], rtol=1e-5, atol=3e-7)


def test_directions_that_are_missing_are_at_right_angles():
    got = analysis.principal_angles(EYE[:, :2] * [1, 0], EYE[:, :2])
    np.testing.assert_allclose(got, [0, np.pi / 2], atol=3e-7)


def test_cosines_of_factors_and_weights():
    other = (numbers(12, 6, 2), numbers(13, 2, 5))
    d, e = delta(), delta(*other)
    assert_close(analysis.cosine(low(), other), np.float32(reference.cosine(d, e)))
    want = np.float32(reference.cosine(d, W))
    assert_close(analysis.cosine(low(), jnp.asarray(W)), want)
    assert_close(analysis.cosine(jnp.asarray(W), low()), want)
    assert_close(analysis.cosine(W, -2 * W), jnp.float32(-1))
    assert float(analysis.cosine(np.zeros_like(W), W)) == 0


def test_stacks_jit_and_vmap():
    _, a, b = STACK
    pair = jnp.asarray(a), jnp.asarray(b)
    got = analysis.similarity_grid(pair, pair[0])
    want = [analysis.similarity_grid((a[i], b[i]), a[i]) for i in (0, 1)]
    assert_close(got, jnp.stack(want))

    def one(a, b):
        return analysis.principal_angles((a, b), A), analysis.cosine((a, b), W)

    angles, cosines = jax.jit(jax.vmap(one))(*pair)
    assert_close(angles[1], analysis.principal_angles((a[1], b[1]), A))
    assert_close(cosines[0], np.float32(reference.cosine(a[0] @ b[0], W)))


def test_refusals():
    with pytest.raises(ValueError, match=r"i in \[1, 3\], .* got 4"):
        analysis.subspace_similarity(A, TWO, 4, 1)
    with pytest.raises(ValueError, match=r"j in \[1, 2\], .* got 0"):
        analysis.subspace_similarity(A, TWO, 1, 0)
    with pytest.raises(ValueError, match=r"one stack and one n, got \(6,\) and \(3,\)"):
        analysis.principal_angles(A, B)
    with pytest.raises(ValueError, match=r"one n and m, got \(6, 5\) and \(6, 3\)"):
        analysis.cosine(W, A)
    with pytest.raises(ValueError, match="similarity_grid: expected finite numbers"):
        analysis.similarity_grid(A, TWO * np.inf)
