"""Rows of a weight on other rows of a crossbar, and back."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State, Transform, is_operator
from lowrank.operators import Rewired
from lowrank.operators._rows import from_matrix, matrix_shape, to_matrix

Matrix = Float[Array, "*stack _ cols"]
Rows = Int[Array, "*stack rows"]
Spare = int | Mapping[Path, int]


def inverse(rows: Rows, size: int) -> Int[Array, "*stack size"]:
    """Which row sits at each of `size` places; one that does not exist where none."""
    count = rows.shape[-1]
    empty = jnp.full((*rows.shape[:-1], size), count, jnp.int32)
    own = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), rows.shape)
    return jnp.put_along_axis(empty, rows, own, -1, inplace=False, mode="drop")


def take_rows(matrix: Matrix, rows: Rows) -> Matrix:
    """Rows by their number; zeros for a row that does not exist."""
    return jnp.take_along_axis(
        matrix, rows[..., None], axis=-2, mode="fill", fill_value=0
    )


def permute(
    rows: Mapping[Path, Any],
    *,
    spare: Spare = 0,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Put each row of a weight on another row of the crossbar.

    A weight `W: [R, C]` becomes `W': [R + spare, C]` with `W'[rows[r]] = W[r]` and
    zeros on the rows that are left over. Which row of the crossbar an input drives is
    a matter of wiring, so nothing else changes: `unpermute` behind the crossbar wires
    the inputs to where their weights are. A row that is left over is driven by zero
    volts: whatever its cells hold adds no current.

    Args:
        rows: For each path, integers `[*stack, R]`: where each row goes, no two to
            one place, from 0 to `R + spare - 1`. `assign(...).rows`. May be traced.
        spare: Rows that the crossbar has beyond those of the weight, at least 0; or a
            number for each path, and none for the others.
        axes: As for `lora`; inputs are rows, flattened in order.

    Returns:
        A transform with nothing trainable. Fixed, for each path: `rows`, int32. Linear:
        gradients are those of the rows, put back. Arrays stay arrays; an operator of
        two axes becomes a `Rewired` one.

    Raises:
        TypeError: If rows are no integers, or `spare` is no int.
        ValueError: If `spare < 0` or, where they are concrete, rows are out of range or
            two are the same; in `init` and `apply`, if a path is missing, the rows do
            not fit the leaf, a weight with several input axes has spare rows, or an
            operator has not two axes.

    Example:
        >>> tx = lrk.rram.permute({"w": [2, 0]}, spare=1)
        >>> params = {"w": jnp.asarray([[1.0, 2.0], [3.0, 4.0]])}
        >>> tx.apply(params, tx.init(jax.random.key(0), params))["w"].tolist()
        [[3.0, 4.0], [0.0, 0.0], [1.0, 2.0]]

    Notes:
        The flattened inputs of a convolution's kernel are rows as any others, but have
        no axis that spare rows could lengthen: they are permuted among themselves.

    References:
        Chen et al., DATE 2017 (as cited by later work): rows of weights matched to
        rows of the crossbar, with redundant rows.
    """

    def act(matrix: Matrix, rows: Rows, more: int) -> Matrix:
        return take_rows(matrix, inverse(rows, rows.shape[-1] + more))

    def index(rows: Rows, more: int) -> Array:
        return inverse(rows, rows.shape[-1] + more)

    return _moved("permute", rows, spare, axes, act, index)


