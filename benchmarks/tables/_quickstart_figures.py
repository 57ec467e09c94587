"""The figures of the quickstart, and what they are drawn from."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block, Figure, bars_with_intervals, curves, heatmap
from benchmarks.tables._quickstart_score import numbers
from benchmarks.tables._quickstart_tasks import TITLES
from benchmarks.tables._quickstart_train import METHODS

PROJECTIONS = {
    "attention/self/query": "query",
    "attention/self/key": "key",
    "attention/self/value": "value",
    "attention/output/dense": "attn. out",
    "intermediate/dense": "ffn up",
    "output/dense": "ffn down",
}
SMOOTH = 7  # steps over which a loss curve is averaged, at most


class Cell(NamedTuple):
    """The records of one method on one task, one for each seed."""

    records: Records

    def right(self, kind: str = "test") -> np.ndarray:
        """Which test examples are right, `[seeds, n]`."""
        found = [record.metrics["predictions"] for record in self.records]
        return np.stack([numbers(p[kind]) == numbers(p["labels"]) for p in found])

    def percent(self, kind: str = "test") -> tuple[float, float, float]:
        """Accuracy in per cent with its 95 % interval, over examples and seeds."""
        value, low, high = stats.bootstrap_interval(self.right(kind))
        return (100 * value, 100 * low, 100 * high)

    def mean(self, path: str) -> float:
        """The mean of a metric over seeds."""
        return float(np.mean(self.records.values(path)))

    def over(self, probe: "Cell") -> stats.Difference:
        """The difference to the probe in points, paired by examples."""
        own = self.right()
        other = np.broadcast_to(probe.right()[:1], own.shape)
        gap = stats.paired_bootstrap(own, other)
        return stats.Difference(
            100 * gap.difference, 100 * gap.low, 100 * gap.high, gap.share_not_positive
        )


Grid = dict[tuple[str, str], Cell]


def figures(grid: Grid) -> list[Block]:
    """Accuracy, the places that the masks keep, and loss curves."""
    series = {
        name: [cell.percent() if (cell := grid.get((m, t))) else None for t in TITLES]
        for m, name in {**METHODS, "probe": "probe"}.items()
    }
    groups = [title.replace(" ", "\n", 1) for title in TITLES.values()]
    draw = functools.partial(
        bars_with_intervals, groups, series, ylabel="test accuracy, %"
    )
    found: list[Block] = [
        Figure(
            draw,
            "Test accuracy by task and method, with 95 % intervals.",
            "; ".join(
                f"{name}: "
                + ", ".join(f"{v[0]:.1f}" if v else "not run" for v in values)
                for name, values in series.items()
            ),
        )
    ]
    masked = [grid["lori-s", task] for task in TITLES if ("lori-s", task) in grid]
    if masked:
        found += _mask_figures(grid, masked)
    for task, title in TITLES.items():
        lines = {
            name: _curve(grid[method, task])
            for method, name in METHODS.items()
            if (method, task) in grid
        }
        if lines:
            found.append(
                Figure(
                    functools.partial(curves, lines, xlabel="step", ylabel="loss"),
                    f"Training loss, {title}: means over neighbouring steps.",
                    _ends(lines),
                )
            )
    return found


def _mask_figures(grid: Grid, masked: Sequence[Cell]) -> list[Block]:
    """Where LoRI's masks kept their entries."""
    by_layer = np.mean([_kept(cell) for cell in masked], axis=0)
    layers = [f"layer {i + 1}" for i in range(len(by_layer))]
    names = list(PROJECTIONS.values())
    rows = [TITLES[task] for task in TITLES if ("lori-s", task) in grid]
    by_task = [_kept(cell).mean(axis=0) for cell in masked]
    density = masked[0].records[0].config["density"]
    note = (
        f"Share, in per cent, of each matrix's entries of B that LoRI's mask kept; "
        f"spread evenly it would be {100 * density:g} everywhere."
    )

    def alt(values: Any, labels: Sequence[str]) -> str:
        i, j = np.unravel_index(np.argmax(values), np.shape(values))
        return f"Most are kept at {labels[int(i)]}, {names[int(j)]}."

    return [
        Figure(
            functools.partial(heatmap, by_layer, layers, names, digits=1),
            f"{note} Mean over tasks, by layer and projection.",
            alt(by_layer, layers),
        ),
        Figure(
            functools.partial(heatmap, by_task, rows, names, digits=1),
            f"{note} By task and projection, mean over layers.",
            alt(by_task, rows),
        ),
    ]


def _kept(cell: Cell) -> np.ndarray:
    """Kept shares in per cent, `[layers, projections]`, mean over seeds."""
    found = []
    for record in cell.records:
        kept = record.metrics["kept"]
        layers = sorted(kept, key=int)
        found.append([[kept[i][p] for p in PROJECTIONS] for i in layers])
    return 100 * np.mean(found, axis=0)


def _curve(cell: Cell) -> tuple[np.ndarray, np.ndarray]:
    """Steps, and the loss averaged over neighbours and seeds."""
    loss = np.mean([record.series["loss"] for record in cell.records], axis=0)
    width = min(SMOOTH, 1 + len(loss) // SMOOTH)
    smooth = np.convolve(loss, np.full(width, 1 / width), mode="valid")
    return np.arange(len(smooth)) + (width + 1) / 2, smooth


def _ends(lines: dict[str, tuple[np.ndarray, np.ndarray]]) -> str:
    """Says where curves start and end."""
    return "; ".join(f"{n}: {y[0]:.3f} to {y[-1]:.3f}" for n, (_, y) in lines.items())
