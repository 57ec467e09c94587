"""NF4: four bits for each weight, at the quantiles of a normal distribution."""

from collections.abc import Mapping

from jaxtyping import Array

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.linalg import to_coarse, to_nf4
from lowrank.quantization._codes import check_block, quantiser


def nf4(
    *,
    block: int = 64,
    double: bool = True,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Keep weights as 4-bit NormalFloat, QLoRA's frozen base.

    Each block of `block` rows of a column becomes `s * level(code)` with `s` its
    largest magnitude and the nearest of 16 levels in [-1, 1], which are quantiles of a
    normal distribution with an exact zero. With `double`, the scales themselves are
    8-bit floats around their mean, 256 of which share a scale.

    Args:
        block: Rows that share a scale, a positive multiple of 2.
        double: Whether scales are quantised too.
        select: Which leaves to quantise; called once, in `init`, as
            `select(path, leaf)`. Leave out embedding tables, which are looked up.
        axes: As for `lora`; inputs are the rows, outputs the columns.

    Returns:
        A transform with nothing trainable. Fixed, for each path: `code`, uint8
        `[*stack, rows / 2, cols]`, `scale` `[*stack, blocks, cols]`, float32 or, with
        `double`, float8_e4m3fn beside float32 `coarse` and `middle`: at blocks of 64
        some 4.13 bits for each weight, 4.5 without `double`.

    Raises:
        TypeError: If `block` is no int.
        ValueError: If `block` is no positive multiple of 2; in `init` and `apply` as
            for `int8`.

    Example:
        >>> qlora = lrk.chain(lrk.quantization.nf4(), lrk.lora(2))
        >>> params = {"w": jnp.ones((64, 8), jnp.bfloat16)}
        >>> state = qlora.init(jax.random.key(0), params)
        >>> state.fixed[0]["w"]["code"].shape
        (32, 8)
        >>> qlora.apply(params, state)["w"].w
        Quantized(code=uint8[32,8], scale=float8_e4m3fn[1,8], ...)

    Notes:
        A block runs along the inputs of one output, as bitsandbytes' does for a torch
        weight whose inputs are a multiple of the block; it flattens others across
        outputs. The second quantisation is to 8-bit floats of 4 exponent bits; theirs
        has an 8-bit table.

    References:
        Dettmers et al., QLoRA, 2023, arXiv:2305.14314: section 3 (4-bit NormalFloat,
        double quantisation with blocks of 64 and 256), appendix E (the levels).
    """
    check_block("nf4", block, 2)

    def encode(matrix: Array, block: int) -> dict[str, Array]:
        code, scale = to_nf4(matrix, block)
        if not double:
            return {"code": code, "scale": scale}
        small, coarse, middle = to_coarse(scale)
        return {"code": code, "scale": small, "coarse": coarse, "middle": middle}

    return quantiser("nf4", encode, block, select, axes)
