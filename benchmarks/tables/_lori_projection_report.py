"""What the table of projections shows: each draw of A, alone and merged."""

from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.methods import PROJECTION
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

TITLES = SUITES["tasks"]
FIRST = "lori-d"  # uniform, one for each task: as the authors' code
Cells = dict[str, Rights | None]


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    alone: Cells = {
        name: words.of_singles(records.where(kind="single", method=name), TITLES)
        for name in PROJECTION
    }
    merged: Cells = {
        name: words.of_merges(records.where(kind="merge", method=name), TITLES)
        for name in PROJECTION
    }
    return [
        Heading("How A is drawn"),
        words.hypotheses(
            expected(alone, merged),
            "Draws of A: the hypotheses written down before the run.",
        ),
        _table(records, alone, merged),
        Text(_reduced(records)),
    ]


def expected(alone: Cells, merged: Cells) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""
    apart = [name for name, own in PROJECTION.items() if not own.shared_a]
    draws = [
        Claim(
            f"{PROJECTION[name].title.split(',')[0]} minus uniform, {kind}",
            words.difference(cells[name], cells[FIRST]),
            words.within,
        )
        for kind, cells in (("alone", alone), ("merged", merged))
        for name in apart
        if name != FIRST
    ]
    shared = [
        Claim(
            f"{PROJECTION[name].title.split(',')[0]}, shared minus apart, merged",
            words.difference(merged[f"{name}-shared"], merged[name]),
            words.below,
        )
        for name in apart
    ]
    return [
        Hypothesis("H14", "no draw differs from another, alone or merged", draws),
        Hypothesis(
            "H15", "merged, one A for all tasks is worse than one for each", shared
        ),
    ]


def _table(records: Records, alone: Cells, merged: Cells) -> Table:
    """A row for each draw."""
    columns = (
        "A", "alone, %", "minus uniform", "merged, %", "minus uniform, merged",
        "scale", "|cosine|", "overlap",
    )  # fmt: skip
    rows: list[list[Any]] = []
    for name, method in PROJECTION.items():
        one, two = alone[name], merged[name]
        met = records.where(kind="interference", method=name)
        scales = records.where(kind="merge", method=name)
        rows.append(
            [
                method.title,
                None if one is None else one.percents()[0],
                _minus(name, alone),
                None if two is None else two.percents()[0],
                _minus(name, merged),
                f"{scales[0].metrics['scale']:g}" if len(scales) else None,
                _mean(met, "cosine"),
                _mean(met, "overlap"),
            ]
        )
    notes = [
        "LoRI-D. `alone`: each adapter on its own task, over the texts of all tasks. "
        "`merged`: the sum of the four at one scale from validation, each task with "
        "its own head. `minus uniform`: paired difference to the uniform A, one for "
        "each task. `|cosine|`: of two tasks' changes of a weight, and `overlap`: "
        "largest cosine of the principal angles of two tasks' A; means over pairs, "
        "weights and seeds. 95 % bootstrap intervals.",
    ]
    return Table(
        columns,
        rows,
        caption="How the frozen A is drawn, alone and merged.",
        align="lllllrrr",
        digits={"alone, %": 1, "merged, %": 1, "|cosine|": 3, "overlap": 3},
        notes=notes,
    )


def _minus(name: str, cells: Cells) -> str | None:
    if name == FIRST:
        return words.NONE
    return words.written(words.difference(cells[name], cells[FIRST]))


def _mean(records: Records, path: str) -> float | None:
    values = records.values(path) if len(records) else []
    return float(sum(values) / len(values)) if len(values) else None


def _reduced(records: Records) -> str:
    """What was small."""
    own = [r for r in records if r.config.get("kind") == "single"]
    if not own:
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    return words.budget(own[0].config, LENGTHS["tasks"]) + f"Seeds {seeds}."