def unpermute(
    rows: Mapping[Path, Any],
    *,
    spare: Spare = 0,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Wire the inputs to the rows that `permute` put their weights on.

    The inverse of `permute` with the same arguments: `W[r] = W'[rows[r]]`. Behind a
    crossbar with converters or read noise it gives a `Rewired` operator, which places
    the inputs in front of the product.

    Args:
        rows: As for `permute`.
        spare: As for `permute`.
        axes: As for `permute`.

    Returns:
        As `permute`.

    Raises:
        TypeError: As `permute`.
        ValueError: As `permute`.

    Example:
        >>> place = {"w": [2, 0]}
        >>> device = lrk.rram.Device(p_hrs=0.2)
        >>> tx = lrk.chain(
        ...     lrk.rram.permute(place, spare=1),
        ...     lrk.rram.crossbar(device),
        ...     lrk.rram.unpermute(place, spare=1),
        ... )
        >>> params = {"w": jnp.ones((2, 4))}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.fixed[1]["w"]["code"].shape, tx.apply(params, state)["w"].shape
        ((2, 3, 4), (2, 4))

    References:
        As `permute`.
    """

    def act(matrix: Matrix, rows: Rows, more: int) -> Matrix:
        del more
        return take_rows(matrix, rows)

    return _moved("unpermute", rows, spare, axes, act, lambda rows, _: rows)


def _moved(
    who: str,
    rows: Mapping[Path, Any],
    spare: Spare,
    axes: Mapping[Path, Axes] | None,
    act: Callable[[Matrix, Array, int], Matrix],
    index: Callable[[Array, int], Array],
) -> Transform:
    """A transform that moves rows, by arrays that its state holds."""
    forward = who == "permute"
    own = {path: jnp.asarray(x) for path, x in rows.items()}
    more = spare_rows(who, own, spare)
    check_rows(who, own, more)

    def found(params: PyTree, state: State) -> tuple[dict[Path, Any], dict[Path, Axes]]:
        leaves = _tree.leaves(who, params)
        _check.check_state(who, leaves, state, fixed=("rows",))
        chosen = {path: leaves[path] for path in state.fixed}
        dims = resolve(who, chosen, axes)
        fixed = {path: leaf["rows"] for path, leaf in state.fixed.items()}
        _check_leaves(who, chosen, dims, fixed, more, forward)
        return chosen, dims

    def init(key: Array, params: PyTree) -> State:
        del key
        fixed = {path: {"rows": x.astype(jnp.int32)} for path, x in own.items()}
        state = State({}, fixed)
        found(params, state)
        return state

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        chosen, dims = found(params, state)
        new: dict[Path, Any] = {}
        for path, w in chosen.items():
            places, extra = state.fixed[path]["rows"], more.get(path, 0)
            if is_operator(w):
                own_index, axis = index(places, extra), dims[path].inputs[0]
                new[path] = Rewired(w, own_index, axis=axis)
                continue
            matrix = act(to_matrix(w, dims[path]), places, extra)
            shape = _shape(w, dims[path], extra if forward else -extra)
            new[path] = from_matrix(matrix, shape, dims[path])
        return _tree.replace(who, params, new)

    return Transform(init, apply)


def _shape(w: Any, axes: Axes, more: int) -> tuple[int, ...]:
    """The shape of a weight with some rows more or fewer."""
    shape = list(w.shape)
    shape[axes.inputs[0]] += more
    return tuple(shape)


# --- what is refused -----------------------------------------------------------------


def spare_rows(who: str, rows: Mapping[Path, Any], spare: Spare) -> dict[Path, int]:
    """Spare rows for each path.

    Raises:
        TypeError: If a number is no int.
        ValueError: If one is negative, or stands at a path without rows.
    """
    given = dict(spare) if isinstance(spare, Mapping) else dict.fromkeys(rows, spare)
    wrong = [n for n in given.values() if not isinstance(n, int) or isinstance(n, bool)]
    if wrong:
        raise TypeError(f"{who}: spare must be an int, got {wrong[0]!r}.")
    negative = [n for n in given.values() if n < 0]
    if negative:
        raise ValueError(f"{who}: spare must be at least 0, got {negative[0]}.")
    unknown = [path for path in given if path not in rows]
    if unknown:
        raise ValueError(
            f"{who}: spare rows for {_tree.quoted(unknown)}, which no rows are given "
            f"for. Pass paths among {_tree.quoted(rows)}."
        )
    return given


def check_rows(who: str, rows: Mapping[Path, Array], more: Mapping[Path, int]) -> None:
    """Refuse what is no placement of rows, where it can be seen.

    Raises:
        TypeError: If rows are no integers.
        ValueError: If there are none, they are out of range, or two share a place.
    """
    if not rows:
        raise ValueError(f"{who}: expected rows for at least one path, got none.")
    wrong = [p for p, x in rows.items() if not jnp.issubdtype(x.dtype, jnp.integer)]
    if wrong:
        raise TypeError(
            f"{who}: rows must be integers, unlike those at {_tree.quoted(wrong)}. "
            "Pass lrk.rram.assign(...).rows."
        )
    bad = [f"'{path}' is a scalar" for path, x in rows.items() if x.ndim == 0]
    for path, x in rows.items():
        if x.ndim == 0 or not _compat.is_concrete(x):
            continue
        last = x.shape[-1] + more.get(path, 0) - 1
        known = np.sort(np.asarray(x), axis=-1)
        if known.size and (known.min() < 0 or known.max() > last):
            span = f"{known.min()} to {known.max()}"
            bad.append(f"'{path}': expected 0 to {last}, got {span}")
        elif (np.diff(known, axis=-1) == 0).any():
            bad.append(f"'{path}' has two rows at one place")
    if bad:
        raise ValueError(
            f"{who}: no placement of rows: {'; '.join(bad)}. Pass a permutation, or "
            "distinct places among R + spare."
        )


def _check_leaves(
    who: str,
    chosen: Mapping[Path, Any],
    dims: Mapping[Path, Axes],
    rows: Mapping[Path, Any],
    more: Mapping[Path, int],
    forward: bool,
) -> None:
    """Refuse rows that do not fit their leaves.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        *stack, count, _ = matrix_shape(leaf, dims[path])
        extra = more.get(path, 0)
        wanted, have = (*stack, count - (0 if forward else extra)), rows[path].shape
        what = _tree.describe(path, leaf)
        if tuple(have) != wanted:
            bad.append(f"{what}: expected rows of shape {wanted}, got {tuple(have)}")
        elif extra and len(dims[path].inputs) > 1:
            bad.append(f"{what} has several input axes, and none for spare rows")
        elif is_operator(leaf) and len(leaf.shape) != 2:
            bad.append(f"{what} is an operator, and only those of 2 axes are rewired")
    if bad:
        raise ValueError(
            f"{who}: {'; '.join(bad)}. Pass rows for the tree that this transform "
            "meets, and call apply inside jax.vmap or lrk.map_tasks for many chips."
        )
