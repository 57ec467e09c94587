"""What the records of the table of sizes hold: curves, and the sizes needed."""

import math
from collections.abc import Sequence

import numpy as np

from benchmarks.record import Records
from benchmarks.study.needed import SHARE, Curve, curve, needed, over
from lowrank.subspace import IntrinsicDimension, intrinsic_dimension

Found = IntrinsicDimension | None


def starts(records: Records) -> list[str]:
    """Checkpoints that were started from, by size and step."""
    return sorted({r.config["weights"] for r in records.where(way="start")}, key=order)


def order(name: str) -> tuple[int, int]:
    """The width and the step of a checkpoint."""
    width, step = name[1:].split("x")[0], name.rpartition("-step")[2]
    return int(width), int(step)


def lasts(records: Records) -> list[str]:
    """The last checkpoint of each size, from small to large."""
    by: dict[int, str] = {}
    for name in starts(records):
        by[order(name)[0]] = name
    return list(by.values())


def of_middle(records: Records) -> list[str]:
    """The checkpoints of the size that has several, in order."""
    names = starts(records)
    widths = [order(name)[0] for name in names]
    several = [w for w in dict.fromkeys(widths) if widths.count(w) > 1]
    return [n for n in names if several and order(n)[0] == several[0]]


def losses(records: Records, way: str, name: str) -> Curve | None:
    """Held-out losses of a way, negative so that higher is better."""
    return curve(records.where(way=way, weights=name), "loss", -1.0)


def gains(records: Records, way: str, name: str) -> Curve | None:
    """What a way gains over the start, in nats a character."""
    own, begin = losses(records, way, name), losses(records, "start", name)
    if own is None or begin is None:
        return None
    every = np.repeat(begin.scores[:, :1], len(own.seeds), axis=1)
    return over(own, Curve(begin.sizes, own.seeds, every))


def local(records: Records, way: str, name: str) -> Found:
    """By 90 % of what training all weights gains from the same start."""
    return needed(gains(records, way, name), gains(records, "full", name))


def level(records: Records, name: str) -> float | None:
    """The loss at which a start has 90 % of its own gain."""
    begin, full = losses(records, "start", name), gains(records, "full", name)
    if begin is None or full is None:
        return None
    return -float(begin.scores[0, 0]) - SHARE * float(full.scores[0].mean())


def overall(records: Records, way: str, name: str, loss: float | None) -> Found:
    """By one loss for all; 0 where the start has it already."""
    own, begin = losses(records, way, name), losses(records, "start", name)
    if own is None or begin is None or loss is None:
        return None
    first_row = np.repeat(begin.scores[:, :1], len(own.seeds), axis=1)
    scores = np.concatenate([first_row, own.scores]) + loss  # reached at or above 0
    return intrinsic_dimension((0, *own.sizes), 1 + scores, 1.0, share=1.0)


def weights(records: Records, name: str) -> int | None:
    """How many weights a decoder has."""
    own = records.where(way="start", weights=name)
    return own[0].metrics["weights"] if len(own) else None


def most(own: Curve | None) -> int | None:
    """The largest tested size."""
    return None if own is None else own.sizes[-1]


def scaled(found: Found, by: float | None) -> Found:
    """The same dimension as a share of all weights."""
    if found is None or by is None:
        return None
    return IntrinsicDimension(
        found.tested / by, found.interpolated / by, found.low / by, found.high / by,
        found.threshold,
    )  # fmt: skip


def percents(found: Sequence[Found]) -> str | None:
    """Shares with their intervals, in per cent."""

    def one(value: float) -> str:
        return f"{100 * value:.2f}" if math.isfinite(value) else "not reached"

    known = [
        f"{one(f.interpolated)} [{one(f.low)}, {one(f.high)}] %"
        for f in found
        if f is not None
    ]
    return "; ".join(known) or None


def effective(
    records: Records, way: str, name: str, kind: str = "effective"
) -> list[float] | None:
    """Means over seeds at each look."""
    own = [r.series[kind] for r in records.where(way=way, weights=name)]
    return np.mean(own, axis=0).tolist() if own else None
