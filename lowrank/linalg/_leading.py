"""The leading left singular vectors of a product of two factors."""

import functools

import jax
import jax.numpy as jnp

from lowrank.linalg._factored_svd import factored_svd

LARGE = 512  # sides of a product from which eigenvectors are found quicker than its SVD


def leading_vectors(a: jax.Array, b: jax.Array, rank: int) -> jax.Array:
    """The first left singular vectors of `a b`: `[*stack, n, min(rank, n, r, m)]`.

    A product of thin factors goes through `factored_svd`. One that is wide in every
    respect, such as a formed matrix times an identity, is formed: the eigenvectors of
    `X X^T` give a few more directions than are asked for, which one product with
    `X X^T` and the SVD of `X` within them make exact to rounding.

    Args:
        a: `[*stack, n, r]`.
        b: `[*stack, r, m]`.
        rank: How many, at least 1.

    Returns:
        Orthonormal columns. Derivatives are those of `factored_svd`.

    Example:
        >>> from lowrank.linalg import leading_vectors
        >>> leading_vectors(jnp.ones((4, 1)), jnp.ones((1, 9)), 1).shape
        (4, 1)
    """
    return _leading(a, b, rank)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _leading(a: jax.Array, b: jax.Array, rank: int) -> jax.Array:
    smallest = min(*a.shape[-2:], b.shape[-1])
    wide = 2 * rank + 8
    if smallest < LARGE or wide > smallest:
        return factored_svd(a, b)[0][..., :rank]
    dtype = jnp.promote_types(jnp.result_type(a, b), jnp.float32)
    x = a.astype(dtype) @ b.astype(dtype)
    xt = jnp.matrix_transpose(x)
    _, vectors = jnp.linalg.eigh(x @ xt)
    basis, _ = jnp.linalg.qr(x @ (xt @ vectors[..., ::-1][..., :wide]))
    _, core = jnp.linalg.qr(xt @ basis)
    turn, _, _ = jnp.linalg.svd(jnp.matrix_transpose(core))
    return basis @ turn[..., :rank]


@_leading.defjvp
def _leading_jvp(rank: int, primals: tuple, tangents: tuple) -> tuple:
    """Those of the whole SVD."""

    def whole(a: jax.Array, b: jax.Array) -> jax.Array:
        return factored_svd(a, b)[0][..., :rank]

    return jax.jvp(whole, primals, tangents)
