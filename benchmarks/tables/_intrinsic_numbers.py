"""Numbers that the report of intrinsic dimension reads off records."""

from collections.abc import Iterable
from typing import Any

import numpy as np

import lowrank as lrk
from benchmarks.record import Record
from benchmarks.tables._intrinsic_plan import DIRECT, LABEL_SHARE, SHARE, TOLERANCE

Scores = dict[int, dict[int, float]]  # by dimension and seed


def curve(records: Iterable[Record], part: str, net: str) -> Scores:
    """Final accuracy by dimension and seed; dimension 0 is training all weights."""
    found: Scores = {}
    for record in records:
        c = record.config
        if c.get("part") == part and c.get("net") == net:
            found.setdefault(c["d"], {})[record.seed] = float(record.metrics["test"])
    return dict(sorted(found.items()))


def mean(scores: Scores, d: int) -> float | None:
    """The mean over seeds at a dimension."""
    own = scores.get(d)
    return float(np.mean(list(own.values()))) if own else None


def within(value: float, ends: tuple[float, float]) -> bool:
    """Whether a number is in the authors' range, or beyond it by the tolerance."""
    return ends[0] - TOLERANCE <= value <= ends[1] + TOLERANCE


def grid(scores: Scores) -> tuple[list[int], np.ndarray] | None:
    """Dimensions, and scores `[d, seed]` of the seeds that all of them have."""
    dims = [d for d in scores if d != DIRECT]
    if not dims:
        return None
    seeds = sorted(set.intersection(*(set(scores[d]) for d in dims)))
    if not seeds:
        return None
    return dims, np.array([[scores[d][s] for s in seeds] for d in dims])


def dimensions(scores: Scores) -> Any:
    """d90 by both baselines; None where direct training or two dimensions lack."""
    found = grid(scores)
    if found is None or len(found[0]) < 2 or DIRECT not in scores:
        return None
    dims, table = found
    direct = list(scores[DIRECT].values())
    return lrk.subspace.local_and_overall(dims, table, direct, share=SHARE)


def labels_dimension(scores: Scores) -> Any:
    """The dimension that learns the authors' share of random labels by heart."""
    found = grid(scores)
    if found is None:
        return None
    return lrk.subspace.intrinsic_dimension(*found, 1.0, share=LABEL_SHARE)
