"""What the quickstart shows: a verdict in words, tables, figures, sources."""

from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import (
    Block,
    Heading,
    Table,
    Text,
)
from benchmarks.tables import _quickstart_chip_report as chip
from benchmarks.tables._quickstart_figures import Cell, Grid, figures
from benchmarks.tables._quickstart_tasks import SPLITS, TITLES, WEIGHTS
from benchmarks.tables._quickstart_train import METHODS

NONE = "–"  # what a row has no place for


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    grid = {
        (method, task): Cell(found)
        for method in ("probe", *METHODS)
        for task in TITLES
        if len(found := records.where(method=method, task=task))
    }
    return [
        Heading("Do the adapters beat a linear probe?"),
        Text(verdict(grid)),
        *(block for task in TITLES for block in _task(grid, task)),
        *chip.blocks(records),
        Heading("Cost"),
        _cost(grid),
        Heading("Figures"),
        *figures(grid),
        Heading("What was reduced, and what to make of it"),
        Text(_reduced(records)),
        Heading("Data and weights"),
        _sources(grid),
    ]


def verdict(grid: Grid) -> str:
    """Says for each task and method whether it beats the probe; computed."""
    lines, tally = [], {"beats": 0, "is below": 0, "cannot be told from": 0}
    for task, title in TITLES.items():
        parts = []
        for method, name in METHODS.items():
            if (method, task) not in grid or ("probe", task) not in grid:
                continue
            gap = grid[method, task].over(grid["probe", task])
            word = judgement(gap)
            tally[word] += 1
            parts.append(f"{name} {word} the probe ({signed(gap)} points)")
        if parts:
            lines.append(f"{title[0].upper()}{title[1:]}: {'; '.join(parts)}.")
    total = sum(tally.values())
    if not total:
        return "Nothing to compare yet."
    head = (
        f"Of {total} comparisons with the tuned probe, {tally['beats']} are won and "
        f"{tally['is below']} lost by more than the 95 % interval of the paired "
        f"difference; in {tally['cannot be told from']} the two cannot be told apart "
        "at this budget."
    )
    return "\n\n".join([head, *lines, *_merge_words(grid)])


def judgement(gap: stats.Difference) -> str:
    """Whether an interval lies above zero, below it, or holds it."""
    if gap.low > 0:
        return "beats"
    return "is below" if gap.high < 0 else "cannot be told from"


def signed(gap: stats.Difference) -> str:
    """Writes a difference with its interval, signs included."""
    return f"{gap.difference:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"


def _merge_words(grid: Grid) -> list[str]:
    """Says what merging costs, on average over the tasks."""
    parts = []
    for method, name in METHODS.items():
        cells = [grid[method, task] for task in TITLES if (method, task) in grid]
        if not cells:
            continue
        alone, merged, off = (
            100 * np.mean([cell.right(kind).mean() for cell in cells])
            for kind in ("test", "merged", "off")
        )
        parts.append(
            f"{name} {alone:.1f} alone, {merged:.1f} merged at weight "
            f"{cells[0].mean('merge_weight'):g}, {off:.1f} with the adapter off"
        )
    text = "Mean accuracy over the tasks, in per cent: "
    return [text + "; ".join(parts) + "."] if parts else []


COLUMNS = (
    "method",
    "accuracy, %",
    "minus probe",
    "macro F1",
    "merged, %",
    "adapter off, %",
    "trained",
    "seconds",
)


def _task(grid: Grid, task: str) -> list[Block]:
    """The table of one task."""
    probe = grid.get(("probe", task))
    rows: list[list[Any]] = [["majority class", *[None] * 7], ["probe", *[None] * 7]]
    sources: list[Any] = [None, None]
    if probe is not None:
        head = probe.mean("majority")
        rows[0][1:] = [f"{100 * head:.1f}", *[NONE] * 6]
        size = int(probe.mean("parameters/head"))
        f1 = probe.mean("macro_f1")
        rows[1][1:] = [probe.percent(), NONE, f1, NONE, NONE, size, NONE]
        sources = [list(probe.records)] * 2
    for method, name in METHODS.items():
        cell = grid.get((method, task))
        rows.append([name, *(_cells(cell, probe) if cell else [None] * 7)])
        sources.append(list(cell.records) if cell else None)
    notes = [
        "`trained`: parameters of adapter and head. `seconds`: for all four tasks at "
        "once, with the search for the rate and compilation. `adapter off`: the "
        "trained head on the bare encoder."
    ]
    digits = dict.fromkeys(COLUMNS, 1) | {"macro F1": 3}
    return [
        Heading(TITLES[task][0].upper() + TITLES[task][1:], 3),
        Table(
            COLUMNS,
            rows,
            align="lllrrrrr",
            digits=digits,
            notes=notes,
            sources=sources,
            caption=_caption(task, probe),
        ),
    ]


