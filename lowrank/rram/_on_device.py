"""A few steps of training on the chip itself, with its writes counted."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank.operators._rows import from_matrix, to_matrix
from lowrank.rram._device import Device, check_parts
from lowrank.rram._numbers import check
from lowrank.rram._program import check_tile, program
from lowrank.rram._retrain import (
    Leaves,
    Loss,
    Optimizer,
    added,
    check_mapping,
    masked,
    steps,
)

Cells = Callable[[PyTree, State], dict[Path, Array]]


class OnDevice(NamedTuple):
    """What `on_device` leaves behind.

    Attributes:
        params: The weights that the chip was last programmed with.
        losses: `[steps]`, the loss of each batch before its step.
        writes: `[steps]`, int32: cells that were written in each step.
    """

    params: PyTree
    losses: Array
    writes: Array


def programmed(
    device: Device,
    *,
    tile: int | None = None,
    columns: bool = True,
    axes: Mapping[Path, Axes] | None = None,
) -> Cells:
    """A function that tells the conductances of every cell.

    Args:
        device: As for `crossbar`, as all other arguments.
        tile: Rows of one tile.
        columns: Whether each column of a tile has its own scale.
        axes: Which axes of a leaf are rows and columns.

    Returns:
        `cells(params, state)`, by path `[2, *shape]` in uS: the plus and the minus cell
        of each weight, in the layout of the leaf, for a state of `crossbar`.

    Raises:
        TypeError: If `device` is no `Device` or `tile` no int.
        ValueError: If `tile < 1`; when it is called, if the state is not that of a
            crossbar for this tree, or weights have fewer rows than a tile.

    Example:
        >>> device = lrk.rram.Device(g_min=10.0, g_max=110.0)
        >>> params = {"w": jnp.asarray([[1.0], [-0.5]])}
        >>> state = lrk.rram.crossbar(device).init(jax.random.key(0), params)
        >>> lrk.rram.programmed(device)(params, state)["w"][1].tolist()
        [[10.0], [60.0]]

    References:
        As `crossbar`.
    """
    check_parts("programmed", device)
    check_tile("programmed", tile)

    def cells(params: PyTree, state: State) -> dict[Path, Array]:
        leaves = _tree.leaves("programmed", params)
        _check.check_state("programmed", leaves, state, fixed=("gain", "offset"))
        chosen = {path: leaves[path] for path in state.fixed}
        found = resolve("programmed", chosen, axes)
        new = {}
        for path, w in chosen.items():
            matrix = to_matrix(jnp.asarray(w, jnp.float32), found[path])
            pair, _ = program(matrix, state.fixed[path], device.scheme, tile, columns)
            sides = [pair[..., i, :, :] for i in (0, 1)]
            shape = tuple(w.shape)
            new[path] = jnp.stack([from_matrix(g, shape, found[path]) for g in sides])
        return new

    return cells


def on_device(
    loss: Loss,
    params: PyTree,
    tx: Transform,
    state: State,
    batches: PyTree,
    optimizer: Optimizer,
    key: Array | None = None,
    *,
    cells: Cells,
    threshold: Any = 0.0,
    mask: Mapping[Path, Any] | None = None,
) -> OnDevice:
    """Train on the chip: forward and backward through all of it, and write the cells.

    Each step takes the gradient through the full chip: converters, and read noise that
    is drawn anew. Updates add up in a digital memory. A weight is written once one of
    its cells is to change by more than the threshold; until then the chip goes on with
    the old one. Pure: it may be jitted, and mapped over chips.

    Args:
        loss: `loss(deployed, batch)`, a scalar; lifted, where `tx` gives operators.
        params: The weights that the chip is programmed with. Every floating leaf is
            trained; those off the chip cost no writes.
        tx: The chip, or a chain with it.
        state: Its state.
        batches: A tree whose arrays have the steps in front, at least 1: a few, since
            cells endure a limited number of writes.
        optimizer: Like one of Optax; it is given `{path: array}`.
        key: A random key, for read noise; each step has its own. None: no noise.
        cells: The conductances of the cells, by path, from `(params, state)`:
            `programmed(device)`, with the plus and the minus cells on the leading axis
            and the layout of the leaf behind it.
        threshold: In uS, at least 0; may be traced. With levels, any change of a level
            counts at 0.
        mask: By path, True where a weight is trained; leaves that it does not name are.

    Returns:
        The weights as programmed, the losses, and the cells written in each step. Cells
        that are stuck never change, and are not counted.

    Raises:
        ValueError: If the threshold is negative, the batches have no common number of
            steps, or `cells` or `mask` does not fit the tree.

    Example:
        >>> device = lrk.rram.Device()
        >>> tx, params = lrk.rram.crossbar(device), {"w": jnp.ones((2, 1))}
        >>> class Descent:
        ...     init = staticmethod(lambda params: ())
        ...     update = staticmethod(
        ...         lambda g, m, p: (jax.tree.map(lambda x: -0.5 * x, g), m)
        ...     )
        >>> run = lrk.rram.on_device(
        ...     lambda p, x: (x @ p["w"]).sum(), params, tx,
        ...     tx.init(jax.random.key(0), params), jnp.asarray([[[1.0, 0.0]]]),
        ...     Descent, cells=lrk.rram.programmed(device),
        ... )
        >>> run.params["w"].tolist(), run.writes.tolist()  # one plus cell
        ([[0.5], [1.0]], [1])

    Notes:
        The scale of a column is its largest weight: where that one changes, all
        conductances of the column do, and are counted if by more than the threshold.
        A cell's deviation is one fixed draw here, however often it is written. In real
        cells part of the variation comes anew with each write (cycle to cycle), so
        steps that learn around it are flattered.
        The number of steps and the rule of writing in the ITT-RNA paper are not known.

    References:
        Song et al., ITT-RNA, 2020, DOI 10.1109/TCAD.2020.2989373: abstract (a few
        iterations of training on the device, for convolutional networks).
    """
    check("on_device", threshold=(threshold, 0, None))
    count = steps("on_device", batches)
    leaves = _tree.leaves("on_device", params)
    theta = {path: jnp.asarray(w) for path, w in leaves.items() if is_floating(w)}
    mask = mask or {}
    check_mapping("on_device", "mask", mask, theta)

    def tree(theta: Leaves) -> PyTree:
        return _tree.replace("on_device", params, theta)

    def step(carry: Any, item: Any) -> Any:
        wanted, held, memory = carry
        own, batch = item

        def objective(theta: Leaves) -> Array:
            return loss(tx.apply(tree(theta), state, key=own), batch)

        value, grads = jax.value_and_grad(objective)(held)
        updates, memory = optimizer.update(masked(grads, mask), memory, wanted)
        wanted = added(wanted, masked(updates, mask))
        before, after = cells(tree(held), state), cells(tree(wanted), state)
        held, number = _written(wanted, held, before, after, threshold)
        return (wanted, held, memory), (value, number)

    keys = None if key is None else jax.random.split(key, count)
    start = (theta, theta, optimizer.init(theta))
    (_, held, _), (losses, writes) = lax.scan(step, start, (keys, batches))
    return OnDevice(tree(held), losses, writes)


def _written(
    wanted: Leaves, held: Leaves, before: Leaves, after: Leaves, threshold: Any
) -> tuple[Leaves, Array]:
    """The weights on the chip after writing, and the number of cells written.

    Raises:
        ValueError: If cells do not have the layout of their leaf.
    """
    bad = [
        f"'{path}': {np.shape(g)}"
        for path, g in after.items()
        if path not in held or np.shape(g) != (2, *held[path].shape)
    ]
    if bad:
        raise ValueError(
            "on_device: cells must give [2, *shape] for leaves that are trained, got "
            f"{'; '.join(bad)}. Pass rram.programmed(device, axes=...)."
        )
    new, number = dict(wanted), jnp.zeros((), jnp.int32)
    for path, g in after.items():
        changed = jnp.abs(g - before[path]) > threshold
        new[path] = jnp.where(changed.any(0), wanted[path], held[path])
        number = number + changed.sum(dtype=jnp.int32)
    return new, number
