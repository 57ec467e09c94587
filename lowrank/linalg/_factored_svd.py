"""The SVD of a product of two thin factors, which is never formed."""

import jax
import jax.numpy as jnp

from lowrank.linalg._thin_qr import thin_qr

Svd = tuple[jax.Array, jax.Array, jax.Array]


def factored_svd(a: jax.Array, b: jax.Array) -> Svd:
    """The thin SVD of `a b`, from two thin QRs and the SVD of a small core.

    With `a = Q_1 R_1` and `b^T = Q_2 R_2` it is `a b = Q_1 (R_1 R_2^T) Q_2^T`.

    Args:
        a: `[*stack, n, r]`.
        b: `[*stack, r, m]`.

    Returns:
        `u: [*stack, n, k]`, `s: [*stack, k]` from large to small and
        `vt: [*stack, k, m]` with `k = min(n, r, m)`, in float32 or wider, so that
        `a b = u diag(s) vt`. Columns of `u` and rows of `vt` are orthonormal, also
        where `s` is zero; where `k = r` those of `u` then span all columns of `a`.

    Example:
        >>> from lowrank.linalg import factored_svd
        >>> u, s, vt = factored_svd(jnp.ones((4, 1)), jnp.ones((1, 9)))
        >>> u.shape, s.round(4).tolist(), vt.shape
        ((4, 1), [6.0], (1, 9))

    Notes:
        Derivatives exist in both modes and to any order, and are finite for any finite
        factors. They are those of the SVD where the `s` are distinct and not zero.
        Vectors of equal `s` have no derivative of their own: nothing turns them into
        one another here, nor does a vector with `s = 0` leave the span of `u`. So the
        projector on the leading vectors, `u_r u_r^T`, has its true first derivative
        wherever `s_r > s_{r+1}` and `s_r > 0`, whatever repeats within; write a
        truncation as `u_r (u_r^T a) b` rather than `u_r diag(s_r) vt_r` to have that.
    """
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    a, b = a.astype(dtype), b.astype(dtype)
    *stack, n, m = *a.shape[:-1], b.shape[-1]
    if 0 in (n, a.shape[-1], m):
        shapes = (*stack, n, 0), (*stack, 0), (*stack, 0, m)
        u, s, vt = (jnp.zeros(shape, dtype) for shape in shapes)
        return u, s, vt
    return _svd(a, b)


@jax.custom_jvp
def _svd(a: jax.Array, b: jax.Array) -> Svd:
    (n, r), m = a.shape[-2:], b.shape[-1]
    # A factor that is not longer than the rank, such as an identity, has no thin QR.
    q1, r1 = thin_qr(a) if n > r else (None, a)
    q2, r2 = (None, jnp.matrix_transpose(b))
    if m > r:
        q2, r2 = thin_qr(r2)
    core = r1 @ jnp.matrix_transpose(r2)
    u, s, vt = jnp.linalg.svd(core, full_matrices=False)
    left = u if q1 is None else q1 @ u
    return left, s, vt if q2 is None else vt @ jnp.matrix_transpose(q2)


@_svd.defjvp
def _svd_jvp(primals: tuple, tangents: tuple) -> tuple[Svd, Svd]:
    """The usual rule on `d(ab) = da b + a db`, in thin products throughout.

    `dU = U (F * (P S + S P^T)) + (1 - U U^T) d(ab) V / S`, and `dV` likewise, with
    `P = U^T d(ab) V` and `F_ij = 1 / (s_j^2 - s_i^2)`; both quotients are zero where
    they are not defined.
    """
    (a, b), (da, db) = primals, tangents
    u, s, vt = _svd(a, b)
    v, ut = jnp.matrix_transpose(vt), jnp.matrix_transpose(u)
    right = da @ (b @ v) + a @ (db @ v)  # d(ab) V
    left = (ut @ da) @ b + (ut @ a) @ db  # U^T d(ab)
    p = ut @ right
    row, column = s[..., None, :], s[..., :, None]
    small = s.shape[-1] * jnp.finfo(s.dtype).eps * s[..., :1]
    gap = row - column
    f = reciprocal(gap * (row + column), jnp.abs(gap) > small[..., None])
    over = reciprocal(s, s > small)
    pt = jnp.matrix_transpose(p)
    du = u @ (f * (p * row + column * pt)) + (right - u @ p) * over[..., None, :]
    dv = f * (column * p + pt * row)
    dvt = jnp.matrix_transpose(dv) @ vt + (left - p @ vt) * over[..., :, None]
    return (u, s, vt), (du, jnp.diagonal(p, axis1=-2, axis2=-1), dvt)


def reciprocal(x: jax.Array, where: jax.Array) -> jax.Array:
    """One over `x`, or zero; its derivative is finite too."""
    return jnp.where(where, 1 / jnp.where(where, x, 1), 0)
