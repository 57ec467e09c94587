"""The polar factor of a product of two thin factors, which is never formed."""

import jax
import jax.numpy as jnp

from lowrank.linalg._factored_svd import factored_svd, reciprocal

Polar = tuple[jax.Array, jax.Array, jax.Array]


def factored_polar(a: jax.Array, b: jax.Array) -> Polar:
    """The partial isometry nearest to `a b`, as a product of thin factors.

    With the SVD `a b = U diag(s) V^T`, cut to its support, the polar factor is
    `U V^T`: the same directions, all with singular value one.

    Args:
        a: `[*stack, n, r]`.
        b: `[*stack, r, m]`.

    Returns:
        `u: [*stack, n, k]`, `s: [*stack, k]` and `vt: [*stack, k, m]` with
        `k = min(n, r, m)`, in float32 or wider. Directions that `a b` lacks, up to
        rounding, are zero in all three, so the sum of `s > 0` is the rank.

    Example:
        >>> from lowrank.linalg import factored_polar
        >>> u, s, vt = factored_polar(3 * jnp.eye(2, 1), jnp.ones((1, 4)))
        >>> (u @ vt)[0].round(4).tolist(), s.round(4).tolist()
        ([0.5, 0.5, 0.5, 0.5], [6.0])

    Notes:
        Differentiate the product `u vt` and `s`, not `u` or `vt` alone, which are
        unique up to a rotation only: the derivative is put where it is finite. That of
        the product is exact wherever the rank stays the same, also where singular
        values repeat (as they do for orthonormal columns), which the derivative of the
        SVD is not.
    """
    return _polar(a, b)


@jax.custom_jvp
def _polar(a: jax.Array, b: jax.Array) -> Polar:
    u, s, vt = factored_svd(a, b)
    kept = support(s, max(a.shape[-2], b.shape[-1])).astype(s.dtype)
    return u * kept[..., None, :], s * kept, vt * kept[..., :, None]


def support(s: jax.Array, size: int, largest: jax.Array | None = None) -> jax.Array:
    """Which singular values of a product with sides up to `size` are not rounding.

    Args:
        s: `[*stack, k]`.
        size: The longer side.
        largest: What to compare with, `[*stack, 1]`; None for the largest of `s`.
    """
    if s.shape[-1] == 0:
        return jnp.zeros(s.shape, bool)
    top = jnp.max(s, axis=-1, keepdims=True) if largest is None else largest
    # A dot product of length n is off by about sqrt(n) eps; 8 is for the QRs and SVD.
    return s > 8 * size**0.5 * jnp.finfo(s.dtype).eps * top


@_polar.defjvp
def _polar_jvp(primals: tuple, tangents: tuple) -> tuple[Polar, Polar]:
    """The rule of `Q = U V^T`, with `X = a b` and `P = U^T dX V`, in thin products.

    `dQ = U Omega V^T + (1 - U U^T) dX V S^-1 V^T + U S^-1 U^T dX (1 - V V^T)`, where
    `Omega_ij = (P - P^T)_ij / (s_i + s_j)`: sums, so repeated values do no harm.
    """
    (a, b), (da, db) = primals, tangents
    u, s, vt = _polar(a, b)
    v, ut = jnp.matrix_transpose(vt), jnp.matrix_transpose(u)
    right = da @ (b @ v) + a @ (db @ v)
    left = (ut @ da) @ b + (ut @ a) @ db
    p = ut @ right
    total = s[..., None, :] + s[..., :, None]
    both = (s[..., None, :] > 0) & (s[..., :, None] > 0)
    skew = (p - jnp.matrix_transpose(p)) * reciprocal(total, both)
    inverse = reciprocal(s, s > 0)
    du = (right - u @ p) * inverse[..., None, :] + u @ skew
    dvt = inverse[..., :, None] * (left - p @ vt)
    ds = jnp.diagonal(p, axis1=-2, axis2=-1)
    return (u, s, vt), (du.astype(u.dtype), ds.astype(s.dtype), dvt.astype(vt.dtype))
