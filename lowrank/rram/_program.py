"""Program a weight into a chip, and read it back: arrays in, arrays out."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowrank.linalg import tile_count
from lowrank.linalg._mvm import for_rows
from lowrank.rram._effects import polynomial_std

Matrix = Float[Array, "*stack rows cols"]
Pair = Float[Array, "*stack 2 rows cols"]
Cells = Float[Array, "*cells"]
Chip = Mapping[str, Array]


def check_tile(who: str, tile: int | None, rows: int | None = None) -> None:
    """Refuse what is no number of rows, or more than there are.

    Raises:
        TypeError: If `tile` is neither None nor an int.
        ValueError: If it is below 1, or above `rows`.
    """
    if tile is None:
        return
    if not isinstance(tile, int) or isinstance(tile, bool):
        raise TypeError(f"{who}: tile must be an int or None, got {tile!r}.")
    if tile < 1:
        raise ValueError(f"{who}: tile must be at least 1, got {tile}.")
    if rows is not None and tile > rows:
        raise ValueError(f"{who}: tile must be at most the {rows} rows, got {tile}.")


def check_fit(who: str, matrix: Matrix, chip: Chip, tile: int | None) -> None:
    """Refuse a chip that was sampled for another shape, and tiles that do not fit.

    Raises:
        TypeError: If `tile` is neither None nor an int.
        ValueError: If there is one.
    """
    *stack, rows, cols = matrix.shape
    check_tile(who, tile, rows)
    want, have = (*stack, 2, rows, cols), tuple(chip["gain"].shape)
    if have != want:
        raise ValueError(
            f"{who}: the chip was sampled for another weight: expected cells {want}, "
            f"got {have}. Call it inside jax.vmap for many chips."
        )


def tile_scale(
    matrix: Matrix, tile: int | None, columns: bool
) -> Float[Array, "*stack tiles _"]:
    """The largest magnitude of each column of each tile, or of each tile.

    Args:
        matrix: `[*stack, rows, cols]`.
        tile: Rows of a tile; None: all of them.
        columns: Whether each column has its own.

    Returns:
        `[*stack, tiles, cols]`, or `[*stack, tiles, 1]`; 1 where all weights are 0. A
        constant for differentiation.
    """
    size = lax.stop_gradient(jnp.abs(matrix))
    *stack, rows, cols = matrix.shape
    tiles, tile = tile_count(rows, tile), rows if tile is None else tile
    if tiles * tile != rows:
        pad = [(0, 0)] * len(stack) + [(0, tiles * tile - rows), (0, 0)]
        size = jnp.pad(size, pad)
    size = size.reshape(*stack, tiles, tile, cols).max(-2)
    if not columns:
        size = size.max(-1, keepdims=True)
    return jnp.where(size > 0, size, 1.0)


def program(
    matrix: Matrix,
    chip: Chip,
    scheme: Any,
    tile: int | None = None,
    columns: bool = True,
) -> tuple[Pair, Float[Array, "*stack tiles _"]]:
    """The conductances that a chip ends up with, in uS.

    Args:
        matrix: Weights, `[*stack, rows, cols]`.
        chip: The cells, and the device's numbers `g_min`, `g_max` and, where they are,
            `levels`, `coefficients` and `reference`: one leaf of a chip's state.
        scheme: How a weight is laid on two cells.
        tile: Rows of a tile; None: all of them.
        columns: Whether each column of a tile has its own scale.

    Returns:
        `(conductances, scale)`, `[*stack, 2, rows, cols]` and `[*stack, tiles, cols]`
        (or `1` for `cols`), in float32 or wider. Rounding to levels passes gradients
        straight through; a stuck cell has none.

    Raises:
        TypeError: If `tile` is neither None nor an int.
        ValueError: If the chip was sampled for another shape, or `tile` is not from 1
            to the number of rows.

    Example:
        >>> device = lrk.rram.Device(g_min=10.0, g_max=110.0)
        >>> state = lrk.rram.crossbar(device).init(
        ...     jax.random.key(0), {"w": jnp.ones((2, 1))}
        ... )
        >>> weights = jnp.asarray([[1.0], [-0.5]])
        >>> g, scale = lrk.rram.program(weights, state.fixed["w"], device.scheme)
        >>> g[:, :, 0].tolist(), scale.tolist()
        ([[110.0, 10.0], [10.0, 60.0]], [[1.0]])

    References:
        The pair of ITT-RNA's overview figure (`OneSided`), scales by column as
        aihwkit's `weight_scaling_columnwise`, levels as CrossSim's.
    """
    check_fit("program", matrix, chip, tile)
    matrix = _wide(matrix)
    scale = tile_scale(matrix, tile, columns)
    x = matrix / for_rows(scale, matrix.shape[-2], tile)
    pair = jnp.stack([_levels(t, chip) for t in scheme.targets(x)], axis=-3)
    return _cells(pair, chip), scale


def _wide(matrix: Matrix) -> Matrix:
    """Weights in float32 or wider: `w / s` would be rounded to half precision."""
    return matrix.astype(jnp.promote_types(matrix.dtype, jnp.float32))


def _levels(t: Cells, chip: Chip) -> Cells:
    """The nearest of the device's levels, straight-through."""
    if "levels" not in chip:
        return t
    steps = chip["levels"] - 1.0
    return t + lax.stop_gradient(jnp.round(t * steps) / steps - t)


