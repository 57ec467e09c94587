"""The Walsh-Hadamard transform as a few products with small constant matrices."""

import functools
import math

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

# One product with a constant matrix, at most; a pass over the array costs as much as
# this many multiply-adds for each entry.
LARGEST = 128
_PASS = 24


@functools.cache
def sylvester(length: int) -> np.ndarray:
    """Sylvester's matrix `H: [length, length]` of ones and minus ones, as int8."""
    h = np.ones((1, 1), np.int8)
    while len(h) < length:
        h = np.block([[h, h], [h, -h]])
    return h


@functools.cache
def block_sizes(length: int) -> tuple[int, ...]:
    """Powers of two whose product is `length`, the cheapest for repeated products."""
    bits = length.bit_length() - 1
    if not bits:
        return (1,)

    def split(count: int) -> tuple[int, ...]:
        low, more = divmod(bits, count)
        return (2 ** (low + 1),) * more + (2**low,) * (count - more)

    fewest = -(-bits // (LARGEST.bit_length() - 1))
    choices = [split(count) for count in range(fewest, bits + 1)]
    return min(choices, key=lambda sizes: sum(sizes) + _PASS * len(sizes))


def check_power(length: int) -> None:
    """Refuse what is no power of two.

    Raises:
        ValueError: If it is none.
    """
    if length < 1 or length & (length - 1):
        raise ValueError(
            f"hadamard: expected a length that is a power of two, got {length}. Pad it "
            "with zeros."
        )


def times(x: Float[Array, "..."], size: int, axis: int) -> Float[Array, "..."]:
    """One product with the matrix of a size: `H X` (axis 0) or `X H` (axis 1)."""
    h = jnp.asarray(sylvester(size), x.dtype)
    exact = lax.Precision.HIGHEST
    if axis == 0:
        return jnp.matmul(h, x.reshape(size, -1), precision=exact)
    return jnp.matmul(x.reshape(-1, size), h, precision=exact)


def _rows(x: Float[Array, "n length"]) -> Float[Array, "n length"]:
    """The transform of each row.

    With `H_L = H_a (x) H_b (x) ...` every pass contracts the last axis with a block and
    puts the result first. So no pass moves numbers about besides its product, and in
    the end the axes of one row are in order again.
    """
    count, length = x.shape
    if length <= LARGEST:
        return times(x, length, 1)
    for size in block_sizes(length)[::-1]:
        h = jnp.asarray(sylvester(size), x.dtype)
        x = lax.dot_general(
            h,
            x.reshape(-1, size),
            (((1,), (1,)), ((), ())),
            precision=lax.Precision.HIGHEST,
        )
    return x.reshape(length, count).T


def hadamard(x: Float[Array, "*batch length"]) -> Float[Array, "*batch length"]:
    """The Walsh-Hadamard transform of the last axis, not normalised.

    `y = H x` with Sylvester's `H` of ones and minus ones, `H_2L = [[H, H], [H, -H]]`:
    `H = H^T` and `H H = L`. Divide by `sqrt(L)` for the orthonormal transform; without
    it the constants are exact in every dtype. A length of `2^20` takes five products
    with a matrix of 16, where butterflies take 20 passes over memory.

    Args:
        x: An array whose last axis has a length that is a power of two.

    Returns:
        The transform, of the same shape and dtype. Linear and its own adjoint, also as
        JAX sees it.

    Raises:
        ValueError: If the length is no power of two.

    Example:
        >>> lrk.linalg.hadamard(jnp.asarray([1.0, 2.0, 3.0, 4.0])).tolist()
        [10.0, -2.0, -4.0, 0.0]

    References:
        Le et al., Fastfood, 2013: the transform that their product is made of.
    """
    length = x.shape[-1]
    check_power(length)
    flat = x.reshape(math.prod(x.shape[:-1]), length)
    # `H` is symmetric, so its transpose may run the very same passes; those that JAX
    # would derive are half as fast. What has a transpose of its own and works under
    # every transformation is a linear solve: of `H y / L = x`, whose solution is `H x`.
    y = lax.custom_linear_solve(
        lambda y: _rows(y) / length, flat, lambda _, b: _rows(b), symmetric=True
    )
    return y.reshape(x.shape)


def hadamard_blocks(x: Float[Array, "p n q"]) -> Float[Array, "p n q"]:
    """The transform over the first and the last axis together, of length `p q`.

    In this layout both halves of it are plain products, forwards and backwards.

    Args:
        x: `n` vectors of length `p q`, both powers of two.

    Returns:
        Their transforms, in the same layout; not normalised, as `hadamard`.

    Raises:
        ValueError: If `p` or `q` is no power of two.

    Example:
        >>> x = jnp.asarray([[[1.0, 2.0]], [[3.0, 4.0]]])  # one vector of 2 x 2
        >>> lrk.linalg.hadamard_blocks(x).reshape(-1).tolist()
        [10.0, -2.0, -4.0, 0.0]
    """
    p, _, q = x.shape
    check_power(p)
    return hadamard(times(x, p, 0).reshape(x.shape))
