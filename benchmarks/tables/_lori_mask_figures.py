"""The figures of the table of masks."""

import functools
from collections.abc import Mapping

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Figure, curves, heatmap
from benchmarks.study.methods import METHODS
from benchmarks.study.tasks import SUITES
from benchmarks.tables._lori_words import Rights
from benchmarks.tables._quickstart_figures import PROJECTIONS

TITLES = SUITES["tasks"]


def density_curves(cells: Mapping[float, Rights]) -> list[Block]:
    """Accuracy against density, a curve for each task; none without two densities."""
    densities = sorted(cells)
    if len(densities) < 2:
        return []
    found = [cells[density].percents() for density in densities]
    means = np.array(found)[:, 1:]  # [densities, tasks, (value, low, high)]
    lines = {
        TITLES[task]: (densities, *means[:, i].T)
        for i, task in enumerate(cells[densities[0]].tasks)
    }
    ends = "; ".join(
        f"{title}: {y[0]:.1f} at {densities[0]:g}, {y[-1]:.1f} at {densities[-1]:g}"
        for title, (_, y, *_) in lines.items()
    )
    draw = functools.partial(
        curves, lines, xlabel="density of B", ylabel="test accuracy, %", logx=True
    )
    caption = "Test accuracy against the density of LoRI-S, with 95 % intervals."
    return [Figure(draw, caption, ends)]


def kept_shares(records: Records) -> np.ndarray | None:
    """Shares of B that masks keep, `[tasks, layers, projections]` in per cent."""
    found = []
    for task in TITLES:
        kept = records.where(task=task).values("kept")
        if not kept:
            return None
        shares = [
            [[own[layer][p] for p in PROJECTIONS] for layer in sorted(own, key=int)]
            for own in kept
        ]
        found.append(np.mean(shares, axis=0))
    return 100 * np.array(found)


def kept_maps(records: Records) -> list[Block]:
    """Where LoRI's masks keep entries: by layer, and by task."""
    masked = records.where(method="lori-s")
    shares = kept_shares(masked)
    if shares is None:
        return []
    layers = sorted(masked[0].metrics["kept"], key=int)
    columns = list(PROJECTIONS.values())
    parts = {
        "Mean over tasks and seeds, by layer and projection.": (
            shares.mean(axis=0),
            [f"layer {int(layer) + 1}" for layer in layers],
        ),
        "By task and projection, mean over layers and seeds.": (
            shares.mean(axis=1),
            list(TITLES.values()),
        ),
    }
    note = (
        "Share, in per cent, of each matrix's entries of B that LoRI's mask keeps; "
        f"spread evenly it would be {100 * METHODS['lori-s'].density:g} everywhere."
    )
    found: list[Block] = []
    for text, (values, rows) in parts.items():
        i, j = np.unravel_index(np.argmax(values), values.shape)
        alt = (
            f"Most, {values.max():.1f} per cent, at {rows[int(i)]}, {columns[int(j)]}."
        )
        draw = functools.partial(heatmap, values, rows, columns, digits=1)
        found.append(Figure(draw, f"{note} {text}", alt))
    return found
