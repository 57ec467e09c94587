"""Fault-aware pruning: weights that touch a faulty cell are bypassed."""

from collections.abc import Mapping

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State
from lowrank.operators._rows import from_matrix, matrix_shape
from lowrank.rram._chip import OK


def fault_free(
    params: PyTree,
    state: State,
    *,
    axes: Mapping[Path, Axes] | None = None,
    rows: Mapping[Path, Array] | None = None,
) -> dict[Path, Array]:
    """Which weights have no faulty cell: neither stuck nor on an open line.

    Args:
        params: The tree of weights.
        state: The chip: the state of `crossbar`, not of a chain around it.
        axes: As for `crossbar`.
        rows: By path `[*stack, R]`, the crossbar row of each row of the weight, if rows
            are permuted: `Assignment.rows`. None: in their order.

    Returns:
        By path, booleans of the leaf's shape, True where both cells are healthy: a
        `mask` for `retrain`.

    Raises:
        ValueError: If the state is not that of a crossbar for this tree.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = lrk.rram.crossbar(lrk.rram.Device(p_lrs=1.0))
        >>> chip = tx.init(jax.random.key(0), params)
        >>> bool(lrk.rram.fault_free(params, chip)["w"].any())
        False

    References:
        As `fault_pruned`.
    """
    leaves = _tree.leaves("fault_free", params)
    _check.check_state("fault_free", leaves, state, fixed=("code",))
    chosen = {path: leaves[path] for path in state.fixed}
    found = resolve("fault_free", chosen, axes)
    keep, bad = {}, []
    for path, w in chosen.items():
        healthy = (state.fixed[path]["code"] == OK).all(-3)
        if rows is not None and path in rows:
            places = jnp.asarray(rows[path])[..., None]
            healthy = jnp.take_along_axis(
                healthy, places, axis=-2, mode="fill", fill_value=False
            )
        if healthy.shape != matrix_shape(w, found[path]):
            want = matrix_shape(w, found[path])
            bad.append(f"'{path}': expected {want}, got {healthy.shape}")
        else:
            own = from_matrix(healthy.astype(jnp.float32), tuple(w.shape), found[path])
            keep[path] = own > 0
    if bad:
        raise ValueError(
            f"fault_free: the chip was sampled for another tree: {'; '.join(bad)}. "
            "Pass the tree that init saw, and rows= if its rows are permuted."
        )
    return keep


def fault_pruned(
    params: PyTree,
    state: State,
    *,
    axes: Mapping[Path, Axes] | None = None,
    rows: Mapping[Path, Array] | None = None,
) -> PyTree:
    """Fault-aware pruning (FAP): every weight that touches a faulty cell is zero.

    Both cells of such a weight are disconnected, so that its deployed value is exactly
    zero, whatever they are stuck at; the other weights are as they were.

    Args:
        params: The weights; or, to keep what noise and levels do to the others, the
            deployed weights.
        state: As for `fault_free`.
        axes: As for `fault_free`.
        rows: As for `fault_free`.

    Returns:
        A tree of the same structure, to be evaluated as it is: `crossbar` would
        program the disconnected cells.

    Raises:
        ValueError: As `fault_free`.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = lrk.rram.crossbar(lrk.rram.Device(p_lrs=1.0))
        >>> chip = tx.init(jax.random.key(0), params)
        >>> float(lrk.rram.fault_pruned(params, chip)["w"].sum())
        0.0

    Notes:
        FAP+T trains on: `retrain(loss, params, lambda p: fault_pruned(p, chip),
        batches, optimizer, mask=fault_free(params, chip))`.
        The bypass is that of the authors' multipliers; on a crossbar it needs a switch
        at each cell (one transistor, one resistor).

    References:
        Zhang et al., Analyzing and Mitigating the Impact of Permanent Faults on a
        Systolic Array Based Neural Network Accelerator, VTS 2018, arXiv:1802.04657:
        FAP and FAP+T.
    """
    keep = fault_free(params, state, axes=axes, rows=rows)
    leaves = _tree.leaves("fault_pruned", params)
    new = {path: jnp.where(own, leaves[path], 0) for path, own in keep.items()}
    return _tree.replace("fault_pruned", params, new)
