"""A chip with its wiring: rows on other rows, columns with turned signs."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank._axes import Axes
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._combine import chain
from lowrank._select import Select, is_matrix
from lowrank.rram._crossbar import crossbar
from lowrank.rram._device import Device
from lowrank.rram._flip import flip
from lowrank.rram._on_device import Cells, programmed
from lowrank.rram._permute import permute, unpermute


class Placed(NamedTuple):
    """A chip and its wiring, as `placed` makes them.

    Attributes:
        transform: The chain of `permute`, `flip`, `crossbar`, `flip` and `unpermute`,
            without the parts that are not wanted.
        off_device: The same with weight-only effects: no converters, no read noise, no
            wires. It takes the same states, and gives plain arrays.
        state: `state(params, chip)`: the state of both, around a given chip.
        cells: `cells(params, state)`: the conductances of the cells of each weight, as
            `programmed` gives them; those of spare rows are left out.
    """

    transform: Transform
    off_device: Transform
    state: Callable[[PyTree, State], State]
    cells: Cells


def placed(
    device: Device,
    rows: Mapping[Path, Any] | None = None,
    signs: Mapping[Path, Any] | None = None,
    *,
    spare: int | Mapping[Path, int] = 0,
    tile: int | None = None,
    columns: bool = True,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Placed:
    """Wire a chip: `chain(permute, flip, crossbar, flip, unpermute)` and its relatives.

    Rows and signs are kept in the states, so that chips with their own wiring have
    states of one structure, which can be stacked; they may also be traced.

    Args:
        device: The device.
        rows: As for `permute`: `assign(...).rows`; None leaves out both ends.
        signs: As the columns of `flip`: what `choose_flips` gives; None: no flips.
        spare: As for `permute`.
        tile: As for `crossbar`.
        columns: As for `crossbar`.
        select: As for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        The transforms and functions of one wiring.

    Raises:
        TypeError: As `crossbar` and `permute`.
        ValueError: As they do.

    Example:
        >>> params = {"w": jnp.asarray([[1.0], [-0.5]])}
        >>> own = lrk.rram.placed(lrk.rram.Device(), {"w": [2, 0]}, spare=1)
        >>> tall = {"w": jnp.zeros((3, 1))}  # the chip has one row more
        >>> chip = lrk.rram.crossbar(lrk.rram.Device()).init(jax.random.key(0), tall)
        >>> state = own.state(params, chip)
        >>> own.transform.apply(params, state)["w"].round(4).tolist()
        [[1.0], [-0.5]]

    References:
        As `permute`, `flip` and `crossbar`.
    """
    told: dict[str, Any] = {"tile": tile, "columns": columns}
    weight_only = device.replace(read=None, dac=None, adc=None, wire=None)
    before, after = [], []
    if rows is not None:
        before.append(permute(rows, spare=spare, axes=axes))
        after.append(unpermute(rows, spare=spare, axes=axes))
    if signs is not None:
        turned = flip(signs, axes=axes)
        before.append(turned)
        after.insert(0, turned)
    middle, simple = (
        crossbar(d, select=select, axes=axes, **told) for d in (device, weight_only)
    )
    conductances = programmed(device, axes=axes, **told)

    def state(params: PyTree, chip: State) -> State:
        key, states = jax.random.key(0), []  # nothing is drawn
        for tx in (*before, simple, *after):
            own = chip if tx is simple else tx.init(key, params)
            params = tx.apply(params, own)
            states.append(own)
        return State(tuple(s.trainable for s in states), tuple(s.fixed for s in states))

    def cells(params: PyTree, state: State) -> dict[Path, Array]:
        members = [State(*pair) for pair in zip(*state, strict=True)]
        for tx, own in zip(before, members, strict=False):
            params = tx.apply(params, own)
        found = conductances(params, members[len(before)])
        if rows is None:
            return found
        sides = [
            after[-1].apply({path: g[i] for path, g in found.items()}, members[-1])
            for i in (0, 1)
        ]
        return jax.tree.map(lambda *pair: jnp.stack(pair), *sides)

    return Placed(
        chain(*before, middle, *after), chain(*before, simple, *after), state, cells
    )
