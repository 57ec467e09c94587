"""Hypotheses on intrinsic dimension, written before the run, and their verdicts."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.tables import _intrinsic_plan as plan
from benchmarks.tables._intrinsic_numbers import (
    curve,
    dimensions,
    labels_dimension,
    mean,
    within,
)

ALIKE, APART = 1.25, 2.0  # factors between dimensions: the same; clearly more
VACUOUS = 0.9  # the error of guessing among ten classes


class Check(NamedTuple):
    """One comparison: its label, its number, and whether it bears a hypothesis out."""

    label: str
    value: float | None
    holds: bool | None


class Hypothesis(NamedTuple):
    """A hypothesis and the comparisons that it speaks of."""

    text: str
    checks: Sequence[Check]
    digits: int = 0

    def verdict(self) -> str:
        """Whether all comparisons bear it out."""
        known = [c.holds for c in self.checks if c.holds is not None]
        if not known:
            return "not run"
        if not all(known):
            return "contradicted"
        done = len(known) == len(self.checks)
        return "supported" if done else "undecided: rows are missing"

    def numbers(self) -> str | None:
        """Each comparison's number."""
        known = [c for c in self.checks if c.value is not None]
        if not known:
            return None
        return "; ".join(f"{c.label} {_written(c.value, self.digits)}" for c in known)


def _written(value: float | None, digits: int) -> str:
    if value is None or not math.isfinite(value):
        return "not reached"
    return f"{value:,.{digits}f}"


def _d90(records: Records, name: str, baseline: str) -> float | None:
    found = dimensions(curve(records, *name.split("-")))
    return None if found is None else float(getattr(found, baseline).interpolated)


def _check(label: str, value: float | None, low: float, high: float) -> Check:
    """Whether a number lies between two ends."""
    return Check(label, value, None if value is None else low <= value <= high)


def _ratio(one: float | None, two: float | None) -> float | None:
    if one is None or two is None or not math.isfinite(two):
        return None
    return one / two


def expected(records: Records) -> dict[str, Hypothesis]:
    """The hypotheses by name, with their comparisons."""
    fc, dense = curve(records, "main", "fc"), curve(records, "dense", "fc")
    beside = curve(records, "beside", "fc") or fc
    d90 = {
        (name, kind): _d90(records, name, kind)
        for name in plan.TITLES
        for kind in ("local", "overall")
    }
    curve_checks = []
    for d, ends in plan.AUTHORS.items():
        own = mean(fc, d)
        met = None if own is None else within(own, ends)
        curve_checks.append(Check(f"d={d}", own and 100 * own, met))
    gaps = []
    for d in sorted(set(dense) | {300}):
        one, two = _at(dense, d), _at(beside, d)
        common = sorted(set(one) & set(two))
        own = float(np.mean([one[s] - two[s] for s in common])) if common else None
        gaps.append(
            _check(f"d={d}", own and 100 * own, -100 * plan.TOLERANCE,
                   100 * plan.TOLERANCE)
        )  # fmt: skip
    same = _ratio(d90["pixels-fc", "local"], d90["main-fc", "local"])
    more = _ratio(d90["pixels-lenet", "local"], d90["main-lenet", "local"])
    less = _ratio(d90["main-fc", "local"], d90["main-lenet", "local"])
    band = [
        _check(kind, d90["main-fc", kind], *plan.D90_BAND)
        for kind in ("local", "overall")
    ]
    return {
        "M1": Hypothesis(
            "the FC net's accuracy lies within 1.5 points of the authors' range at "
            "each of six d",
            curve_checks,
            1,
        ),
        "M2": Hypothesis(
            "the FC net's d90 lies in 525 to 900, by either baseline", band
        ),
        "M3": Hypothesis(
            "LeNet-5 needs fewer dimensions than the FC net: at most half as many",
            [_check("FC over LeNet-5", less, APART, math.inf)],
            2,
        ),
        "M4": Hypothesis("the toy problem's dimension is 10", [_toy(records)]),
        "M5": Hypothesis(
            "shuffled pixels change nothing for the FC net (a factor of at most 1.25) "
            "and cost LeNet-5 at least twice the dimensions",
            [
                _check("FC, shuffled over not", same, 1 / ALIKE, ALIKE),
                _check("LeNet-5, shuffled over not", more, APART, math.inf),
            ],
            2,
        ),
        "M6": Hypothesis(
            "with random labels more images need more dimensions, and fewer for each",
            _labels(records, "labels"),
            1,
        ),
        "M7": Hypothesis(
            "the dense projection agrees with the curve's within 1.5 points", gaps, 1
        ),
        "M8": Hypothesis(
            "the bound of the FC net is below the 90 % of guessing, and below 30 %",
            _bounds(records),
            1,
        ),
        "M9": Hypothesis(
            "with as many epochs, instead of steps, M6 holds (written down after M6's "
            "run)",
            _labels(records, "epochs"),
            1,
        ),
    }


def _at(scores: dict[int, dict[int, float]], d: int) -> dict[int, float]:
    return scores.get(d, {})


def _toy(records: Records) -> Check:
    """The smallest dimension whose mean reaches 0.9."""
    record = records.get("toy")
    if record is None:
        return Check("d", None, None)
    means = np.mean(record.metrics["scores"], axis=1)
    good = [d for d, x in zip(record.config["ds"], means, strict=True) if x >= 0.9]
    first = float(min(good, default=math.inf))
    return Check("d", first, first == 10)


def _labels(records: Records, kind: str) -> list[Check]:
    """Ratios of dimensions, and of dimensions for each image, of neighbours."""
    found: list[tuple[str, float, int] | None] = []
    for fraction in sorted(plan.PUBLISHED_LABELS):
        part = plan.label_part(fraction, kind)
        own = labels_dimension(curve(records, part, "fc"))
        rows = records.where(part=part)
        known = own is not None and math.isfinite(own.interpolated)
        label = f"{100 * fraction:g} %"
        found.append(
            (label, own.interpolated, rows[0].config["train"]) if known else None
        )
    checks = []
    for one, two in zip(found, found[1:], strict=False):
        if one is None or two is None:
            checks += [Check("", None, None)] * 2
            continue
        name, each = f"{two[0]} over {one[0]}", two[1] / one[1]
        per = each * one[2] / two[2]
        checks.append(Check(f"d, {name}", each, each > 1))
        checks.append(Check(f"for each, {name}", per, per < 1))
    return checks


def _bounds(records: Records) -> list[Check]:
    found = records.where(part="bound", net="fc").values("bound")
    best = 100 * min(found) if found else None
    return [
        _check("best, %", best, 0, 100 * VACUOUS),
        _check("best, %", best, 0, 30),
    ]


def table(records: Records) -> Table:
    """The table of verdicts."""
    rows = [
        [f"{name}: {own.text}", own.verdict(), own.numbers()]
        for name, own in expected(records).items()
    ]
    notes = [
        "Read off means over seeds, and of d90 its interpolated value; accuracies and "
        "bounds in per cent, gaps in points. Supported: every comparison bears it out; "
        "contradicted: at least one speaks against it."
    ]
    return Table(
        ("hypothesis", "verdict", "numbers"),
        rows,
        caption="The hypotheses written down before the run.",
        align="lll",
        notes=notes,
    )
