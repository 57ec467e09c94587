"""8-bit integers with a scale for each column, or each block of one."""

from collections.abc import Mapping

from jaxtyping import Array

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.linalg import to_int8
from lowrank.quantization._codes import check_block, quantiser


def int8(
    *,
    block: int | None = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Keep weights as 8-bit integers: `w = s * code`, `s = max|w| / 127`.

    The scale `s` belongs to a column (one output) of the weight, or to each block of
    its rows. What it meets, an array or an operator with a dense form, is rounded once,
    in `init`; `apply` puts the `Quantized` operator where the weight stood and does not
    look at the weight again.

    Args:
        block: Rows that share a scale; None: all of a column.
        select: Which leaves to quantise; called once, in `init`, as
            `select(path, leaf)`. Leave out embedding tables, which are looked up.
        axes: As for `lora`; inputs are the rows, outputs the columns.

    Returns:
        A transform with nothing trainable. Fixed, for each path: `code`, int8
        `[*stack, rows, cols]`, and `scale`, float32 `[*stack, blocks, cols]`: a
        quarter of the bytes of float32. Entries are off by at most half of `s`. With
        nothing to draw, the key decides nothing.

    Raises:
        TypeError: If `block` is no int.
        ValueError: If `block < 1`; in `init`, if a selected leaf is not floating, has
            no two axes that `axes` knows, or acts inside the product; in `apply`, if
            the state is of another tree.

    Example:
        >>> tx = lrk.chain(lrk.quantization.int8(), lrk.lora(2))
        >>> params = {"w": jnp.array([[1.0, -3.0], [0.5, 3.0]])}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.fixed[0]["w"]["code"].tolist()
        [[127, -127], [64, 127]]

    Notes:
        To be rid of the float weights, apply this transform on its own once and keep
        the tree that it gives as the base: `base = tx.apply(params, state)`, then
        `lora(...).init(key, base)`; operators count as leaves.

    References:
        Dettmers et al., LLM.int8(), 2022, arXiv:2208.07339: absmax quantisation, here
        of the weights alone, without the outlier columns.
    """
    if block is not None:
        check_block("int8", block, 1)

    def encode(matrix: Array, block: int) -> dict[str, Array]:
        code, scale = to_int8(matrix, block)
        return {"code": code, "scale": scale}

    return quantiser("int8", encode, block, select, axes)
