"""What the records of the table of failing ranks hold: scores, gains, and shares."""

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.stats import Interval
from benchmarks.study.needed import Curve, curve, needed, over
from benchmarks.study.scores import numbers
from lowrank.subspace import IntrinsicDimension

PROBLEMS = {
    "trec": "TREC, 6 classes",
    "files": "definitions, 45 classes",
    "random": "random labels, by heart",
    "dialogue": "decoder, novels to dialogue",
}
BASE = {"trec": "head", "files": "head", "random": "start", "dialogue": "start"}
RESAMPLES = 4000
ENDS = (0.025, 0.975)
Found = IntrinsicDimension | None


def scores(records: Records, way: str, task: str) -> Curve | None:
    """Accuracy against size; for the decoder held-out losses, negative."""
    path, sign = ("loss", -1.0) if task == "dialogue" else ("accuracy", 1.0)
    return curve(records.where(way=way, task=task), path, sign)


def gains(records: Records, way: str, task: str) -> Curve | None:
    """What a way gains over the head alone or, where there is none, the start."""
    own, base = (scores(records, name, task) for name in (way, BASE[task]))
    return None if own is None or base is None else over(own, base)


def of_gain(records: Records, way: str, task: str) -> Found:
    """The size that gives 90 % of what training all weights gains."""
    return needed(gains(records, way, task), gains(records, "full", task))


def of_score(records: Records, way: str, task: str) -> Found:
    """The size that gives 90 % of the accuracy of training all weights."""
    if task == "dialogue":
        return None
    return needed(scores(records, way, task), scores(records, "full", task))


def share(records: Records, way: str, size: int, task: str) -> Interval | None:
    """The share of the gain of all weights that a size gives, with its interval.

    Seeds are those that the size, all weights and the base have in common; they and,
    where a record holds them, the test texts are resampled together for all three.
    None where one was not run, or where all weights gain nothing.
    """
    cells = ((way, {"size": size}), ("full", {}), (BASE[task], {}))
    rows = [
        {r.seed: r for r in records.where(way=name, task=task, **more)}
        for name, more in cells
    ]
    seeds = sorted(set.intersection(*map(set, rows)))
    if not seeds:
        return None
    own, full, base = (np.stack([_marks(by[s], task) for s in seeds]) for by in rows)
    return ratio(own - base, full - base)


def _marks(record: Record, task: str) -> np.ndarray:
    """Which texts are right, as numbers; for the decoder its loss, negative."""
    if task == "dialogue":
        return np.array([-float(record.metrics["loss"])])
    return numbers(record.metrics["right"]).astype(float)


def ratio(part: np.ndarray, whole: np.ndarray) -> Interval | None:
    """The ratio of two means over `[seeds, n]`, with its 95 % bootstrap interval.

    Rows and columns are resampled, the same ones for both. A resample in which the
    whole is not above zero has no ratio: it counts as outside, on both sides.
    """
    if whole.mean() <= 0:
        return None
    n, texts = part.shape
    columns, counts = np.unique(
        np.concatenate([part, whole]), axis=1, return_counts=True
    )
    draws = stats.generator(0)
    rows = draws.multinomial(n, np.full(n, 1 / n), size=RESAMPLES)
    weights = draws.multinomial(texts, counts / texts, size=RESAMPLES)
    top, bottom = (
        np.einsum("rs,sk,rk->r", rows, own, weights, optimize=True)
        for own in (columns[:n], columns[n:])
    )
    known = bottom > 0
    found = top / np.where(known, bottom, 1.0)
    low = np.quantile(np.where(known, found, -np.inf), ENDS[0], method="lower")
    high = np.quantile(np.where(known, found, np.inf), ENDS[1], method="higher")
    return Interval(float(part.mean() / whole.mean()), float(low), float(high))


def in_percent(found: Interval) -> str:
    """A share with its interval, as a cell."""
    value, low, high = (f"{100 * x:.0f}" for x in found)
    return f"{value} [{low}, {high}] %"
