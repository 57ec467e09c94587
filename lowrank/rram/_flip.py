"""Columns or rows of a weight with their signs turned, and back."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State, Transform, is_operator
from lowrank.operators import Rewired
from lowrank.operators._rows import from_matrix, matrix_shape, to_matrix
from lowrank.rram._assign import chip_inputs
from lowrank.rram._program import Chip, check_tile, deploy

Matrix = Float[Array, "*stack rows cols"]
_KINDS = ("columns", "rows")


def better_signs(
    matrix: Matrix,
    omega: Matrix,
    chip: Chip,
    scheme: Any,
    tile: int | None = None,
    columns: bool = True,
    axis: int = -2,
) -> Int8[Array, "*stack lines"]:
    """For each column the sign with which its weighted squared error is smaller.

    Of each row, with `axis=-1`: neither moves the scales, so lines are independent.
    """
    plus = deploy(matrix, chip, scheme, tile, columns) - matrix
    minus = deploy(-matrix, chip, scheme, tile, columns) + matrix
    gain = jnp.sum(omega * (plus * plus - minus * minus), axis=axis)
    return jnp.where(gain > 0, -1, 1).astype(jnp.int8)


def choose_flips(
    params: PyTree,
    state: State,
    scheme: Any,
    importance: PyTree,
    *,
    tile: int | None = None,
    columns: bool = True,
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """Choose the sign with which each column is put on a chip.

    A column programmed as `-w` and read back as its negative uses the other cell of
    each pair. For each column the sign is chosen whose error `sum_r omega[r] (w_hat[r]
    - w[r])^2` is smaller: columns do not depend on each other, so that is the best of
    all choices. Runs under `jit`, and `vmap` over chips.

    Args:
        params: The weights as the crossbar meets them: behind `permute`, if there is
            one (`importance` too, which `permute` takes as a tree).
        state: The state of `crossbar`, or of a chain that holds one: the chip.
        scheme: The device's scheme.
        importance: `omega`, an array by path for each leaf on the chip.
        tile: As for `crossbar`.
        columns: As for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        Signs by path, int8 `[*stack, C]`, 1 where both signs are as good: what `flip`
        takes for its columns.

    Raises:
        TypeError: If `tile` is no int.
        ValueError: If the state holds no chip or that of another tree, the importance
            does not fit, or a weight has fewer rows than a tile.

    Example:
        >>> params = {"w": jnp.asarray([[1.0, -1.0]])}
        >>> device = lrk.rram.Device()
        >>> state = lrk.rram.crossbar(device).init(jax.random.key(0), params)
        >>> codes = jnp.zeros((2, 1, 2), int).at[1].set(lrk.rram.LRS)  # minus cells
        >>> state = lrk.rram.with_faults(state, {"w": codes})
        >>> omega = {"w": jnp.ones((1, 2))}
        >>> lrk.rram.choose_flips(params, state, device.scheme, omega)["w"].tolist()
        [-1, 1]

    References:
        ReTern, IEEE TVLSI 2025 (as cited by later work): sign flips of columns.
    """
    check_tile("choose_flips", tile)
    inputs = chip_inputs("choose_flips", params, state, importance, axes)
    return _chosen(inputs, scheme, tile, columns, -2)


def choose_row_flips(
    params: PyTree,
    state: State,
    scheme: Any,
    importance: PyTree,
    *,
    tile: int | None = None,
    columns: bool = True,
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """Choose the sign with which each row is put on a chip.

    As `choose_flips`, for rows: a row programmed as `-w` is driven by the negative
    voltage. The sign is chosen whose error over the row, `sum_j omega[j] (w_hat[j] -
    w[j])^2`, is smaller. Where columns are turned too, pass the weights behind their
    `flip`: each choice is then the best that the other leaves.

    Args:
        params: As for `choose_flips`.
        state: As for `choose_flips`.
        scheme: As for `choose_flips`.
        importance: As for `choose_flips`.
        tile: As for `choose_flips`.
        columns: As for `choose_flips`.
        axes: As for `choose_flips`.

    Returns:
        Signs by path, int8 `[*stack, R]`, 1 where both signs are as good: what `flip`
        takes for its rows.

    Raises:
        TypeError: As `choose_flips`.
        ValueError: As `choose_flips`.

    Example:
        >>> params = {"w": jnp.asarray([[1.0], [-1.0]])}
        >>> device = lrk.rram.Device()
        >>> state = lrk.rram.crossbar(device).init(jax.random.key(0), params)
        >>> codes = jnp.zeros((2, 2, 1), int).at[1].set(lrk.rram.LRS)  # minus cells
        >>> state = lrk.rram.with_faults(state, {"w": codes})
        >>> omega = {"w": jnp.ones((2, 1))}
        >>> choose = lrk.rram.choose_row_flips
        >>> choose(params, state, device.scheme, omega)["w"].tolist()
        [-1, 1]

    References:
        Zhang et al., TCAD 2020 (as cited by later work): flips of rows.
    """
    check_tile("choose_row_flips", tile)
    inputs = chip_inputs("choose_row_flips", params, state, importance, axes)
    return _chosen(inputs, scheme, tile, columns, -1)


def _chosen(
    inputs: Mapping[Path, Any], scheme: Any, tile: int | None, columns: bool, axis: int
) -> dict[Path, Array]:
    """The better signs of each leaf on the chip."""
    return {
        path: better_signs(w, omega, chip, scheme, tile, columns, axis)
        for path, (w, omega, chip) in inputs.items()
    }


def flip(
    columns: Mapping[Path, Any] | None = None,
    rows: Mapping[Path, Any] | None = None,
    *,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Turn the signs of columns, of rows, or both: `W[r, c] -> row[r] col[c] W[r, c]`.

    It is its own inverse: put one in front of a crossbar and the same behind it. In
    hardware a turned column is subtracted where it was added, a turned row driven by
    the negative voltage.

    Args:
        columns: For each path, signs `[*stack, C]`, each 1 or -1: what `choose_flips`
            gives. May be traced.
        rows: For each path, signs `[*stack, R]`: what `choose_row_flips` gives. May be
            traced.
        axes: As for `lora`; inputs are rows and outputs columns, flattened in order.

    Returns:
        A transform with nothing trainable. Fixed, for each path: `columns` and `rows`,
        those that are given, int8. Linear. Arrays stay arrays; an operator of two axes
        becomes a `Rewired` one.

    Raises:
        ValueError: If neither is given or, where they are concrete, a sign is neither 1
            nor -1; in `init` and `apply`, if a path is missing, signs do not fit their
            leaf, or an operator has not two axes.

    Example:
        >>> tx = lrk.rram.flip({"w": [1, -1]})
        >>> params = {"w": jnp.asarray([[1.0, 2.0]])}
        >>> tx.apply(params, tx.init(jax.random.key(0), params))["w"].tolist()
        [[1.0, -2.0]]

    References:
        Zhang et al., TCAD 2020 (as cited by later work): flips of rows. ReTern, IEEE
        TVLSI 2025 (as cited by later work): flips of columns.
    """
    own = _signs(columns, rows)

    def found(params: PyTree, state: State) -> tuple[dict[Path, Any], dict[Path, Axes]]:
        leaves = _tree.leaves("flip", params)
        _check.check_state("flip", leaves, state)
        chosen = {path: leaves[path] for path in state.fixed}
        dims = resolve("flip", chosen, axes)
        _check_leaves(chosen, dims, state)
        return chosen, dims

    def init(key: Array, params: PyTree) -> State:
        del key
        state = State({}, own)
        found(params, state)
        return state

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        chosen, dims = found(params, state)
        new: dict[Path, Any] = {}
        for path, w in chosen.items():
            signs = state.fixed[path]
            if is_operator(w):
                named = {f"{kind[:-1]}_signs": signs.get(kind) for kind in _KINDS}
                new[path] = Rewired(w, **named, axis=dims[path].inputs[0])
                continue
            matrix = to_matrix(w, dims[path])
            if "columns" in signs:
                matrix = matrix * signs["columns"][..., None, :].astype(w.dtype)
            if "rows" in signs:
                matrix = matrix * signs["rows"][..., :, None].astype(w.dtype)
            new[path] = from_matrix(matrix, w.shape, dims[path])
        return _tree.replace("flip", params, new)

    return Transform(init, apply)


