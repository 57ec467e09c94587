"""What the table of LoRA's own questions shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study import methods as ways
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lora_questions_measure import DIRECTIONS, PROJECTIONS
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

TASKS = ("trec", "sentiment_movie")
TITLES = SUITES["tasks"]
BEST = "query-value-r4"
SINGLE = ("query-r8", "key-r8", "value-r8", "out-r8")
KINDS = {
    "other seed, change": "changes, other seed",
    "same seed, change": "changes, same seed",
    "other seed, A": "A, other seed",
    "same seed, A": "A, same seed",
    "random A": "a random A",
}
CHANGES = {
    "all-r4": "LoRA, rank 4, all six",
    "all-r64": "LoRA, rank 64, all six",
    "full": "full fine-tuning",
}
PUBLISHED = (
    "change",
    "without its part along the weight",
    "random, of the same norms",
)
COLUMNS = (
    "relative", "cosine", "effective", "stable",
    "amplification, 4", "amplification", "amplification, random",
    "amplification, own",
)  # fmt: skip
Cells = dict[str, Rights | None]


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    cells: Cells = {
        name: words.of_singles(records.where(method=name), _tasks(records))
        for name in ways.QUESTIONS
    }
    return [
        Heading("LoRA's own questions"),
        words.hypotheses(
            of_accuracy(cells),
            "Which weights and which rank: the hypotheses written down before the run.",
        ),
        verdicts(records),
        Heading("Which weights, at about as many numbers"),
        _places(records, cells),
        Heading("Which rank"),
        _ranks(records, cells),
        Heading("What two ranks, and two seeds, share"),
        _directions(records),
        Heading("A change beside its weight"),
        _changes(records),
        Text(_reduced(records)),
    ]


def _tasks(records: Records) -> Sequence[str]:
    found = {r.config.get("task") for r in records if "method" in r.config}
    return [task for task in TASKS if task in found or not found]


def of_accuracy(cells: Cells) -> list[Hypothesis]:
    """The hypotheses that intervals of accuracy decide."""
    names = ways.QUESTIONS
    places = [
        Claim(
            f"{names[BEST].title} minus {names[name].title}",
            words.difference(cells[BEST], cells[name]),
            words.no_cost,
        )
        for name in SINGLE
    ]
    ranks = Claim(
        "rank 1 minus rank 64",
        words.difference(cells["query-value-r1"], cells["query-value-r64"]),
        words.within,
    )
    return [
        Hypothesis(
            "Q1",
            "query and value together are not worse than any single projection of "
            "attention",
            places,
        ),
        Hypothesis("Q2", "rank 1 of query and value is as good as rank 64", [ranks]),
    ]


def verdicts(records: Records) -> Table:
    """The hypotheses that measured numbers decide."""
    rows = [
        ["Q3: another seed's change shares the first direction, not the eighth",
         *_judged(*_third(records))],
        ["Q4: rank 4 amplifies more than twice, and more than rank 64",
         *_judged(*_fourth(records))],
        ["Q5: full fine-tuning's change is of high rank, and the published one is no "
         "copy of its weight", *_judged(*_fifth(records))],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="What a change is: the hypotheses written down before the run.",
        notes=["Means over layers, seeds and tasks; supported: every number fits."],
        align="lll",
    )


def _judged(fits: list[bool], numbers: str | None) -> list[str | None]:
    if not fits:
        return [None, None]
    return ["supported" if all(fits) else "contradicted", numbers]


def _third(records: Records) -> tuple[list[bool], str | None]:
    shares = [_share(records, name, "other seed, change") for name in PROJECTIONS]
    known = [own for own in shares if own is not None]
    fits = [test for own in known for test in (own[0] > 0.5, own[-1] < 0.25)]
    written = [
        f"{name}: first {own[0]:.2f}, last {own[-1]:.2f}"
        for name, own in zip(PROJECTIONS, known, strict=False)
    ]
    return fits, "; ".join(written) or None


def _fourth(records: Records) -> tuple[list[bool], str | None]:
    small, large = (_mean(records, n, "amplification") for n in ("all-r4", "all-r64"))
    if small is None or large is None:
        return [], None
    return [small > 2, small > large], f"rank 4 {small:.1f}, rank 64 {large:.1f}"


def _fifth(records: Records) -> tuple[list[bool], str | None]:
    own = _mean(records, "full", "effective")
    found = records.get("published")
    if own is None or found is None:
        return [], None
    cosine = found.metrics["change"]["cosine"]
    fits = [own > 0.5, abs(cosine) < 0.1]
    return fits, f"effective rank {own:.2f} of the width, cosine {cosine:.3f}"


def _share(records: Records, projection: str, kind: str) -> list[float] | None:
    rows = [r.metrics[projection][kind] for r in records.where(kind="directions")]
    return np.mean(rows, axis=0).tolist() if rows else None


def _mean(records: Records, way: str, column: str) -> float | None:
    rows = [r.metrics[way][column] for r in records.where(kind="change")]
    return float(np.mean(rows)) if rows else None


def _places(records: Records, cells: Cells) -> Table:
    names = [f"{name}-r{rank}" for name, (_, _, rank) in ways.PLACES.items()]
    return _accuracies(records, cells, names, BEST, "Where LoRA is put.")


def _ranks(records: Records, cells: Cells) -> Table:
    names = [f"{n}-r{r}" for n in ("query-value", "all") for r in ways.RANKS]
    return _accuracies(records, cells, names, "query-value-r64", "How many ranks.")


def _accuracies(
    records: Records, cells: Cells, names: list[str], base: str, caption: str
) -> Table:
    tasks = _tasks(records)
    rows: list[list[Any]] = []
    for name in names:
        own, known = cells[name], records.where(method=name)
        title = ways.QUESTIONS[name].title
        if own is None:
            rows.append([title, None, *[None] * (len(tasks) + 3)])
            continue
        minus = words.NONE
        if name != base:
            minus = words.written(words.difference(own, cells[base]))
        trained = known[0].metrics["trained"]
        rates = words.rates(known, tasks)
        rows.append([title, trained, *own.percents(), minus, rates or words.NONE])
    columns = [
        "adapted", "trained", "mean, %", *(f"{TITLES[t]}, %" for t in tasks),
        f"minus {ways.QUESTIONS[base].title}", "rates chosen",
    ]  # fmt: skip
    return Table(
        columns,
        rows,
        caption=caption,
        notes=[
            "Test accuracy with 95 % bootstrap intervals over texts and seeds; "
            "differences paired, in points. Three learning rates for every row, chosen "
            "on validation; a star marks an end of the grid, where a better rate may "
            "lie outside."
        ],
        align="lr" + "l" * (len(tasks) + 3),
        digits=dict.fromkeys(columns, 1),
    )


def _directions(records: Records) -> Table:
    columns = ["projection", "of", *(str(i) for i in range(1, DIRECTIONS + 1))]
    rows = []
    for name in PROJECTIONS:
        for kind, title in KINDS.items():
            shares = _share(records, name, kind)
            cells = [None] * DIRECTIONS if shares is None else shares
            rows.append([name, title, *cells, *["–"] * (DIRECTIONS - len(cells))])
    return Table(
        columns,
        rows,
        caption="Of each direction of a rank-8 adapter, how much lies in the first "
        "eight of a rank-64 adapter.",
        notes=[
            "Input directions, by singular value, means over layers, tasks and pairs "
            "of seeds. Adapters of one seed start from the same A, so that what they "
            "share may be their start."
        ],
        align="ll" + "r" * DIRECTIONS,
        digits=2,
    )


def _changes(records: Records) -> Table:
    rows: list[list[Any]] = [
        [title, *(_mean(records, name, column) for column in COLUMNS)]
        for name, title in CHANGES.items()
    ]
    found = records.get("published")
    for name in PUBLISHED:
        own = None if found is None else found.metrics[name]
        cells = [None if own is None else own[column] for column in COLUMNS]
        rows.append([f"published fine-tune: {name}", *cells])
    columns = [
        "", "norm over the weight's", "cosine with it", "effective rank",
        "stable rank", "amplification, first 4", "amplification",
        "for random directions", "for the weight's own",
    ]  # fmt: skip
    return Table(
        columns,
        rows,
        caption="A change beside the weight that it is added to.",
        notes=[
            "Ranks as shares of the width. Amplification: |D| over |U^T W V| with U "
            "and V from the change (its first 4 directions, or as many as its rank), "
            "from a random matrix, or from the weight. Means over matrices."
        ],
        align="l" + "r" * len(COLUMNS),
        digits={c: 3 for c in columns[1:5]} | {c: 2 for c in columns[5:]},
    )


def _reduced(records: Records) -> str:
    own = [r for r in records if "method" in r.config]
    if not own:
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    return words.budget(own[0].config, LENGTHS["tasks"]) + f"Seeds {seeds}."
