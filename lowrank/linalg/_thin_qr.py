"""QR of a tall matrix by products, where its columns are independent enough."""

import jax
import jax.numpy as jnp
from jax import lax

Pair = tuple[jax.Array, jax.Array]

# CholeskyQR2 is as accurate as Householder's QR if one pass leaves columns this near to
# orthonormal: ||Q^T Q - 1|| <= 5/64 (Yamamoto et al., 2015, theorem 3.1's premise).
NEAR = 5 / 64


@jax.jit
def thin_qr(x: jax.Array) -> Pair:
    """The thin QR of a matrix, by two Cholesky factorisations where that is accurate.

    A tall matrix is orthogonalised by `Q = X L^-T` with `X^T X = L L^T`, twice. That is
    matrix products for the most part, while the Householder QR of the backend may take
    a hundred times as long on a busy CPU, whose threads wait for one another. Where the
    columns are too nearly dependent, Householder's QR is what runs.

    Args:
        x: `[*stack, n, r]`, float32 or wider.

    Returns:
        `q: [*stack, n, k]` with orthonormal columns and `r: [*stack, k, r]`, upper
        triangular, with `k = min(n, r)` and `x = q r`. Signs are those of the method
        that ran. One stack takes one method. Not to be differentiated.

    Example:
        >>> from lowrank.linalg import thin_qr
        >>> q, r = thin_qr(jnp.ones((4, 1)))
        >>> jnp.abs(q[:, 0]).tolist(), jnp.abs(r).tolist()
        ([0.5, 0.5, 0.5, 0.5], [[2.0]])

    References:
        Yamamoto, Nakatsukasa, Yanagisawa and Fukaya, Roundoff error analysis of the
        CholeskyQR2 algorithm, 2015.
    """
    n, r = x.shape[-2:]
    if n < 2 * r or r == 0:
        return _householder(x)
    q, first, _ = _pass(x)
    again, second, gram = _pass(q)
    apart = gram - jnp.eye(r, dtype=x.dtype).reshape((1,) * (x.ndim - 2) + (r, r))
    near = jnp.sum(jnp.square(apart), axis=(-2, -1)) <= NEAR**2  # NaN is not near
    return lax.cond(
        jnp.all(near), lambda: (again, second @ first), lambda: _householder(x)
    )


def _householder(x: jax.Array) -> Pair:
    q, r = jnp.linalg.qr(x)
    return q, r


def _pass(x: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """`x L^-T`, `L^T` and `x^T x`."""
    gram = jnp.matmul(jnp.matrix_transpose(x), x, precision=lax.Precision.HIGHEST)
    lower = lax.linalg.cholesky(gram, symmetrize_input=False)
    q = lax.linalg.triangular_solve(lower, x, lower=True, transpose_a=True)
    return q, jnp.matrix_transpose(lower), gram
