"""Of rows of many sizes: curves, and the size that reaches a share of a baseline."""

import math
from typing import Any, NamedTuple

import numpy as np

import lowrank as lrk
from benchmarks.record import Records
from benchmarks.study.scores import numbers
from lowrank.subspace import IntrinsicDimension

SHARE = 0.9


class Curve(NamedTuple):
    """Scores against sizes, on the seeds that all sizes have.

    Attributes:
        sizes: Increasing.
        seeds: In order.
        scores: `[size, seed]`, higher is better.
    """

    sizes: tuple[int, ...]
    seeds: tuple[int, ...]
    scores: np.ndarray

    def mean(self, size: int) -> float:
        """The mean over seeds at a size."""
        return float(self.scores[self.sizes.index(size)].mean())


def curve(records: Records, path: str = "accuracy", sign: float = 1.0) -> Curve | None:
    """The curve of the rows of one way, from one start, on one task."""
    by: dict[int, dict[int, float]] = {}
    for record in records:
        own = by.setdefault(int(record.config["size"]), {})
        own[record.seed] = sign * float(record.metrics[path])
    seeds = sorted(set.intersection(*map(set, by.values()))) if by else []
    if not seeds:
        return None
    sizes = sorted(by)
    scores = np.array([[by[size][seed] for seed in seeds] for size in sizes])
    return Curve(tuple(sizes), tuple(seeds), scores)


def over(one: Curve, base: Curve) -> Curve | None:
    """The gain of a curve over what has one size, seed by seed."""
    seeds = [seed for seed in one.seeds if seed in base.seeds]
    if not seeds:
        return None
    rows, columns = ([c.seeds.index(s) for s in seeds] for c in (one, base))
    gain = one.scores[:, rows] - base.scores[:1, columns]
    return Curve(one.sizes, tuple(seeds), gain)


def needed(
    one: Curve | None, base: Curve | None, *, share: float = SHARE
) -> IntrinsicDimension | None:
    """The size that reaches a share of a baseline of one size; None if not run.

    Seeds that both have are paired; a gain of the baseline that is not above zero has
    no share to reach, and gives infinity.
    """
    if one is None or base is None:
        return None
    seeds = [seed for seed in one.seeds if seed in base.seeds]
    if not seeds:
        return None
    rows, columns = ([c.seeds.index(s) for s in seeds] for c in (one, base))
    target = base.scores[0, columns]
    if target.mean() <= 0:
        level = share * float(target.mean())
        return IntrinsicDimension(math.inf, math.inf, math.inf, math.inf, level)
    return lrk.subspace.intrinsic_dimension(
        one.sizes, one.scores[:, rows], target, share=share
    )


def shown(found: IntrinsicDimension | None, largest: int | None = None) -> str | None:
    """An interpolated size with its interval; what is not reached says so."""
    if found is None:
        return None
    bound = "not reached" if largest is None else f"> {largest:,}"

    def one(value: float) -> str:
        return f"{value:,.0f}" if math.isfinite(value) else bound

    if not math.isfinite(found.low):
        return bound
    return f"{one(found.interpolated)} [{one(found.low)}, {one(found.high)}]"


def first(found: IntrinsicDimension | None, largest: int | None = None) -> Any:
    """The smallest tested size."""
    if found is None:
        return None
    if math.isfinite(found.tested):
        return int(found.tested)
    return "not reached" if largest is None else f"> {largest:,}"


def right(records: Records) -> np.ndarray:
    """Which test examples are right, `[seeds, n]`, for the rows of one cell."""
    ordered = sorted(records, key=lambda record: record.seed)
    return np.stack([numbers(r.metrics["right"]) for r in ordered]).astype(bool)


def fewer(one: IntrinsicDimension | None, two: IntrinsicDimension | None) -> int | None:
    """1 if the first interval lies below the second, -1 above, 0 if they meet."""
    if one is None or two is None:
        return None
    if one.high < two.low:
        return 1
    return -1 if one.low > two.high else 0


def verdict(marks: list[int | None]) -> str | None:
    """Of comparisons that are 1 for, -1 against, 0 undecided and None not run."""
    known = [mark for mark in marks if mark is not None]
    if not known:
        return None
    if min(known) < 0:
        return "contradicted"
    if len(known) < len(marks):
        return "undecided: rows are missing"
    return "supported" if min(known) > 0 else "not supported"