def _signs(
    columns: Mapping[Path, Any] | None, rows: Mapping[Path, Any] | None
) -> dict[Path, dict[str, Array]]:
    """All signs by path and kind.

    Raises:
        ValueError: If there are none, or one that is seen is neither 1 nor -1.
    """
    own: dict[Path, dict[str, Array]] = {}
    wrong = []
    for kind, given in zip(_KINDS, (columns, rows), strict=True):
        for path, values in (given or {}).items():
            x = jnp.asarray(values)
            if _compat.is_concrete(x) and not np.isin(np.asarray(x), (-1, 1)).all():
                wrong.append(f"{kind} of '{path}'")
            own.setdefault(path, {})[kind] = x.astype(jnp.int8)
    if not own:
        raise ValueError("flip: expected signs of columns or of rows, got neither.")
    if wrong:
        raise ValueError(
            f"flip: signs must be 1 or -1, unlike those of {', '.join(wrong)}. Pass "
            "what lrk.rram.choose_flips or choose_row_flips gives."
        )
    return own


def _check_leaves(
    chosen: Mapping[Path, Any], dims: Mapping[Path, Axes], state: State
) -> None:
    """Refuse signs that do not fit their leaves.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        *stack, rows, cols = matrix_shape(leaf, dims[path])
        what = _tree.describe(path, leaf)
        wanted = {"columns": (*stack, cols), "rows": (*stack, rows)}
        have = state.fixed[path]
        bad += [
            f"{what}: expected {kind} of shape {shape}, got {tuple(have[kind].shape)}"
            for kind, shape in wanted.items()
            if kind in have and tuple(have[kind].shape) != shape
        ]
        if not set(have) & set(_KINDS):
            bad.append(f"{what} has no signs")
        if is_operator(leaf) and len(leaf.shape) != 2:
            bad.append(f"{what} is an operator, and only those of 2 axes are rewired")
    if bad:
        raise ValueError(
            f"flip: {'; '.join(bad)}. Pass signs for the tree that this transform "
            "meets, and call apply inside jax.vmap or lrk.map_tasks for many chips."
        )
