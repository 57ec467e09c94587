"""Programming by the map: what to write so that what comes out is what was wanted."""

from collections.abc import Callable, Mapping

import jax.numpy as jnp

from lowrank import _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree
from lowrank._select import Select, is_matrix, selected
from lowrank.operators._rows import from_matrix, to_matrix
from lowrank.rram._freeze import column_scale, weights
from lowrank.rram._numbers import check, check_whole

_PASSES = 3


def compensated(
    params: PyTree,
    deploy: Callable[[PyTree], PyTree],
    *,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    passes: int = _PASSES,
) -> PyTree:
    """The weights to program so that each comes out as near as its cells allow.

    On either side of zero what comes out is linear in what is programmed, `y(x) = y(0)
    + (y(+-s) - y(0)) |x| / s` with `s` the largest magnitude of the column. Three
    programmings, of `0`, `s` and `-s`, tell both lines; the value of each weight is
    read off the nearer one. So a cell that gives half of what it is asked for is asked
    for twice as much, and one stuck at low resistance is balanced by its partner. No
    data, and no training.

    Args:
        params: The weights that are wanted.
        deploy: What a chip makes of a tree of weights: `lambda p: tx.apply(p, state)`.
        select: Which leaves, as for `crossbar`.
        axes: As for `crossbar`.
        passes: How often the lines are read, at least 1: where no weight of a column
            is asked for `s` any more, its scale, and with it what stuck cells add, has
            become smaller.

    Returns:
        The same tree with the selected leaves replaced by what to program. No entry is
        larger than the largest of its column in `params`.

    Raises:
        ValueError: If `passes < 1` or is not whole, nothing is selected, a leaf needs
            `axes`, or `deploy` gives another tree.

    Example:
        >>> half = lambda p: {"w": p["w"] * jnp.asarray([[0.5], [1.0]])}
        >>> params = {"w": jnp.asarray([[0.4], [1.0]])}
        >>> lrk.rram.compensated(params, half)["w"].round(3).tolist()
        [[0.800000011920929], [1.0]]

    Notes:
        Exact for cells whose deviation is linear, to half a level where there are
        levels; nearly so where additive noise clips a conductance at zero. With tiles,
        a tile whose weights are all smaller than `s` has a smaller scale than the
        lines were read at.
        A cell's deviation is one fixed draw here: writing again draws no new noise. In
        real cells part of the variation comes anew with each write (cycle to cycle)
        and cannot be known beforehand, so what this mends is flattered.

    References:
        None of the papers on ITT-RNA that could be read says how its weights are
        mapped to known variation; this is the plainest way that uses the map.
    """
    check("compensated", passes=(passes, 1, None))
    check_whole("compensated", passes=passes)
    chosen = selected("compensated", params, select)
    found = resolve("compensated", chosen, axes)
    own = dict(chosen)
    for _ in range(passes):
        scales = {path: column_scale(w, found[path]) for path, w in own.items()}
        lines = _lines("compensated", params, deploy, scales, found)
        own = {
            path: _nearest(w, scales[path], *lines[path]) for path, w in chosen.items()
        }
    return _tree.replace("compensated", params, own)


def reduced(
    params: PyTree,
    deploy: Callable[[PyTree], PyTree],
    *,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """The values to program so that each weight comes out as near zero as it can.

    A weight of zero does not come out as zero where a cell is stuck: one stuck at low
    resistance is balanced by its partner. As `compensated`, with zero in the place of
    every weight and the scales of the weights. It is a `target` for `retrain`.

    Args:
        params: The weights.
        deploy: What a chip makes of a tree of weights: `lambda p: tx.apply(p, state)`.
        select: As for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        By path, an array of the leaf's shape, not larger than the largest magnitude of
        the column.

    Raises:
        ValueError: If nothing is selected, a leaf needs `axes`, or `deploy` gives
            another tree.

    Example:
        >>> stuck = lambda p: {"w": p["w"] - jnp.asarray([[2.0], [0.0]])}
        >>> params = {"w": jnp.asarray([[0.5], [2.0]])}
        >>> lrk.rram.reduced(params, stuck)["w"].tolist()
        [[2.0], [0.0]]

    References:
        As `compensated`.
    """
    chosen = selected("reduced", params, select)
    found = resolve("reduced", chosen, axes)
    scales = {path: column_scale(w, found[path]) for path, w in chosen.items()}
    lines = _lines("reduced", params, deploy, scales, found)
    return {
        path: _nearest(jnp.zeros_like(w), scales[path], *lines[path])
        for path, w in chosen.items()
    }


def _lines(
    who: str,
    params: PyTree,
    deploy: Callable[[PyTree], PyTree],
    scales: Mapping[Path, Array],
    axes: Mapping[Path, Axes],
) -> dict[Path, tuple[Array, Array, Array]]:
    """What comes out for 0, for a column's scale and for its negative, by path.

    A column of nothing but zeros would have no scale: zeros are programmed on every
    second row, and then on the others.
    """
    even = {path: _every_second(scale, axes[path]) for path, scale in scales.items()}

    def out(values: dict[Path, Array]) -> dict[Path, Array]:
        return weights(who, deploy(_tree.replace(who, params, values)), scales)

    first = out(
        {p: jnp.where(even[p], 0.0, s).astype(s.dtype) for p, s in scales.items()}
    )
    other = out(
        {p: jnp.where(even[p], s, 0.0).astype(s.dtype) for p, s in scales.items()}
    )
    down = out({path: -scale for path, scale in scales.items()})
    return {
        path: (
            jnp.where(even[path], first[path], other[path]),
            jnp.where(even[path], other[path], first[path]),
            down[path],
        )
        for path in scales
    }


def _every_second(w: Array, axes: Axes) -> Array:
    """True on every second row of a weight, seen as a matrix."""
    matrix = to_matrix(w, axes)
    number = jnp.arange(matrix.shape[-2], dtype=jnp.float32)[:, None] % 2
    number = jnp.broadcast_to(number, matrix.shape[-2:])
    whole = jnp.broadcast_to(number, matrix.shape)
    return from_matrix(whole, w.shape, axes) == 0


def _nearest(w: Array, scale: Array, zero: Array, up: Array, down: Array) -> Array:
    """What to program for `w`, from the ends of the two lines."""

    def side(end: Array) -> tuple[Array, Array]:
        slope = end - zero
        flat = jnp.abs(slope) <= 1e-6 * scale
        share = jnp.where(flat, 0.0, (w - zero) / jnp.where(flat, 1.0, slope))
        share = jnp.clip(share, 0.0, 1.0)
        return share, jnp.abs(zero + share * slope - w)

    (more, far), (less, farther) = side(up), side(down)
    # Where both come equally near, the side that the weight itself lies on.
    near = jnp.abs(far - farther) <= 1e-6 * scale
    plus = jnp.where(near, w >= 0, far < farther)
    return (jnp.where(plus, more, -less) * scale).astype(w.dtype)
