"""Blocks of a matrix as few bits and a scale each: 8-bit integers and NormalFloat."""

import math

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8, Real, UInt8

# The 16 levels of NF4: quantiles of a normal distribution, eight of them positive, with
# an exact zero, scaled to [-1, 1] (QLoRA, section 3 and appendix E).
NF4 = np.array(
    [
        -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453,
        -0.28444138169288635, -0.18477343022823334, -0.09105003625154495, 0.0,
        0.07958029955625534, 0.16093020141124725, 0.24611230194568634,
        0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
        0.7229568362236023, 1.0,
    ],
    np.float32,
)  # fmt: skip
COARSE = 256  # scales that share a scale of their own
_FP8 = jnp.float8_e4m3fn
_LARGEST = float(jnp.finfo(_FP8).max)


def blocks_of(rows: int, block: int) -> int:
    """How many blocks of rows there are; the last may be short."""
    return -(-rows // block)


def in_blocks(
    x: Float[Array, "*stack rows cols"], block: int
) -> Float[Array, "*stack blocks block cols"]:
    """Rows in blocks, padded with zeros."""
    *stack, rows, cols = x.shape
    count = blocks_of(rows, block)
    pad = [(0, 0)] * len(stack) + [(0, count * block - rows), (0, 0)]
    return jnp.pad(x, pad).reshape(*stack, count, block, cols)


def largest_of(
    blocks: Float[Array, "*stack blocks block cols"],
) -> Float[Array, "*stack blocks cols"]:
    """The largest magnitude in each block of a column."""
    return jnp.max(jnp.abs(blocks), axis=-2)


def _over(blocks: Array, largest: Array) -> Array:
    """Entries in [-1, 1]; a block of zeros stays zero."""
    safe = jnp.where(largest > 0, largest, jnp.ones_like(largest))
    return blocks / safe[..., None, :]


def to_int8(
    x: Float[Array, "*stack rows cols"], block: int
) -> tuple[Int8[Array, "*stack rows cols"], Float[Array, "*stack blocks cols"]]:
    """`round(127 x / max|x|)` in each block of a column, and `max|x| / 127`."""
    blocks = in_blocks(x.astype(jnp.float32), block)
    largest = largest_of(blocks)
    code = jnp.round(127 * _over(blocks, largest)).astype(jnp.int8)
    flat = code.reshape(*x.shape[:-2], -1, x.shape[-1])
    return flat[..., : x.shape[-2], :], largest / 127


def from_int8(
    code: Int8[Array, "*stack rows cols"],
    scale: Float[Array, "*stack blocks cols"],
    block: int,
) -> Float[Array, "*stack rows cols"]:
    """`scale * code`, float32."""
    blocks = in_blocks(code.astype(jnp.float32), block) * scale[..., None, :]
    return blocks.reshape(*code.shape[:-2], -1, code.shape[-1])[
        ..., : code.shape[-2], :
    ]


def to_nf4(
    x: Float[Array, "*stack rows cols"], block: int
) -> tuple[UInt8[Array, "*stack half cols"], Float[Array, "*stack blocks cols"]]:
    """The nearest level of `x / max|x|` in each block, two rows a byte, and `max|x|`.

    `block` is even, so that the two rows of a byte are of one block.
    """
    blocks = in_blocks(x.astype(jnp.float32), block)
    largest = largest_of(blocks)
    between = jnp.asarray((NF4[1:] + NF4[:-1]) / 2)
    code = jnp.searchsorted(between, _over(blocks, largest)).astype(jnp.uint8)
    flat = code.reshape(*x.shape[:-2], -1, 2, x.shape[-1])
    return flat[..., 0, :] << 4 | flat[..., 1, :], largest


def from_nf4(
    code: UInt8[Array, "*stack half cols"],
    scale: Float[Array, "*stack blocks cols"],
    block: int,
    rows: int,
) -> Float[Array, "*stack rows cols"]:
    """`scale * level`, float32."""
    pairs = jnp.stack([code >> 4, code & 15], axis=-2)
    levels = jnp.asarray(NF4).at[pairs].get(mode="promise_in_bounds")
    *stack, _, _, cols = levels.shape
    blocks = levels.reshape(*stack, -1, block, cols) * scale[..., None, :]
    return blocks.reshape(*stack, -1, cols)[..., :rows, :]


def coarse_count(blocks: int, cols: int) -> int:
    """How many scales of scales a matrix has."""
    return blocks_of(blocks * cols, COARSE)


def to_coarse(
    scale: Float[Array, "*stack blocks cols"],
) -> tuple[
    Real[Array, "*stack blocks cols"],
    Float[Array, "*stack groups"],
    Float[Array, "*stack"],
]:
    """Scales as 8-bit floats, 256 of which share a scale, around their mean."""
    *stack, blocks, cols = scale.shape
    middle = jnp.mean(scale, axis=(-2, -1))
    flat = (scale - middle[..., None, None]).reshape(*stack, 1, blocks * cols)
    # As rows in blocks of 256, with a single column.
    groups = in_blocks(jnp.swapaxes(flat, -2, -1), COARSE)
    largest = largest_of(groups)
    small = (_LARGEST * _over(groups, largest)).astype(_FP8)
    code = small.reshape(*stack, -1)[..., : blocks * cols]
    return code.reshape(scale.shape), largest[..., 0] / _LARGEST, middle


def from_coarse(
    code: Real[Array, "*stack blocks cols"],
    coarse: Float[Array, "*stack groups"],
    middle: Float[Array, "*stack"],
) -> Float[Array, "*stack blocks cols"]:
    """The scales again, float32."""
    *stack, blocks, cols = code.shape
    each = jnp.repeat(coarse, COARSE, axis=-1)[..., : math.prod((blocks, cols))]
    fine = code.astype(jnp.float32) * each.reshape(code.shape)
    return fine + middle[..., None, None]
