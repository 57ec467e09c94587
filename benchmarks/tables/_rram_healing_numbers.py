"""What the report of healing is computed from: cells, shares, sizes that suffice."""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.chips.methods import Way, parse
from benchmarks.record import Record, Records
from benchmarks.stats import generator

ENOUGH = 0.9  # share of the loss that counts as healed
END = " *"  # marks what rests on a rate at the end of its grid
Interval = tuple[float, float, float]


class Cell(NamedTuple):
    """One way at one point, beside the same chips with no action.

    Attributes:
        record: Its record.
        none: The record of no action.
    """

    record: Record
    none: Record | None

    @property
    def way(self) -> Way:
        """The way."""
        return parse(self.record.config["way"])

    @property
    def numbers(self) -> int:
        """Digital parameters."""
        return int(self.record.metrics["cost"]["numbers"])

    @property
    def bytes(self) -> int:
        """Digital bytes."""
        return int(self.record.metrics["cost"]["bytes"])

    @property
    def accuracy(self) -> np.ndarray:
        """Accuracy of every chip."""
        return np.asarray(self.record.series["accuracy"], float)

    @property
    def at_end(self) -> bool:
        """Whether its learning rate is the least or the largest that was tried."""
        rate, grid = self.record.metrics.get("rate"), self.record.config["rates"]
        return rate is not None and rate in (min(grid), max(grid))

    def recovered(self) -> Interval | None:
        """Share of the lost accuracy that comes back, with a bootstrap interval."""
        if self.none is None:
            return None
        clean = float(self.record.metrics["clean"])
        broken = np.asarray(self.none.series["accuracy"], float)
        return share(self.accuracy, broken, clean)


Board = dict[str, Cell]


def board(records: Records, **config: object) -> Board:
    """The cells of a point, by way."""
    found = records.where(**config)
    none = next((r for r in found if r.config["way"] == "none"), None)
    return {record.config["way"]: Cell(record, none) for record in found}


def share(
    healed: np.ndarray, broken: np.ndarray, clean: float, resamples: int = 2000
) -> Interval | None:
    """`mean(healed - broken) / (clean - mean(broken))`, resampled over chips.

    Args:
        healed: `[chips]`.
        broken: The same chips, and perhaps more, with no action.
        clean: Accuracy of the net that no chip broke.
        resamples: How many.

    Returns:
        The share and its 95 % interval; None where nothing was lost, or the chips of
        `healed` are not among those of `broken`.
    """
    if len(broken) < len(healed) or clean - broken[: len(healed)].mean() <= 0.005:
        return None
    broken = broken[: len(healed)]
    rows = generator(0).integers(len(healed), size=(resamples, len(healed)))
    lost = np.maximum(clean - broken[rows].mean(1), 1e-9)
    shares = (healed[rows].mean(1) - broken[rows].mean(1)) / lost
    value = (healed.mean() - broken.mean()) / (clean - broken.mean())
    low, high = np.quantile(shares, [0.025, 0.975])
    return float(value), float(low), float(high)


class Needed(NamedTuple):
    """The size that brings back enough: between sizes, or beyond an end.

    Attributes:
        size: The size.
        sign: Empty for a size between two that were run, `<=` or `>` at an end.
        at_end: Whether it rests on a row whose rate is at the end of its grid.
    """

    size: float
    sign: str
    at_end: bool = False

    def __str__(self) -> str:
        """As tables show it."""
        return f"{self.sign} {self.size:.3g}{END if self.at_end else ''}".strip()


def needed(
    cells: Mapping[str, Cell], kind: str, enough: float = ENOUGH
) -> Needed | None:
    """The smallest size of a kind that brings back enough of the loss.

    Between two sizes the share is taken to be linear in the logarithm of the size.
    """
    points, ends = [], {}
    for name, cell in cells.items():
        way, found = parse(name), cell.recovered()
        if way.kind == kind and found is not None:
            points.append((way.size, found[0]))
            ends[way.size] = cell.at_end
    found = crossing(sorted(points), enough)
    if found is None:
        return None
    below = [size for size in ends if size <= found.size]
    above = [size for size in ends if size >= found.size]
    rests = [*(below and [max(below)]), *(above and [min(above)])]
    return found._replace(at_end=any(ends[size] for size in rests))


def crossing(
    points: Sequence[tuple[float, float]], enough: float = ENOUGH
) -> Needed | None:
    """Where a rising curve first reaches enough."""
    if not points:
        return None
    if points[0][1] >= enough:
        return Needed(points[0][0], "<=")
    for (one, low), (two, high) in zip(points, points[1:], strict=False):
        if high >= enough:
            part = (enough - low) / (high - low)
            return Needed(2 ** (math.log2(one) + part * math.log2(two / one)), "")
    return Needed(points[-1][0], ">")


class Case(NamedTuple):
    """A fault point, for predicting the rank that LoRA needs.

    Attributes:
        name: How it is shown.
        fitted: Whether the factor is fitted on it.
        rank: The rank that LoRA needs.
        features: By name, what predicts it.
        kind: What it is held out for; empty where the factor is fitted.
        at_end: Whether it rests on a rate at the end of its grid.
    """

    name: str
    fitted: bool
    rank: Needed | None
    features: Mapping[str, float | None]
    kind: str = ""
    at_end: bool = False


class Fit(NamedTuple):
    """How well one feature predicts: factor, and errors in powers of two."""

    factor: float
    errors: dict[str, float]

    @property
    def mean(self) -> float | None:
        """Mean magnitude over the held-out cases."""
        own = list(self.errors.values())
        return float(np.mean(np.abs(own))) if own else None


def fit(cases: Sequence[Case], feature: str) -> Fit | None:
    """One factor between a feature and the rank, fitted in the logarithm.

    Cases whose rank or feature lies beyond the sizes that were run do not count.
    """
    known = {
        case.name: (case.fitted, math.log2(case.rank.size), math.log2(value))
        for case in cases
        if case.rank is not None
        and not case.rank.sign
        and (value := case.features.get(feature)) is not None
        and value > 0
    }
    fitted = [rank - value for own, rank, value in known.values() if own]
    if not fitted:
        return None
    factor = float(np.mean(fitted))
    errors = {
        name: value + factor - rank
        for name, (own, rank, value) in known.items()
        if not own
    }
    return Fit(2**factor, errors)
