"""What the table of masks shows: verdicts, tables, figures, sources."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.methods import HEADLINE, METHODS, SWEEP
from benchmarks.study.scores import judgement, numbers, signed
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_hypotheses import (
    BY_DENSITY,
    NAMES,
    SPARSE,
    Cells,
    of_masks,
)
from benchmarks.tables._lori_mask_figures import density_curves, kept_maps
from benchmarks.tables._lori_words import NONE, Rights

TITLES = SUITES["tasks"]
BY_SCOPE = {
    "all adapted weights (LoRI-S)": SPARSE,
    "each projection": "scope-projection",
    "each layer": "scope-layer",
    "each matrix": "scope-matrix",
}


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    cells = {n: _rights(records, n, TITLES) for n in HEADLINE}
    start = _rights(records, "start", TITLES)
    cells["start"] = None if start is None else start._replace(seeds=None)
    tasks = swept_tasks(records)
    swept = {
        name: _rights(records, name, tasks)
        for name in (*BY_DENSITY.values(), *BY_SCOPE.values())
    }
    shared = _shared(swept, BY_DENSITY.values())
    densities = {
        d: own for d, n in BY_DENSITY.items() if (own := shared[n]) is not None
    }
    return [
        Heading("Does the mask matter?"),
        Text(verdict(cells)),
        words.hypotheses(
            of_masks(cells, swept),
            "Masks: the hypotheses written down before the run; H6 on "
            f"{', '.join(TITLES[task] for task in tasks)}.",
        ),
        _headline(records, cells),
        Heading("Densities and scopes"),
        _sweep(records, swept, BY_DENSITY, "density"),
        *density_curves(densities),
        _sweep(records, swept, BY_SCOPE, "scope"),
        Heading("Where the mask keeps entries"),
        *(kept_maps(records) or [Text("Not run.")]),
        Heading("Learning rates"),
        _rates(records),
        Heading("What was reduced, and the data"),
        _sources(records),
    ]


def _rights(records: Records, name: str, tasks: Iterable[str]) -> Rights | None:
    """What a method gets right, on the seeds that have all of the tasks."""
    return words.of_singles(records.where(method=name), tasks)


def swept_tasks(records: Records) -> tuple[str, ...]:
    """The tasks that densities and scopes were run on; all where none was run."""
    found = {r.config["task"] for r in records if r.config.get("method") in SWEEP}
    return tuple(task for task in TITLES if task in found or not found)


def verdict(cells: Cells) -> str:
    """Says for each method whether it differs from LoRI-S; computed."""
    found = {
        name: words.difference(cells.get(name), cells[SPARSE])
        for name in HEADLINE
        if name != SPARSE
    }
    known = {name: own for name, own in found.items() if own is not None}
    if not known:
        return "Nothing to compare yet."
    parts = [
        f"{NAMES[name]}: {judgement(own)} ({signed(own)})"
        for name, own in known.items()
    ]
    return (
        "Each method minus LoRI-S in points of accuracy, over the texts of all four "
        f"tasks: {words.tally(list(known.values()))} (95 % intervals of the paired "
        f"difference).\n\n{'; '.join(parts)}."
    )


def _headline(records: Records, cells: Cells) -> Table:
    """Every method of the comparison, with what it costs."""
    columns = (
        "method", "mean, %", "minus LoRI-S", *(f"{t}, %" for t in TITLES.values()),
        "macro F1", "steps", "trained", "seconds",
    )  # fmt: skip
    rows, sources = [], []
    titles = {"start": "the start: probe's head, bare encoder", **HEADLINE}
    for name, own in titles.items():
        title = own if isinstance(own, str) else own.title
        rights, found = cells[name], list(records.where(method=name))
        sources.append(found)
        if rights is None:
            rows.append([title, *[None] * (len(columns) - 1)])
            continue
        gap = words.written(words.difference(rights, cells[SPARSE]))
        mean, *each = rights.percents()
        cost = [NONE] * 3 if name == "start" else _cost(name, found)
        score = float(np.mean([_macro_f1(record) for record in found]))
        over = NONE if name == SPARSE else gap
        rows.append([title, mean, over, *each, score, *cost])
    return Table(
        columns,
        rows,
        caption=_caption(cells),
        align="lll" + "l" * len(TITLES) + "rrrr",
        digits=dict.fromkeys(columns, 1) | {"macro F1": 3},
        notes=_notes(cells),
        sources=sources,
    )


def _cost(name: str, found: list[Record]) -> list[Any]:
    """Steps of its stages, trained numbers, and seconds."""
    config, method = found[0].config, METHODS[name]
    own = config["steps"] * method.steps
    first = f"{config['steps']} + " if method.mask not in ("", "gradient") else ""
    trained = round(float(np.mean([r.metrics["trained"] for r in found])))
    return [f"{first}{own}", trained, float(np.median([r.seconds for r in found]))]


def _macro_f1(record: Record) -> float:
    """The macro F1 of a record; of the start from its predictions."""
    if (own := record.get("macro_f1")) is not None:
        return own
    classes = len(record.metrics["data"]["classes"])
    kept = record.metrics["predictions"]
    guess, labels = numbers(kept["test"]), numbers(kept["labels"])
    return stats.macro_f1(guess, labels, classes=classes)


def _caption(cells: Cells) -> str:
    """Names what is shown, and the seeds."""
    text = (
        "Masks: test accuracy with 95 % bootstrap intervals over texts and seeds, and "
        "paired differences to LoRI-S over the texts of all tasks."
    )
    own = cells[SPARSE]
    if own is None or own.seeds is None:
        return text
    return f"{text} Seeds of LoRI-S: {', '.join(map(str, own.seeds))}."


def _notes(cells: Cells) -> list[str]:
    """What columns mean, and how much room the start leaves."""
    notes = [
        "`trained`: numbers of the adapter that are trained, mean over tasks and "
        "seeds; heads are trained too, by all methods alike, and not counted. `steps`: "
        "a mask that is read off a LoRI-D run, or has its counts, costs that run "
        "too: first its steps, then the method's own. `seconds`: wall time of a row "
        "with its scores, the median over tasks and seeds; the LoRI-D run is not in "
        "it, compilation and the search for the rate are in a few rows. `macro F1`: "
        "mean over tasks."
    ]
    start = cells["start"]
    if start is not None:
        room = [
            f"{title} {100 - 100 * start.tasks[task].mean():.1f}"
            for task, title in TITLES.items()
        ]
        notes.append(
            f"Headroom above the start, in points: {', '.join(room)}. Where it is "
            "small, methods cannot lie far apart."
        )
    return notes


def _shared(cells: Cells, names: Any) -> dict[str, Rights | None]:
    """Cells cut to the seeds that all of those that were run have."""
    known = [name for name in names if cells.get(name) is not None]
    kept = dict(
        zip(known, words.aligned(*(cells[name] for name in known)), strict=False)
    )
    return {name: kept.get(name) for name in names}


def _sweep(records: Records, cells: Cells, by: Mapping[Any, str], column: str) -> Table:
    """Densities or scopes, on the seeds that all of them have."""
    tasks = swept_tasks(records)
    columns = (
        column, "mean, %", "minus LoRI-S", *(f"{TITLES[t]}, %" for t in tasks),
        "trained",
    )  # fmt: skip
    shared = _shared(cells, by.values())
    rows, sources, seeds = [], [], ()
    for value, name in by.items():
        rights, found = shared[name], records.where(method=name)
        sources.append(list(found))
        label = f"{value:g}" if isinstance(value, float) else value
        if rights is None:
            rows.append([label, *[None] * (len(columns) - 1)])
            continue
        seeds = rights.seeds or ()
        gap = words.written(words.difference(rights, shared[SPARSE]))
        mean, *each = rights.percents()
        trained = round(float(np.mean(found.values("trained"))))
        over = NONE if name == SPARSE else gap
        rows.append([label, mean, over, *each, trained])
    about = (
        "The density of LoRI-S; 1 is LoRI-D."
        if column == "density"
        else "The scope within which LoRI-S ranks |B|, at the same density."
    )
    names = ", ".join(TITLES[task] for task in tasks)
    used = f" Seeds that all have: {', '.join(map(str, seeds))}." if seeds else ""
    return Table(
        columns,
        rows,
        caption=f"{about} Test accuracy on {names}; 95 % bootstrap intervals.{used}",
        align="lll" + "l" * len(tasks) + "r",
        digits=1,
        sources=sources,
    )


def _rates(records: Records) -> Table:
    """The rates chosen, and the validation losses of those tried."""
    rows, sources, trials, swept = [], [], set(), swept_tasks(records)
    for name, title in NAMES.items():
        found = records.where(method=name)
        cells: list[Any] = []
        for task in TITLES:
            own = [r for r in found.where(task=task) if r.get("rates_tried")]
            out = name in SWEEP and task not in swept
            cells.append(NONE if out else _tried(own[0]) if own else None)
            trials |= {len(r.metrics["rates_tried"]) for r in own}
        rows.append([title, *cells])
        sources.append(list(found))
    number = " or ".join(map(str, sorted(trials))) or "no"
    caption = (
        "The learning rate chosen for each task, and in brackets the validation loss "
        f"of each rate tried, from the smallest rate up: {number} trials for every "
        "method and task, in full, with a seed that no result has."
    )
    columns = ("method", *TITLES.values())
    return Table(columns, rows, caption=caption, align="lllll", sources=sources)


def _tried(record: Record) -> str:
    """The rate of a record, and the losses; stored infinities are written so."""
    tried = [x if x < 1e29 else math.inf for x in record.metrics["rates_tried"]]
    losses = ", ".join(f"{loss:.3f}" for loss in tried)
    return f"{record.metrics['rate']:g} ({losses})"


def _sources(records: Records) -> Table:
    """The data, and what a bigger budget would do otherwise."""
    starts = {r.config["task"]: r for r in records.where(method="start")}
    own = [r for r in records if r.config.get("method") in METHODS]
    if not own:
        return words.sources(TITLES, starts, ["Nothing was run."])
    notes = [
        words.budget(own[0].config, LENGTHS["tasks"])
        + f"Seeds {', '.join(map(str, sorted({r.seed for r in own})))}. The mean of "
        "tasks is taken over the texts of all of them. No official test sets come "
        "with these data: accuracies can be compared with each other only, and "
        "other models, ranks and budgets may rank methods otherwise."
    ]
    return words.sources(TITLES, starts, notes)
