"""What the table of masks shows: verdicts, tables, figures, sources."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.methods import DENSITIES, HEADLINE, METHODS, SWEEP
from benchmarks.study.scores import judgement, numbers, signed
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_mask_figures import density_curves, kept_maps
from benchmarks.tables._lori_words import NONE, Claim, Hypothesis, Rights

TITLES = SUITES["tasks"]
SPARSE = "lori-s"
NAMES = {name: own.title for name, own in {**HEADLINE, **SWEEP}.items()}
# Densities in order; LoRI-D is LoRI-S that keeps all, and LoRI-S itself keeps .1.
BY_DENSITY = dict(
    sorted(
        {
            1.0: "lori-d",
            METHODS[SPARSE].density: SPARSE,
            **{density: f"density-{density:g}" for density in DENSITIES},
        }.items(),
        reverse=True,
    )
)
BY_SCOPE = {
    "all adapted weights (LoRI-S)": SPARSE,
    "each projection": "scope-projection",
    "each layer": "scope-layer",
    "each matrix": "scope-matrix",
}
OTHER_MASKS = ("random-leaf", "random", "gradient", "other-task")
Cells = Mapping[str, Rights | None]


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    cells = {n: words.of_singles(records.where(method=n), TITLES) for n in NAMES}
    start = words.of_singles(records.where(method="start"), TITLES)
    cells["start"] = None if start is None else start._replace(seeds=None)
    densities = {
        density: own
        for density, name in BY_DENSITY.items()
        if (own := _shared(cells, BY_DENSITY.values())[name]) is not None
    }
    return [
        Heading("Does the mask matter?"),
        Text(verdict(cells)),
        words.hypotheses(
            expected(cells), "Masks: the hypotheses written down before the run."
        ),
        _headline(records, cells),
        Heading("Densities and scopes"),
        _sweep(records, cells, BY_DENSITY, "density"),
        *density_curves(densities),
        _sweep(records, cells, BY_SCOPE, "scope"),
        Heading("Where the mask keeps entries"),
        *(kept_maps(records) or [Text("Not run.")]),
        Heading("Learning rates"),
        _rates(records),
        Heading("What was reduced, and the data"),
        _sources(records),
    ]


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


def expected(cells: Cells) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def claim(one: str, two: str, test: words.Test) -> Claim:
        found = words.difference(cells.get(one), cells.get(two))
        short = [NAMES[name].split(":")[0] for name in (one, two)]
        return Claim(f"{short[0]} minus {short[1]}", found, test)

    flat = [name for density, name in BY_DENSITY.items() if 0.1 < density <= 0.9]
    masks = (SPARSE, *OTHER_MASKS)
    found = {
        "LoRI-S and LoRI-D are within 1 point of LoRA on the mean of the tasks": [
            claim(name, "lora", words.within) for name in (SPARSE, "lori-d")
        ],
        "LoRI's mask beats a random one of the same counts": [
            claim(SPARSE, "random-leaf", words.above)
        ],
        "the smallest |B| is the worst mask": [
            claim("smallest", name, words.below) for name in masks
        ],
        "a drawn-anew A costs nothing": [claim("redrawn", SPARSE, words.no_cost)],
        "another task's mask is worse than the task's own": [
            claim("other-task", SPARSE, words.below)
        ],
        "accuracy is flat from density .9 to .1 and falls at .01": [
            *(claim(name, SPARSE, words.within) for name in flat),
            claim("density-0.01", SPARSE, words.below),
        ],
        "LoRA at twice the steps beats LoRI-S, whose two stages cost as much": [
            claim("lora-twice", SPARSE, words.above)
        ],
    }
    return [
        Hypothesis(f"H{i + 1}", text, claims)
        for i, (text, claims) in enumerate(found.items())
    ]


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
    columns = (
        column, "mean, %", "minus LoRI-S", *(f"{t}, %" for t in TITLES.values()),
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
    used = f" Seeds that all have: {', '.join(map(str, seeds))}." if seeds else ""
    return Table(
        columns,
        rows,
        caption=f"{about} Test accuracy, 95 % bootstrap intervals.{used}",
        align="lll" + "l" * len(TITLES) + "r",
        digits=1,
        sources=sources,
    )


def _rates(records: Records) -> Table:
    """The rates chosen, and the validation losses of those tried."""
    rows, sources, trials = [], [], set()
    for name, title in NAMES.items():
        found = records.where(method=name)
        cells: list[Any] = []
        for task in TITLES:
            own = [r for r in found.where(task=task) if r.get("rates_tried")]
            cells.append(_tried(own[0]) if own else None)
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
