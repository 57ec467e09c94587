"""Starts for the factors of `lora` that do not look at the weight."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def gaussian(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`A ~ N(0, 1 / r^2)`, with the standard deviation `1 / r`.

    Args:
        key: A random key.
        shape: `(n, r)`.
        dtype: A floating dtype.

    Returns:
        The factor, for `lora(rank, init=lrk.adapters.gaussian)`.

    Example:
        >>> lrk.adapters.gaussian(jax.random.key(0), (4, 2)).shape
        (4, 2)

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: section 4.1 says Gaussian; the standard
        deviation is that of PEFT's `init_lora_weights="gaussian"`.
    """
    return jax.random.normal(key, shape, dtype) / shape[-1]


def orthogonal_a(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`A = X Q_1 / 10`, on one half of an orthonormal basis of the inner space.

    `X: [n, r/2]` is standard normal, and `Q_1: [r/2, r]` has every other row of an
    orthogonal matrix that depends on `r` alone. With `orthogonal_b`, on the other rows,
    both factors are random and their product is zero, so that both have a gradient from
    the first step.

    Args:
        key: A random key.
        shape: `(n, r)` with an even `r`.
        dtype: A floating dtype.

    Returns:
        The factor, for `lora(rank, init=orthogonal_a, init_b=orthogonal_b)`.

    Raises:
        ValueError: If the rank is odd.

    Example:
        >>> lrk.adapters.orthogonal_a(jax.random.key(0), (4, 2)).shape
        (4, 2)

    Notes:
        PEFT draws another orthogonal matrix for each layer. Any will do: `X` turns its
        half in all directions.

    References:
        PEFT 0.21.2, `init_lora_weights="orthogonal"`; there is no paper.
    """
    n, rank = shape
    x = jax.random.normal(key, (n, rank // 2), dtype)
    return orthogonal_part(x, basis(rank, dtype)[0::2])


def orthogonal_b(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """`B = Q_2^T Y / 10`, on the half that `orthogonal_a` leaves alone.

    `Y: [r/2, m]` is standard normal, and `Q_2: [r/2, r]` has the other rows.

    Args:
        key: A random key.
        shape: `(r, m)` with an even `r`.
        dtype: A floating dtype.

    Returns:
        The factor, for `lora(rank, init=orthogonal_a, init_b=orthogonal_b)`.

    Raises:
        ValueError: If the rank is odd.

    Example:
        >>> lrk.adapters.orthogonal_b(jax.random.key(0), (2, 3)).shape
        (2, 3)

    References:
        PEFT 0.21.2, `init_lora_weights="orthogonal"`; there is no paper.
    """
    rank, m = shape
    y = jax.random.normal(key, (m, rank // 2), dtype)
    return orthogonal_part(y, basis(rank, dtype)[1::2]).T


def orthogonal_part(
    x: Float[Array, "n half"], rows: Float[Array, "half r"]
) -> Float[Array, "n r"]:
    """`X Q / 10`."""
    return x @ rows / 10


def basis(rank: int, dtype: Any) -> Float[Array, "r r"]:
    """One orthogonal matrix for each rank, the same for both factors.

    Raises:
        ValueError: If the rank is odd.
    """
    if rank % 2:
        raise ValueError(
            f"orthogonal_a, orthogonal_b: the rank must be even, got {rank}: each "
            "factor has one half of the inner space."
        )
    key = jax.random.key(0, impl="threefry2x32")
    return jnp.linalg.qr(jax.random.normal(key, (rank, rank), dtype))[0]
