"""What a deployed network costs: counted, not simulated."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

from lowrank import _show
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree
from lowrank._select import Select, is_matrix, selected
from lowrank.rram._numbers import check_whole

_ENERGIES = {"conversion_pj": 1.67, "multiply_add_pj": 4.6, "byte_pj": 1.25}
_COUNTS = ("cells", "conversions", "multiply_adds", "bytes_moved", "bytes_stored")


class Cost(NamedTuple):
    """Counts for one leaf, or for all together.

    Attributes:
        path: The leaf, or `total`.
        cells: Cells that programming the leaf writes.
        conversions: Analog-to-digital conversions for the batch.
        multiply_adds: Digital multiply-adds of the adapter for the batch.
        bytes_moved: Bytes that the adapter reads and writes for the batch.
        bytes_stored: Bytes of the adapter's factors.
    """

    path: Path
    cells: int
    conversions: int
    multiply_adds: int
    bytes_moved: int
    bytes_stored: int


class CostCard(NamedTuple):
    """Costs of a deployed network; prints as a table.

    Attributes:
        rows: One `Cost` for each leaf on the chip.
        inference_pj: Energy of the batch in pJ, converters and digital adapter alone;
            None if a constant that it needs is unknown.
        programming_pj: Energy of programming all cells once, in pJ, or None.
    """

    rows: tuple[Cost, ...]
    inference_pj: float | None
    programming_pj: float | None

    @property
    def total(self) -> Cost:
        """The sums over all leaves."""
        sums = [sum(getattr(row, name) for row in self.rows) for name in _COUNTS]
        return Cost("total", *sums)

    def __repr__(self) -> str:
        """One line for each leaf, with totals."""
        return _show.grid_text("Costs", *self._table())

    def _repr_html_(self) -> str:
        return _show.grid_html("Costs", *self._table())

    def _table(self) -> tuple[list[str], list[list[str]], str]:
        head = ["path", "cells", "conversions", "multiply-adds", "moved", "stored"]
        body = [
            [
                row.path,
                *(f"{getattr(row, name):,}" for name in _COUNTS[:3]),
                _show.bytes_text(row.bytes_moved),
                _show.bytes_text(row.bytes_stored),
            ]
            for row in (*self.rows, self.total)
        ]
        energy = _energy_text(self.inference_pj), _energy_text(self.programming_pj)
        foot = f"energy of the batch {energy[0]}, of programming {energy[1]}"
        return head, body, foot


def cost_card(
    params: PyTree,
    *,
    rank: int | Mapping[Path, int] = 0,
    tile: int | None = None,
    batch: int = 1,
    uses: Mapping[Path, int] | None = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    cells: int = 2,
    differential: bool = True,
    width: int = 4,
    conversion_pj: float | None = None,
    write_pj: float | None = None,
    multiply_add_pj: float | None = None,
    byte_pj: float | None = None,
) -> CostCard:
    """Count what a network on crossbars costs, with a digital adapter beside it.

    A weight `[n, m]` on tiles of `T` rows takes `cells n m` cells, and each input
    vector `m ceil(n / T)` conversions, twice as many if the two columns of a pair are
    not subtracted before the converter. An adapter of rank `r` adds `r (n + m)`
    multiply-adds for each vector, and its `r (n + m)` factors are read once a batch,
    beside `n` inputs and `m` outputs for each vector.

    Args:
        params: Parameters, or their shapes.
        rank: Rank of the adapter: one for all leaves, or by path, 0 where there is
            none; at most the smaller side counts.
        tile: Rows of a tile, at least 1; None for one tile.
        batch: Examples that are run together, at least 1.
        uses: By path, how many input vectors of one example meet the leaf: positions of
            a convolution or a sequence; 1 where it is silent.
        select: Which leaves are on the chip; as for `crossbar`.
        axes: Axes by path for leaves that have not exactly two.
        cells: Cells of one weight: 2 for a pair, 1 for a cell and a shared reference.
        differential: Whether a pair is subtracted before its one conversion.
        width: Bytes of a number of the adapter, and of an input or output.
        conversion_pj: Energy of one conversion; None if unknown.
        write_pj: Energy of writing one cell, all its pulses; None if unknown.
        multiply_add_pj: Energy of one digital multiply-add; None if unknown.
        byte_pj: Energy of moving one byte; None if unknown.

    Returns:
        A `CostCard`. Energies are None where a constant that they need is: none is
        assumed.

    Raises:
        ValueError: If a number is out of range or a count not whole, or `rank` or
            `uses` names a leaf that is not on the chip, or the selection or the axes do
            not fit.

    Example:
        >>> card = lrk.rram.cost_card({"w": jnp.ones((128, 10))}, rank=4, tile=64)
        >>> card.total.cells, card.total.conversions, card.total.multiply_adds
        (2560, 20, 552)
        >>> print(card)
        Costs
          path   cells  conversions  multiply-adds  moved    stored
          w      2,560  20           552            2.7 KiB  2.2 KiB
          total  2,560  20           552            2.7 KiB  2.2 KiB
          energy of the batch unknown, of programming unknown

    Notes:
        Counted is what differs between ways to heal a chip: writes, which wear cells
        out, against digital work. The analog product itself, digital-to-analog
        converters and the adding up of tiles are the same for all, and left out.

    References:
        Counts follow from the sizes. For constants with their sources, see
        `published_energies`.
    """
    numbers = {"batch": batch, "cells": cells, "width": width, "tile": tile}
    wrong = [f"{n}={v}" for n, v in numbers.items() if v is not None and v < 1]
    if wrong:
        raise ValueError(f"cost_card: expected at least 1, got {', '.join(wrong)}.")
    check_whole("cost_card", **numbers)
    chosen = selected("cost_card", params, select)
    found = resolve("cost_card", chosen, axes)
    ranks = rank if isinstance(rank, Mapping) else dict.fromkeys(chosen, rank)
    _check_by_path(chosen, rank=ranks, uses=uses or {})
    rows = []
    for path, leaf in chosen.items():
        sizes = found[path].sizes(tuple(leaf.shape))
        stack, n, m = map(math.prod, sizes)
        r = min(ranks.get(path, 0), n, m)
        vectors = batch * (uses or {}).get(path, 1) * stack
        tiles = 1 if tile is None else math.ceil(n / tile)
        factors = r * (n + m)
        moved = vectors * (n + m) if r else 0
        rows.append(
            Cost(
                path,
                cells=cells * stack * n * m,
                conversions=vectors * m * tiles * (1 if differential else 2),
                multiply_adds=vectors * factors,
                bytes_moved=width * (stack * factors + moved),
                bytes_stored=width * stack * factors,
            )
        )
    card = CostCard(tuple(rows), None, None)
    total = card.total
    inference = (
        (total.conversions, conversion_pj),
        (total.multiply_adds, multiply_add_pj),
        (total.bytes_moved, byte_pj),
    )
    return card._replace(
        inference_pj=_energy(*inference),
        programming_pj=_energy((total.cells, write_pj)),
    )


def published_energies() -> dict[str, float]:
    """Published energies of one operation in pJ, as `cost_card` takes them.

    Returns:
        `conversion_pj = 1.67` (an 8-bit converter in 32 nm: 16 mW for eight at 1.2 G
        conversions a second), `multiply_add_pj = 4.6` (float32 in 45 nm: 3.7 and 0.9)
        and `byte_pj = 1.25` (a cache of 8 KiB in 45 nm: 10 pJ for 64 bits). The energy
        of writing a cell is not among them: it differs by orders of magnitude between
        devices and ways of verifying.

    Example:
        >>> known = lrk.rram.published_energies()
        >>> lrk.rram.cost_card({"w": jnp.ones((128, 10))}, **known).inference_pj
        16.7

    Notes:
        Two technologies, and factors that fit a larger memory are larger: a read of
        DRAM costs about a hundred times as much. Read ratios, not sums.

    References:
        Shafiee et al., ISAAC, ISCA 2016, DOI 10.1109/ISCA.2016.12: its table of
        components (converter). Horowitz, Computing's energy problem, ISSCC 2014, DOI
        10.1109/ISSCC.2014.6757323, as cited by later work (arithmetic and cache).
    """
    return dict(_ENERGIES)


def _check_by_path(chosen: Mapping[Path, Any], **given: Mapping[Path, int]) -> None:
    """Refuse numbers of leaves that are not on the chip, and negative ones.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [
        f"{name} of '{path}'"
        for name, numbers in given.items()
        for path in numbers
        if path not in chosen
    ]
    bad += [
        f"{name} of '{path}' is {value}"
        for name, numbers in given.items()
        for path, value in numbers.items()
        if value < 0
    ]
    if bad:
        raise ValueError(
            f"cost_card: expected numbers from 0 for leaves on the chip, got "
            f"{'; '.join(bad)}. lrk.summary shows the paths."
        )


def _energy(*counts: tuple[int, float | None]) -> float | None:
    """The sum of counts times their constants; None if one that counts is unknown."""
    total = 0.0
    for count, constant in counts:
        if count and constant is None:
            return None
        total += count * (constant or 0.0)
    return total


def _energy_text(energy: float | None) -> str:
    return "unknown" if energy is None else f"{energy:.6g} pJ"
