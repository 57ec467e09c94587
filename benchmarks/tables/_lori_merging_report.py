"""What the table of merges shows of each suite: verdicts, tables, figures, sources."""

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.study.merges import DENSITY, FISHER_TEXTS, GRAM_TEXTS
from benchmarks.study.scores import judgement, numbers, percent, signed
from benchmarks.study.tasks import LENGTHS, SUITE_TITLES, SUITES
from benchmarks.tables import _lori_merging_scores as scores
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_hypotheses import MERGES, of_merging
from benchmarks.tables._lori_merging_figures import bars
from benchmarks.tables._lori_merging_scores import ADAPTERS, LINEAR, SUM, Board
from benchmarks.tables._lori_words import NONE, SHORT

FIXED = (SUM, LINEAR)  # which have a row at the authors' weights
HEADS = tuple(SHORT[name] for name in ADAPTERS)


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    found: list[Block] = []
    for suite, title in SUITE_TITLES.items():
        board = scores.board(records, suite, tuple(MERGES))
        found += [
            Heading(f"Merging: {title}"),
            Text(verdict(board)),
            words.hypotheses(
                of_merging(board),
                f"Merging, {title}: the hypotheses written down before the run.",
            ),
            _accuracies(board, title),
            _paired(board, title),
            _gains(board, title),
            *bars(board, title),
            _per_task(board, title, SUITES[suite]),
            _interference(board, title),
            _sources(board, suite),
        ]
    return found


def verdict(board: Board) -> str:
    """Says how the merges stand against the sum and the joint adapter; computed."""
    lines = []
    for name in ADAPTERS:
        gaps = {
            merge: gap
            for (merge, own), gap in board.over_sum.items()
            if own == name and gap is not None
        }
        kinds = {
            kind: [
                f"{MERGES[merge]} ({signed(gap)})"
                for merge, gap in gaps.items()
                if judgement(gap) == kind
            ]
            for kind in ("better", "worse", "no difference seen")
        }
        if gaps:
            parts = [f"{kind}: {', '.join(x)}" for kind, x in kinds.items() if x]
            lines.append(f"{SHORT[name]}, against its sum: {'; '.join(parts)}.")
    joint = [gap for gap in board.over_joint.values() if gap is not None]
    if joint:
        lines.append(f"Against the joint adapter: {words.tally(joint)}.")
    return "\n\n".join(lines) or "Nothing to compare yet."


def _rows(board: Board, merge: str) -> list[Record]:
    """The records of a merge of all adapters."""
    return list(board.records.where(kind="merge", merge=merge))


def _singles(board: Board) -> list[Record]:
    """The records of the adapters alone."""
    return list(board.records.where(kind="single"))


def _accuracies(board: Board, title: str) -> Table:
    """Mean accuracy by merge and adapter, with the scale."""

    def cells(found: dict[Any, words.Rights | None]) -> list[Any]:
        return [None if x is None else percent(x.pooled()) for x in found.values()]

    rows = [
        ["off: the heads, no adapter", *cells(board.off), NONE],
        ["single: each task its own adapter", *cells(board.alone), NONE],
    ]
    sources = [_singles(board)] * 2
    for merge, name in MERGES.items():
        own = {a: board.merged[merge, a] for a in ADAPTERS}
        rows.append([name, *cells(own), _scales(board, merge, "scale")])
        sources.append(_rows(board, merge))
    for merge in FIXED:
        own = {a: board.fixed[merge, a] for a in ADAPTERS}
        label = f"{MERGES[merge]}, at the authors' weight"
        rows.append([label, *cells(own), _scales(board, merge, "at_fixed/weight")])
        sources.append(_rows(board, merge))
    joint = cells({"": board.joint})[0]
    others = [joint and NONE] * (len(ADAPTERS) - 1)
    rows.append(["joint: one LoRA for all tasks", joint, *others, joint and NONE])
    sources.append(list(board.records.where(kind=scores.JOINT)))
    caption = (
        f"Merging, {title}: test accuracy in per cent over the texts of all tasks, "
        "95 % bootstrap intervals over texts and seeds. Scales, chosen on validation "
        f"data, in the order {', '.join(HEADS)}."
    )
    columns = ("merge", *HEADS, "scale")
    return Table(
        columns, rows, caption=caption, align="lllll", digits=1, sources=sources
    )


def _scales(board: Board, merge: str, where: str) -> str | None:
    """The scales of a merge for each adapter."""
    found = [
        sorted(
            set(board.records.where(kind="merge", merge=merge, method=a).values(where))
        )
        for a in ADAPTERS
    ]
    if not any(found):
        return None
    return " / ".join(", ".join(f"{x:g}" for x in own) or NONE for own in found)


def _paired(board: Board, title: str) -> Table:
    """Differences to the sum of the same adapters."""

    def cells(of: Callable[[str], Difference | None]) -> list[str | None]:
        return [words.written(of(name)) for name in ADAPTERS]

    def over(own: Any) -> Callable[[str], Difference | None]:
        return lambda name: words.difference(own(name), board.merged[SUM, name])

    rows = [["single", *cells(over(board.alone.get))]]
    sources = [_singles(board)]
    for merge, name in MERGES.items():
        if merge != SUM:
            rows.append([name, *cells(lambda a, m=merge: board.over_sum[m, a])])
            sources.append(_rows(board, merge))
    for merge in FIXED:
        own = cells(over(lambda a, m=merge: board.fixed[m, a]))
        rows.append([f"{MERGES[merge]}, at the authors' weight", *own])
        sources.append(_rows(board, merge))
    rows.append(["joint", *cells(over(lambda _: board.joint))])
    sources.append(list(board.records.where(kind=scores.JOINT)))
    caption = (
        f"Merging, {title}: accuracy minus that of the sum of the same adapters, in "
        "points, paired, with 95 % intervals."
    )
    columns = ("minus the sum", *HEADS)
    return Table(columns, rows, caption=caption, align="llll", sources=sources)


