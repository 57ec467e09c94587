"""The verdicts on the hypotheses of the table of failing ranks."""

import math
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.study.needed import SHARE, right, verdict
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights
from benchmarks.tables._low_rank_fails_shares import (
    BASE,
    PROBLEMS,
    in_percent,
    of_gain,
    share,
)

TASKS = SUITES["tasks"]
Pick = Callable[[Iterable[float]], float]


def fails(records: Records, rank: int, task: str) -> int | None:
    """1 if a rank gives less than 90 % of the gain, -1 if not, 0 if undecided.

    None if it was not run. Of no gain there is no share: that is undecided.
    """
    own = share(records, "lora", rank, task)
    if own is None:
        return 0 if was_run(records, rank, task) else None
    if own.high < SHARE:
        return 1
    return -1 if own.low >= SHARE else 0


def was_run(records: Records, rank: int, task: str) -> bool:
    """Whether a rank, all weights and what they are held against have a common seed."""
    cells = (("lora", {"size": rank}), ("full", {}), (BASE[task], {}))
    seeds = [
        {r.seed for r in records.where(way=way, task=task, **more)}
        for way, more in cells
    ]
    return bool(set.intersection(*seeds))


def hypotheses(records: Records) -> Table:
    """F1 to F5."""

    def marks(*given: tuple[int, str, int]) -> list[int | None]:
        found = [(fails(records, rank, task), sign) for rank, task, sign in given]
        return [None if own is None else sign * own for own, sign in found]

    def cells(*given: tuple[int, str]) -> str | None:
        known = []
        for rank, task in given:
            own = share(records, "lora", rank, task)
            if own is not None:
                known.append(f"rank {rank}: {in_percent(own)}")
            elif was_run(records, rank, task):
                known.append(f"rank {rank}: all weights gain nothing")
        return "; ".join(known) or None

    rows = [
        ["F1: on TREC rank 1 does not fail", verdict(marks((1, "trec", -1))),
         cells((1, "trec"))],
        ["F2: on 45 classes rank 1 fails and rank 64 does not",
         verdict(marks((1, "files", 1), (64, "files", -1))),
         cells((1, "files"), (64, "files"))],
        ["F3: on random labels rank 1 fails", verdict(marks((1, "random", 1))),
         cells((1, "random"))],
        ["F4: on the decoder rank 1 fails", verdict(marks((1, "dialogue", 1))),
         cells((1, "dialogue"))],
        ["F5: ranks and dimensions agree on the easiest and the hardest problem",
         *_fifth(records)],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="F1 to F5, written down before the run.",
        notes=[
            "Shares of what training all weights gains over the head alone or, for "
            "random labels and the decoder, over the start, with 95 % bootstrap "
            "intervals over paired seeds and, but for the decoder, texts. A rank fails "
            "whose interval lies below 90 %, and does not fail if it lies above; one "
            "that holds 90 % decides nothing (not supported). F5 compares what is "
            "reached and who is alone at an end: ties decide nothing, nor does the "
            "highest where a d90 is not reached."
        ],
        align="lll",
    )


def _fifth(records: Records) -> tuple[str | None, str | None]:
    ranks, ds = {}, {}
    for task in PROBLEMS:
        rank, d = of_gain(records, "lora", task), of_gain(records, "did", task)
        if rank is None or d is None:
            return None, None
        ranks[task], ds[task] = rank.interpolated, d.interpolated
    numbers = "; ".join(
        f"{PROBLEMS[t]}: rank {_number(ranks[t], '.3g')}, d {_number(ds[t], ',.0f')}"
        for t in PROBLEMS
    )
    return verdict([agree(ranks, ds, min), agree(ranks, ds, max)]), numbers


def agree(ranks: dict[str, float], ds: dict[str, float], pick: Pick) -> int:
    """Whether one problem is alone at an end of both: 1, -1 if they differ, else 0.

    A d90 that is not reached is not compared: nothing is the lowest or the highest
    by it, and where there is one the highest is not known.
    """
    reached = {task: d for task, d in ds.items() if math.isfinite(d)}
    first, second = _alone(ranks, pick), _alone(reached, pick)
    unknown = pick is max and len(reached) < len(ds)
    if unknown or first not in reached or second is None:
        return 0
    return 1 if first == second else -1


def _alone(values: dict[str, float], pick: Pick) -> str | None:
    """The only problem at an end, if that is reached."""
    if not values:
        return None
    end = pick(values.values())
    at = [task for task, value in values.items() if value == end]
    return at[0] if len(at) == 1 and math.isfinite(end) else None


def _number(value: float, form: str) -> str:
    return format(value, form) if math.isfinite(value) else "not reached"


def compared(records: Records) -> list[Hypothesis]:
    """F6 and F7, which paired intervals of accuracy decide."""
    best = rights(records, "lora", 8)

    def minus(way: str) -> Any:
        return words.difference(rights(records, way, 1), best)

    six = Claim("all weights minus LoRA", minus("full"), words.within)
    seven = [
        Claim(f"{title} minus LoRA", minus(way), words.no_gain)
        for way, title in (("bias", "biases"), ("last", "last layer"))
    ]
    return [
        Hypothesis("F6", "LoRA of rank 8 is as good as all weights", [six]),
        Hypothesis(
            "F7", "biases or the last layer are no better than LoRA of rank 8", seven
        ),
    ]


def rights(records: Records, way: str, size: int) -> Rights | None:
    """Which test texts of the four tasks are right, on common seeds."""
    by = {}
    for task in TASKS:
        rows = records.where(way=way, size=size, task=task)
        by[task] = {r.seed: r for r in rows}
    known = {task: own for task, own in by.items() if own}
    seeds = sorted(set.intersection(*map(set, known.values()))) if known else []
    if not seeds:
        return None
    found = {
        task: right(Records([own[s] for s in seeds])) for task, own in known.items()
    }
    return Rights(tuple(seeds), found)