def _caption(task: str, probe: Cell | None) -> str:
    """Names the task, its classes and the number of test examples."""
    name = TITLES[task][0].upper() + TITLES[task][1:]
    text = f"{name}: test accuracy with 95 % bootstrap intervals over examples"
    if probe is None:
        return f"{text}."
    facts = probe.records[0].metrics["data"]
    return (
        f"{text}; {facts['sizes']['test']['used']} test examples, "
        f"{len(facts['classes'])} classes: {', '.join(facts['classes'])}."
    )


def _cells(cell: Cell, probe: Cell | None) -> list[Any]:
    """The cells of one method on one task."""
    size = cell.mean("parameters/adapter") + cell.mean("parameters/head")
    return [
        cell.percent(),
        signed(cell.over(probe)) if probe else None,
        cell.mean("macro_f1"),
        100 * float(cell.right("merged").mean()),
        100 * float(cell.right("off").mean()),
        round(size),
        f"{cell.mean('train_seconds'):.0f}",
    ]


def _cost(grid: Grid) -> Table:
    """What each method trains, how long it takes, and what was chosen for it."""
    columns = (
        "method", "adapter, per task", "kept fixed", "head of TREC", "steps",
        "ms per step", "learning rates", "merge weight",
    )  # fmt: skip
    rows, sources = [], []
    for method, name in METHODS.items():
        cells = [grid[method, task] for task in TITLES if (method, task) in grid]
        sources.append([record for cell in cells for record in cell.records])
        if not cells:
            rows.append([name, *[None] * 7])
            continue
        rates = [
            "/".join(f"{rate:g}" for rate in sorted(set(cell.records.values("rate"))))
            for cell in cells
        ]
        first = cells[0]
        rows.append(
            [
                name,
                round(first.mean("parameters/adapter")),
                round(first.mean("parameters/fixed")),
                round(first.mean("parameters/head")),
                round(first.mean("steps")),
                round(1000 * first.mean("step_seconds")),
                ", ".join(rates),
                f"{first.mean('merge_weight'):g}",
            ]
        )
    caption = (
        "Trained and fixed numbers of one adapter; a step takes one batch of each of "
        "the four tasks. Learning rates and merge weight were chosen on validation "
        "data, the rates in the order of the tasks above."
    )
    return Table(columns, rows, caption=caption, align="lrrrrrlr", sources=sources)


def _reduced(records: Records) -> str:
    """Says what a bigger budget would do otherwise; from the configs."""
    found = [r for r in records if r.config.get("method") in METHODS]
    if not found:
        return "Nothing was run."
    c = found[0].config
    seeds = sorted({record.seed for record in found})
    rounds = c["steps"] * c["batch"] / c["train"]
    text = (
        f"Each task is cut to {c['train']:,} training, {c['valid']} validation and "
        f"{c['test']} test examples, the same for every method and the probe; texts "
        f"are cut to {c['edges'][-1]} tokens. Every method has {c['steps']} steps of "
        f"{c['batch']} examples of each task, {rounds:.1f} rounds of the data. Every "
        f"learning rate of {', '.join(f'{r:g}' for r in c['rates'])} runs the first "
        f"{c['trial']} steps; each task goes on with the one of least validation loss. "
        f"The merge takes one weight of {', '.join(f'{w:g}' for w in c['weights'])} "
        f"for all adapters, chosen on validation data.\n\n"
        f"Seeds: {', '.join(map(str, seeds))}. "
    )
    if len(seeds) == 1:
        text += (
            "One seed: the intervals cover the choice of test examples, not the "
            "randomness of training (`--seeds 0 1 2` runs more). "
        )
    return text + (
        "The intervals are not corrected for the number of comparisons. Heads start "
        "from the probe and are trained on with the adapter. LoRI-S starts again from "
        "zero with the random factors of LoRI-D, which the authors redraw. No official "
        "test sets come with these data: accuracies can be compared with each other "
        "only. Scores use weights into which the adapters are merged, which is the "
        "same function up to rounding."
    )


def _sources(grid: Grid) -> Table:
    """Where the data come from, how much was used, and under what licence."""
    rows = []
    for task, title in TITLES.items():
        cell = grid.get(("probe", task))
        if cell is None:
            rows.append([title, *[None] * 5])
            continue
        record: Record = cell.records[0]
        facts = record.metrics["data"]
        sizes = [
            f"{facts['sizes'][s]['used']:,} of {facts['sizes'][s]['of']:,}"
            for s in SPLITS
        ]
        rows.append([title, *sizes, facts["licence"], facts["source"]])
    tiny = any(cell.records[0].config["synthetic"] for cell in grid.values())
    weights = "a tiny random one" if tiny else WEIGHTS
    return Table(
        ("task", "training", "validation", "test", "licence", "source"),
        rows,
        align="lrrrll",
        notes=[f"Encoder: {weights}."],
    )
