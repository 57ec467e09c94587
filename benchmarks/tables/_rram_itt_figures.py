"""Figures of the table of ITT: sweeps with their worst chips, yields, and budgets."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.figures import PALETTE, bars_with_intervals, curves
from benchmarks.record import Records
from benchmarks.report import Block, Figure
from benchmarks.tables._rram_itt_plan import (
    DATASETS,
    EVEN,
    HARD,
    METHODS,
    NETS,
    POINTS,
    SIGMAS,
    applies,
)

Sweep = Mapping[str, float]
SWEEPS: dict[str, tuple[Sweep, str]] = {
    "stuck": (EVEN, "stuck cells, %, half at each end"),
    "spread": ({"s00": 0.0, **SIGMAS}, "sigma of lognormal write noise"),
}


def sweeps(records: Records) -> list[Block]:
    """Accuracy against stuck rate and against spread, of each net and data set."""
    found: list[Block] = []
    for dataset, data in DATASETS.items():
        for net, title in NETS.items():
            for key, (sweep, label) in SWEEPS.items():
                lines = lines_of(records, net, dataset, sweep)
                name = f"itt-{net}-{key}" if dataset == "mnist" else ""
                if lines:
                    found.append(_sweep(lines, f"{title} on {data}", label, name))
    return found


def lines_of(
    records: Records, net: str, dataset: str, sweep: Sweep
) -> dict[str, np.ndarray]:
    """By method, `[points, (x, mean, 5th percentile, 95th percentile, worst)]`."""
    lines = {}
    for method, title in METHODS.items():
        rows = []
        for name, x in sweep.items():
            record = records.get(f"point-{net}-{dataset}-{method}-{name}")
            free = name == "s00" and sweep is not EVEN and method.startswith("fap")
            if record is None or free or not applies(method, POINTS[name]):
                continue
            own = 100 * np.asarray(record.metrics["accuracies"])
            ends = np.quantile(own, [0.05, 0.95])
            rows.append([x, own.mean(), *ends, own.min()])
        if len(rows) > 1:
            lines[title] = np.array(rows)
    return lines


def _sweep(
    lines: Mapping[str, np.ndarray], title: str, label: str, name: str
) -> Figure:
    draw = functools.partial(draw_sweep, lines, title, label)
    caption = (
        f"{title}: accuracy against {label}. Lines are means over chips, bands the 5th "
        "to the 95th percentile, dots the worst chip."
    )
    last = [f"{name} {rows[-1, 1]:.1f}" for name, rows in lines.items()]
    end = max(rows[-1, 0] for rows in lines.values())
    return Figure(draw, caption, f"Means at {end:g}: {', '.join(last)}.", name)


def draw_sweep(lines: Mapping[str, np.ndarray], title: str, label: str) -> Any:
    """Means with bands, and the worst chips as dotted lines."""
    canvas = curves(
        {name: tuple(rows[:, :4].T) for name, rows in lines.items()},
        xlabel=label,
        ylabel="test accuracy, %",
        title=title,
    )
    axes = canvas.axes[0]
    for i, rows in enumerate(lines.values()):
        axes.plot(
            rows[:, 0], rows[:, 4], ":", color=PALETTE[i % len(PALETTE)], linewidth=1
        )
    return canvas


def yields(records: Records) -> list[Block]:
    """Bars of the share of chips within a point of the clean net."""
    series: dict[str, list[Any]] = {}
    for method in ("none", "retrain", "itt"):
        bars = []
        for net in NETS:
            record = records.get(f"yield-{net}-mnist-{method}-{HARD}")
            bars.append(None if record is None else _share(record.metrics))
        series[METHODS[method]] = bars
    if not any(bar for bars in series.values() for bar in bars):
        return []
    draw = functools.partial(
        bars_with_intervals,
        list(NETS.values()),
        series,
        ylabel="chips within 1 point, %",
    )
    alt = "; ".join(
        f"{name}: " + ", ".join("not run" if b is None else f"{b[0]:.0f}" for b in bars)
        for name, bars in series.items()
    )
    caption = "Yield at (10, 10) on MNIST, with Wilson's interval."
    return [Figure(draw, caption, alt, "itt-yield")]


def _share(metrics: Mapping[str, Any]) -> tuple[float, float, float]:
    lost = 100 * (metrics["clean"] - np.asarray(metrics["accuracies"]))
    value, low, high = stats.wilson(int((lost <= 1).sum()), len(lost))
    return (100 * value, 100 * low, 100 * high)


def budgets(records: Records) -> list[Block]:
    """Validation accuracy against the number of steps."""
    found: list[Block] = []
    for net, title in NETS.items():
        lines: dict[str, Sequence[Any]] = {}
        for method in ("retrain", "itt"):
            record = records.get(f"budget-{net}-mnist-{method}-{HARD}")
            if record is not None:
                means = 100 * np.asarray(record.series["accuracies"]).mean(axis=1)
                lines[METHODS[method]] = (record.series["steps"], means)
                lines["clean net"] = (
                    record.series["steps"],
                    np.full(len(means), 100 * record.metrics["clean"]),
                )
        if lines:
            draw = functools.partial(
                curves,
                lines,
                xlabel="steps of the whole run",
                ylabel="validation accuracy, %",
                title=title,
            )
            ends = [f"{name} {y[-1]:.1f}" for name, (_, y) in lines.items()]
            caption = f"{title} at (10, 10) on MNIST: accuracy against steps."
            alt = f"At the end: {', '.join(ends)}."
            found.append(Figure(draw, caption, alt, f"itt-{net}-budget"))
    return found
