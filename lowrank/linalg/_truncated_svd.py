"""The leading part of the SVD of a matrix."""

import functools

import jax
import jax.numpy as jnp

from lowrank.linalg._leading import leading_vectors


@functools.partial(jax.jit, static_argnums=1)
def truncated_svd(w: jax.Array, rank: int) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The first `rank` singular triplets of a matrix, from large to small.

    Args:
        w: `[*stack, n, m]`.
        rank: How many, at least 1 and at most `min(n, m)`.

    Returns:
        `u: [*stack, n, rank]`, `s: [*stack, rank]` and `vt: [*stack, rank, m]`, in
        float32 or wider. `u diag(s) vt` is `u u^T w`: the nearest matrix of that rank.
        Rows of `vt` whose `s` is zero are zero.

    Example:
        >>> from lowrank.linalg import truncated_svd
        >>> u, s, vt = truncated_svd(jnp.diag(jnp.array([1.0, 3.0, 2.0])), 2)
        >>> s.tolist()
        [3.0, 2.0]
    """
    w = w.astype(jnp.promote_types(w.dtype, jnp.float32))
    stack, m = (1,) * (w.ndim - 2), w.shape[-1]
    u = leading_vectors(w, jnp.eye(m, dtype=w.dtype).reshape(*stack, m, m), rank)
    rows = jnp.matrix_transpose(u) @ w
    s = jnp.linalg.norm(rows, axis=-1)
    positive = s > 0
    over = jnp.where(positive, 1 / jnp.where(positive, s, 1), 0)
    return u, s, rows * over[..., None]
