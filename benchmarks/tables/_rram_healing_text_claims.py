"""The hypotheses on healed encoders, and what the records say of each."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stats
from benchmarks.record import Record
from benchmarks.report import Table
from benchmarks.study.tasks import SUITES
from benchmarks.tables._rram_healing_text_ways import TRAINED

TITLES = SUITES["tasks"]
SMALL = 0.02  # what further training may gain without faults, by hypothesis 7
Grid = dict[tuple[str, str], Record]


def right(record: Record) -> np.ndarray:
    """Accuracy of each chip."""
    return np.asarray(record.series["accuracy"], float)


# Hypotheses: each is a number for each chip that is expected to lie above zero.
Claim = Callable[[Grid, str], np.ndarray | None]


class Hypothesis(NamedTuple):
    """One that was written down before the run."""

    name: str
    text: str
    claim: Claim


def _over(grid: Grid, task: str, one: str, two: str) -> np.ndarray | None:
    """Difference of two ways, by chip."""
    if (task, one) not in grid or (task, two) not in grid:
        return None
    return right(grid[task, one]) - right(grid[task, two])


def _share(way: str, share: float, sign: float) -> Claim:
    """Whether a way recovers more (sign 1) or less (-1) than a share of the loss."""

    def claim(grid: Grid, task: str) -> np.ndarray | None:
        gain = _over(grid, task, way, "none")
        if gain is None:
            return None
        bare = grid[task, "none"]
        return sign * (gain - share * (bare.metrics["whole"] - right(bare)))

    return claim


def _pair(one: str, two: str) -> Claim:
    return lambda grid, task: _over(grid, task, one, two)


def _clean(grid: Grid, task: str) -> np.ndarray | None:
    """How far the way that gains most without faults stays below what is allowed."""
    gains = [_over(grid, task, f"clean-{name}", "clean-none") for name in TRAINED]
    found = [np.mean(gain) for gain in gains if gain is not None]
    return SMALL - np.max(found, axis=0) if found else None


HYPOTHESES = (
    Hypothesis("H1", "a new head recovers less than half", _share("head", 0.5, -1)),
    Hypothesis("H2", "LoRA, rank r, recovers more than half", _share("lora", 0.5, 1)),
    Hypothesis(
        "H3", "SVD of the same size recovers under a quarter", _share("svd", 0.25, -1)
    ),
    Hypothesis("H4", "activation-weighted SVD above SVD", _pair("svd-weighted", "svd")),
    Hypothesis(
        "H5",
        "LoRI-D, rank r, not below LoRA, rank r / 4",
        _pair("lori-d", "lora-small"),
    ),
    Hypothesis(
        "H6",
        "fault-aware mask above mask by calibration",
        _pair("lori-s-fault", "lori-s"),
    ),
    Hypothesis("H7", "without faults no way gains 2 points", _clean),
)


def hypotheses(grid: Grid, tasks: list[str]) -> Table:
    """Each hypothesis with its margin and a word chosen by its interval."""
    rows: list[list[Any]] = []
    for own in HYPOTHESES:
        cells: list[Any] = []
        for task in tasks:
            margin = own.claim(grid, task)
            cells += [None] if margin is None else [judged(own.name, margin)]
        rows.append([own.name, own.text, *cells])
    return Table(
        ("", "written down before the run", *(TITLES[task] for task in tasks)),
        rows,
        caption="The hypotheses. In points, how far each is over its threshold, with "
        "95 % bootstrap intervals over chips.",
        notes=[
            "`holds`: the interval lies above zero (H5: its lower end is not below "
            "-1 point; H7: the mean of the way that gains most, of those that were "
            "run). `fails`: below zero. `open`: it holds zero."
        ],
    )


def judged(name: str, margin: np.ndarray) -> str:
    """A word and the margin in points."""
    if np.ndim(margin) == 0:
        word = "holds" if margin > 0 else "fails"
        return f"{word}: {100 * float(margin):+.1f}"
    value, low, high = (100 * x for x in stats.bootstrap_interval(margin))
    least = -1.0 if name == "H5" else 0.0
    word = "holds" if low > least else "fails" if high < least else "open"
    return f"{word}: {value:+.1f} [{low:+.1f}, {high:+.1f}]"
