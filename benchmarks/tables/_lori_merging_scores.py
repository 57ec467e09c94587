"""What merging leaves of each adapter's gain, and which records say so."""

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.stats import Difference
from benchmarks.study.scores import gap
from benchmarks.study.tasks import SUITES
from benchmarks.tables._lori_words import (
    Rights,
    aligned,
    difference,
    of_merges,
    of_singles,
)

ADAPTERS = ("lora", "lori-d", "lori-s")
SUM, LINEAR, JOINT = "concat", "linear", "joint"
RESAMPLES = 2_000

Place = tuple[str, str]  # a merge and an adapter
Parts = tuple[Rights | None, Rights | None, Rights | None]  # merged, alone, off


class Board(NamedTuple):
    """The scores of one suite.

    Attributes:
        tasks: Its tasks, in order.
        records: Its records.
        alone: Each adapter on its own task.
        off: Its head on the bare encoder.
        merged: By merge and adapter, at the scale that was chosen.
        fixed: As `merged`, at the authors' weights.
        joint: One LoRA trained on all tasks.
        over_sum: Of each merge, the difference to the sum of the same adapters.
        over_joint: Of each merge, the difference to the joint adapter.
    """

    tasks: tuple[str, ...]
    records: Records
    alone: dict[str, Rights | None]
    off: dict[str, Rights | None]
    merged: dict[Place, Rights | None]
    fixed: dict[Place, Rights | None]
    joint: Rights | None
    over_sum: dict[Place, Difference | None]
    over_joint: dict[Place, Difference | None]

    def parts(self, place: Place, *, fixed: bool = False) -> Parts:
        """What the normalised score of a merge is made of."""
        merged = (self.fixed if fixed else self.merged)[place]
        return (merged, self.alone[place[1]], self.off[place[1]])

    def counting(self, name: str) -> tuple[str, ...]:
        """The tasks on which an adapter gains, by the interval of the difference."""
        found = aligned(self.alone[name], self.off[name])
        if not found:
            return ()
        alone, off = found
        return tuple(
            task
            for task in self.tasks
            if gap(alone.tasks[task], off.tasks[task]).low > 0
        )


def rows_of(records: Records, suite: str, place: Place) -> Records:
    """The records of a merge of an adapter."""
    merge, name = place
    return records.where(suite=suite, kind="merge", merge=merge, method=name)


def board(records: Records, suite: str, merges: Sequence[str]) -> Board:
    """Reads the scores of a suite."""
    own, tasks = records.where(suite=suite), tuple(SUITES[suite])
    places = [(merge, name) for merge in merges for name in ADAPTERS]
    found = {place: rows_of(own, suite, place) for place in places}
    single = {name: own.where(kind="single", method=name) for name in ADAPTERS}
    merged = {place: of_merges(rows, tasks) for place, rows in found.items()}
    joint = of_merges(own.where(kind=JOINT), tasks)
    return Board(
        tasks,
        own,
        {name: of_singles(rows, tasks) for name, rows in single.items()},
        {name: of_singles(rows, tasks, "off") for name, rows in single.items()},
        merged,
        {p: of_merges(rows, tasks, "at_fixed/tasks") for p, rows in found.items()},
        joint,
        {
            place: difference(rights, merged[SUM, place[1]])
            for place, rights in merged.items()
            if place[0] != SUM
        },
        {place: difference(rights, joint) for place, rights in merged.items()},
    )


def shares(parts: Sequence[Parts], tasks: Sequence[str]) -> np.ndarray | None:
    """Normalised scores in per cent, `(merged - off) / (alone - off)`, mean over tasks.

    Seeds are resampled for all tasks at once, texts within each task, the same for all
    scores given, which are thus paired.

    Args:
        parts: For each score its three parts.
        tasks: The tasks that count.

    Returns:
        `[scores, 1 + RESAMPLES]`, the first column from the data themselves; None if
        there are no tasks, or no seeds that all parts have.
    """
    found = aligned(*(part for own in parts for part in own))
    if not found or not tasks:
        return None
    sizes = tuple(found[0].tasks[task].shape[1] for task in tasks)
    rows, columns = _weights(len(found[0].tasks[tasks[0]]), sizes)
    means = np.array(
        [
            [
                np.einsum("rs,sn,rn->r", rows, own.tasks[task], texts, optimize=True)
                for task, texts in zip(tasks, columns, strict=True)
            ]
            for own in found
        ]
    )
    merged, alone, off = np.moveaxis(
        means.reshape(len(parts), 3, *means.shape[1:]), 1, 0
    )
    gain = alone - off
    share = (merged - off) / np.where(gain == 0, np.nan, gain)
    return 100 * share.mean(axis=1)


@functools.cache
def _weights(seeds: int, sizes: tuple[int, ...]) -> tuple[np.ndarray, list[np.ndarray]]:
    """How often each resample takes each seed, and each text; first once each."""
    draws = stats.generator(0)

    def counts(number: int) -> np.ndarray:
        even = np.full(number, 1 / number)
        drawn = draws.multinomial(number, even, size=RESAMPLES)
        return np.concatenate([np.ones((1, number)), drawn]) / number

    return counts(seeds), [counts(size) for size in sizes]


def interval(found: np.ndarray) -> tuple[float, float, float]:
    """The value and the 95 % interval of one row of `shares`."""
    low, high = np.nanquantile(found[1:], (0.025, 0.975))
    return (float(found[0]), float(low), float(high))


def share_gap(board: Board, one: Place, two: Place) -> Difference | None:
    """The difference of two normalised scores, on the tasks that count for both."""
    common = [t for t in board.counting(one[1]) if t in board.counting(two[1])]
    found = shares([board.parts(one), board.parts(two)], common)
    if found is None:
        return None
    gaps = found[0] - found[1]
    return Difference(*interval(gaps), float(np.mean(gaps[1:] <= 0)))
