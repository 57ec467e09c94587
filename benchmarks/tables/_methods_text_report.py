"""What the table of all adapter families shows."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.families import FAMILIES
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

TASKS = ("trec", "sentiment_movie")
TITLES = SUITES["tasks"]
BASE = "lora"
VARIANTS = (
    "rslora", "lora-plus", "dora", "adalora", "pissa", "olora", "orthogonal", "eva",
)  # fmt: skip
SMALL = ("ia3", "bitfit", "norms")
NETWORKS = ("houlsby", "pfeiffer", "parallel")
PROMPT = "prompt: its rows stand below the adapted layers"
Cells = dict[str, Rights | None]


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    cells: Cells = {
        name: words.of_singles(records.where(method=name), tasks_of(records))
        for name in FAMILIES
    }
    return [
        Heading("Every adapter family at one budget"),
        words.hypotheses(
            expected(cells),
            "All families: the hypotheses written down before the run.",
        ),
        _table(records, cells),
        Text(_reduced(records)),
    ]


def tasks_of(records: Records) -> Sequence[str]:
    """The tasks that were run; all where none was."""
    found = {r.config.get("task") for r in records}
    return [task for task in TASKS if task in found or not found]


def expected(cells: Cells) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def claims(names: Iterable[str], base: str, test: words.Test) -> list[Claim]:
        return [
            Claim(
                f"{FAMILIES[name].title} minus {FAMILIES[base].title}",
                words.difference(cells[name], cells[base]),
                test,
            )
            for name in names
        ]

    budget = [name for name, own in FAMILIES.items() if not (own.own or own.most)]
    return [
        Hypothesis(
            "M1",
            "LoRA's variants and starts are within a point of it",
            claims(VARIANTS, BASE, words.within),
        ),
        Hypothesis(
            "M2",
            "LoRA is not worse than full fine-tuning",
            claims([BASE], "full", words.no_cost),
        ),
        Hypothesis(
            "M3",
            "every family at the budget beats the head alone",
            claims(budget, "probe", words.above),
        ),
        Hypothesis(
            "M4",
            "(IA)3, BitFit and layer norms are worse than LoRA",
            claims(SMALL, BASE, words.below),
        ),
        Hypothesis(
            "M5",
            "a prefix is worse than LoRA, bottlenecks are not",
            [
                *claims(["prefix"], BASE, words.below),
                *claims(NETWORKS, BASE, words.no_cost),
            ],
        ),
    ]


def _table(records: Records, cells: Cells) -> Table:
    tasks = tasks_of(records)
    rows: list[list[Any]] = []
    sources: list[Any] = []
    for name, family in FAMILIES.items():
        known = records.where(method=name)
        rows.append(
            [family.group, family.title, *_cells(name, known, cells, len(tasks))]
        )
        sources.append(list(known))
        if name == "prefix":
            rows.append([family.group, PROMPT, *[words.NONE] * (len(tasks) + 5)])
            sources.append(None)
    columns = [
        "", "family", "trained", "mean, %", *(f"{TITLES[t]}, %" for t in tasks),
        "minus LoRA", "ms a step", "rates chosen",
    ]  # fmt: skip
    return Table(
        columns,
        rows,
        caption="All families, at about as many trained numbers where that can be "
        "chosen.",
        notes=[
            "Test accuracy with 95 % bootstrap intervals over texts and seeds; "
            "differences paired, in points, over both tasks. Trained: the head left "
            "out, the mean over runs. Three learning rates for every family and task, "
            "chosen on validation losses of a seed of its own; a star marks an end of "
            "the grid, where a better rate may lie outside. Time: processor time, the "
            "median over runs of a whole run by its steps; LoRI-S's second stage alone."
        ],
        align="llrl" + "l" * (len(tasks) + 1) + "rl",
        digits=dict.fromkeys(columns, 1),
        sources=sources,
    )


def _cells(name: str, known: Records, cells: Cells, tasks: int) -> list[Any]:
    own = cells[name]
    if own is None:
        return [None] * (tasks + 5)
    minus = words.NONE
    if name != BASE:
        minus = words.written(words.difference(own, cells[BASE]))
    return [
        round(float(np.mean(known.values("trained")))),
        *own.percents(),
        minus,
        1e3 * float(np.median(known.values("seconds_per_step/processor"))),
        words.rates(known, TASKS),
    ]


def _reduced(records: Records) -> str:
    if not len(records):
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    return words.budget(records[0].config, LENGTHS["tasks"]) + f"Seeds {seeds}."