def _gains(board: Board, title: str) -> Table:
    """Normalised scores."""
    counting = {name: board.counting(name) for name in ADAPTERS}

    def cell(merge: str, name: str, *, fixed: bool = False) -> Any:
        parts = board.parts((merge, name), fixed=fixed)
        if any(part is None for part in parts):
            return None
        found = scores.shares([parts], counting[name])
        return NONE if found is None else scores.interval(found[0])

    rows: list[list[Any]] = []
    for merge, name in MERGES.items():
        rows.append([name, *(cell(merge, own) for own in ADAPTERS)])
    for merge in FIXED:
        own = [cell(merge, own, fixed=True) for own in ADAPTERS]
        rows.append([f"{MERGES[merge]}, at the authors' weight", *own])
    number = len(board.tasks)
    known = [board.alone[name] is not None for name in ADAPTERS]
    tally = [f"{len(own)} of {number}" for own in counting.values()]
    rows.append(
        [
            "tasks that count",
            *(x if k else None for x, k in zip(tally, known, strict=True)),
        ]
    )
    caption = (
        f"Merging, {title}: the part of the gain that is left, in per cent: (merged - "
        "off) / (single - off), mean over the tasks that count. A task counts where "
        "the 95 % interval of single - off lies above zero; elsewhere there is no "
        "gain to keep."
    )
    return Table(
        ("part of the gain", *HEADS),
        rows,
        caption=caption,
        align="llll",
        digits=0,
        sources=[*(_rows(board, m) for m in (*MERGES, *FIXED)), _singles(board)],
    )


def _per_task(board: Board, title: str, titles: dict[str, str]) -> Table:
    """What the sum leaves of each task."""
    columns = (
        "task", "adapter", "majority", "off", "single", "merged", "merged - majority",
        "F1, single", "F1, merged",
    )  # fmt: skip
    rows, sources = [], []
    for task, name in titles.items():
        for own in ADAPTERS:
            single = board.records.where(kind="single", method=own, task=task)
            merged = board.records.where(kind="merge", merge=SUM, method=own)
            sources.append([*single, *merged])
            kinds = (board.off[own], board.alone[own], board.merged[SUM, own])
            if any(x is None for x in kinds):
                rows.append([name, SHORT[own], *[None] * (len(columns) - 2)])
                continue
            middles = [100 * float(x.tasks[task].mean()) for x in kinds if x]
            labels = numbers(single[0].metrics["predictions"]["labels"])
            most = 100 * float(np.bincount(labels).max() / len(labels))
            f1 = [
                float(np.mean(single.values("macro_f1"))),
                float(np.mean(merged.values(f"tasks/{task}/macro_f1"))),
            ]
            rows.append([name, SHORT[own], most, *middles, middles[-1] - most, *f1])
    return Table(
        columns,
        rows,
        caption=f"The sum, {title}: accuracy in per cent and macro F1 by task.",
        align="ll" + "r" * (len(columns) - 2),
        digits=dict.fromkeys(columns, 1) | {"F1, single": 3, "F1, merged": 3},
        notes=["`majority`: the share of the most frequent class of the test texts."],
        sources=sources,
    )


def _interference(board: Board, title: str) -> Table:
    """How far the adapters of different tasks meet."""
    rows, sources = [], []
    for name in ADAPTERS:
        found = board.records.where(kind="interference", method=name)
        sources.append(list(found))
        kept = [found.values(kind) for kind in ("cosine", "overlap", "conflict")]
        means = [float(np.mean(own)) if own else None for own in kept]
        rows.append([SHORT[name], *means])
    columns = ("adapter", "|cosine|", "largest cosine of A", "sign conflicts")
    caption = (
        f"Merging, {title}: how the adapters of two tasks meet, means over pairs of "
        "tasks, adapted weights and seeds: the absolute cosine of their changes, the "
        "largest principal cosine of their A, and the share of the entries that both "
        "change where the signs differ."
    )
    return Table(columns, rows, caption=caption, align="lrrr", sources=sources)


def _sources(board: Board, suite: str) -> Table:
    """The data, and what a bigger budget would do otherwise."""
    facts = {r.config["task"]: r for r in board.records.where(kind="single")}
    merged = board.records.where(kind="merge")
    if not len(merged):
        return words.sources(SUITES[suite], facts, ["No merge was run."])
    config = merged[0].config
    seeds = ", ".join(map(str, sorted({r.seed for r in merged})))
    notes = [
        words.budget(config, LENGTHS[suite])
        + f"Seeds {seeds}. The scale of a merge is the best of "
        f"{', '.join(f'{x:g}' for x in config['scales'])} by validation accuracy of "
        "the first seed, one for all seeds, for every merge and adapter alike. Merges "
        f"that trim or drop keep {DENSITY:g} of the entries; RegMean reads "
        f"{GRAM_TEXTS} training texts a task, Fisher {FISHER_TEXTS}. Other settings of "
        "a merge were not searched."
    ]
    return words.sources(SUITES[suite], facts, notes)
