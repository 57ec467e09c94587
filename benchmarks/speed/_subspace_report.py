"""The report of `speed/subspace`, from its records alone."""

import math
from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table
from benchmarks.speed._subspace_measure import PASSES

STEP_GOAL = 1.5
NAMES = {
    "all weights": "all weights",
    "fastfood": "`fastfood`, over the whole net",
    "fastfood_stacked": "`fastfood_stacked`",
    "sparse": "`sparse`",
    "gather": "`gather`",
    PASSES: "Fastfood by hand, log2 L passes",
    "dense": "`dense`",
}
LAYOUTS = ("fastfood", "fastfood_stacked")

INTRODUCTION = (
    "Times are medians. A ratio is the median over rounds of two times of the same "
    "round, with its 95 % bootstrap interval over rounds and processes."
)


def _of(record: Record | None, name: str, metric: str) -> Any:
    own = {} if record is None else record.metrics["contenders"].get(name, {})
    return own.get(metric)


def _ratio(record: Record | None, name: str) -> Any:
    ends = [_of(record, name, f"ratio{end}") for end in ("", "_low", "_high")]
    return None if None in ends else tuple(ends)


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    record = records.get("step")
    return [
        Goal(
            f"step with {NAMES[name]} over the step of all weights",
            STEP_GOAL,
            _ratio(record, name),
            record,
        )
        for name in LAYOUTS
    ]


def blocks(records: Records) -> list[Block]:
    """Goals met or not, then steps, then growth."""
    return [
        Text(INTRODUCTION),
        goal_table(goals(records), "One core, one thread, batch 128."),
        Heading("One training step"),
        _steps(records.get("step")),
        Heading("How the product grows"),
        _growth(records.get("growth")),
    ]


def _steps(record: Record | None) -> Table:
    d, dense = (
        "–" if record is None else record.config[name] for name in ("d", "dense_d")
    )
    weights = None if record is None else f"{record.metrics['weights']:,}"
    rows = [
        [
            title,
            {"all weights": weights, "dense": dense}.get(name, d),
            _of(record, name, "median_ms"),
            _ratio(record, name),
        ]
        for name, title in NAMES.items()
    ]
    return Table(
        ["what trains", "numbers", "ms", "of the step of all weights"],
        rows,
        caption="Forward, backward and Adam of a net 784-900-300-80 at batch 128.",
        notes=["Adam's moments have as many numbers as train."],
        digits={"ms": 2, "of the step of all weights": 2},
        align="lrrl",
        sources=[record] * len(rows),
    )


def _growth(record: Record | None) -> Table:
    bits = (16, 23) if record is None else record.config["bits"]
    rows = []
    for n in bits:
        cells: list[Any] = [f"2^{n}"]
        for name in LAYOUTS:
            own = _of(record, f"{name} 2^{n}", "median_ms")
            each = None if own is None else 1e6 * own / 2**n
            cells += [own, each, exponent(record, name, n)]
        rows.append(cells)
    columns = [(f"{x}, ms", f"{x}, ns each", f"{x}, exponent") for x in LAYOUTS]
    flat = [column for own in columns for column in own]
    return Table(
        ["D", *flat],
        rows,
        caption="One product `P z` and one `P^T g`.",
        notes=[
            "Exponent: the slope of the logarithm of the time from the first size to "
            "this one. That of D log D is 1.07 over the whole range."
        ],
        digits={c: 2 for c in flat},
        align="l" + "r" * len(flat),
        sources=[record] * len(rows),
    )


def exponent(record: Record | None, name: str, n: int) -> Any:
    """The power of D that the time grew with, from the first size on."""
    if record is None:
        return None
    first = record.config["bits"][0]
    times = [_of(record, f"{name} 2^{k}", "median_ms") for k in (first, n)]
    return "–" if n == first else math.log2(times[1] / times[0]) / (n - first)
