"""The figures of the table of merges."""

import functools

import numpy as np

from benchmarks.report import Block, Figure, bars_with_intervals
from benchmarks.study.scores import percent
from benchmarks.tables._lori_merging_scores import ADAPTERS, Board
from benchmarks.tables._lori_words import SHORT

FAMILIES = {
    "sums, and sums of a given rank": ("concat", "linear", "svd", "lego"),
    "merges that trim, drop or elect": (
        "magnitude", "ties", "dare", "dare-ties", "della", "breadcrumbs",
    ),
    "merges in subspaces, and with training data": (
        "knots", "core", "tsv", "iso", "iso-cts", "regmean", "fisher",
    ),
}  # fmt: skip


def bars(board: Board, suite: str) -> list[Block]:
    """Merged accuracy by merge and adapter, one figure for each family of merges."""
    base = None
    note = ""
    if board.joint is not None:
        base = 100 * float(np.mean(board.joint.pooled()))
        note = " Dashed: one LoRA trained on all tasks."
    found: list[Block] = []
    for family, merges in FAMILIES.items():
        series = {
            SHORT[name]: [
                None if own is None else percent(own.pooled())
                for own in (board.merged.get((merge, name)) for merge in merges)
            ]
            for name in ADAPTERS
        }
        if not any(value for values in series.values() for value in values):
            continue
        groups = [merge.replace("-", "-\n") for merge in merges]
        draw = functools.partial(
            bars_with_intervals,
            groups,
            series,
            ylabel="mean test accuracy, %",
            baseline=base,
        )
        alt = "; ".join(
            f"{name}: "
            + ", ".join(
                f"{merge} {value[0]:.1f}" if value else f"{merge} not run"
                for merge, value in zip(merges, values, strict=True)
            )
            for name, values in series.items()
        )
        caption = f"Merged accuracy, {suite}: {family}, 95 % intervals.{note}"
        found.append(Figure(draw, caption, alt))
    return found