def _cells(t: Cells, chip: Chip) -> Cells:
    """From targets in [0, 1] to what the cells have, in uS."""
    g_min, g_max = chip["g_min"], chip["g_max"]
    g = g_min + (g_max - g_min) * t
    if "theta" in chip:
        std = polynomial_std(g, chip["coefficients"], chip["reference"])
        g = jnp.maximum(g + std * chip["theta"], 0.0)
    g = chip["gain"] * g
    if "shift" in chip:
        g = jnp.maximum(g + chip["shift"], 0.0)
    return g + chip["offset"]


def deploy(
    matrix: Matrix,
    chip: Chip,
    scheme: Any,
    tile: int | None = None,
    columns: bool = True,
) -> Matrix:
    """The weights that a chip ends up with: what programming them gives, read back.

    Args:
        matrix: Weights, `[*stack, rows, cols]`.
        chip: As for `program`.
        scheme: As for `program`.
        tile: As for `program`.
        columns: As for `program`.

    Returns:
        `scale * scheme.gain * (G+ - G-) / (g_max - g_min)`, of the shape of `matrix`,
        in float32 or wider. Differentiable in it, as `program` is.

    Raises:
        TypeError: As `program`.
        ValueError: As `program`.

    Example:
        >>> state = lrk.rram.crossbar(lrk.rram.Device()).init(
        ...     jax.random.key(0), {"w": jnp.ones((2, 2))}
        ... )
        >>> w = jnp.asarray([[1.0, -2.0], [0.5, 0.0]])
        >>> back = lrk.rram.deploy(w, state.fixed["w"], lrk.rram.OneSided())
        >>> bool(jnp.allclose(back, w, atol=1e-6))
        True

    References:
        As `program`.
    """
    check_fit("deploy", matrix, chip, tile)
    return read_back(matrix, chip, scheme, tile, columns)


def read_back(
    matrix: Matrix, chip: Chip, scheme: Any, tile: int | None, columns: bool
) -> Matrix:
    """As `deploy`, for cells that broadcast against the weights."""
    change, scale = difference(matrix, chip, scheme, tile, columns)
    own = for_rows(scale, matrix.shape[-2], tile)
    return own * (scheme.gain / (chip["g_max"] - chip["g_min"])) * change


def difference(
    matrix: Matrix, chip: Chip, scheme: Any, tile: int | None, columns: bool
) -> tuple[Matrix, Float[Array, "*stack tiles _"]]:
    """`(G+ - G-, scale)` in uS, without an array of both cells: as `program`."""
    matrix = _wide(matrix)
    scale = tile_scale(matrix, tile, columns)
    x = matrix / for_rows(scale, matrix.shape[-2], tile)
    plus, minus = (
        _cells(_levels(t, chip), _side(chip, i))
        for i, t in enumerate(scheme.targets(x))
    )
    return plus - minus, scale


def _side(chip: Chip, i: int) -> dict[str, Any]:
    """The plus or the minus cells alone: sliced before any arithmetic, so it fuses."""
    cells = ("gain", "offset", "shift", "theta")
    return {n: x[..., i, :, :] if n in cells else x for n, x in chip.items()}
