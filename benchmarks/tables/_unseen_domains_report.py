"""What the table of unseen domains shows."""

from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.study.scores import numbers, percent
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.study.unseen import METHODS
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

DOMAINS = SUITES["domains"]
SHOTS = (1_000, 300, 100)
ADAPTERS = ("lora", "lori-d", "lori-s", "serial")
BASE = "probe"


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    shots = sorted({r.config["shots"] for r in records}, reverse=True) or list(SHOTS)
    found: list[Block] = [
        Heading("Domains that were never seen"),
        words.hypotheses(
            expected(records, shots[0], shots[-1]),
            "Unseen domains: the hypotheses written down before the run.",
        ),
    ]
    found += [_table(records, number) for number in shots]
    return [*found, _by_domain(records, shots[0]), Text(_reduced(records))]


def rights(
    records: Records, name: str, shots: int, where: str, kind: str = "test"
) -> Rights | None:
    """Which test texts are right, with each domain left out in turn.

    Args:
        records: All records.
        name: The method.
        shots: Labelled texts of each seen domain.
        where: `unseen` for the domain that was left out, `seen` for the others.
        kind: `test`, or `typos`.

    Returns:
        By the domain left out, on the seeds that all of them have; None without rows.
    """
    own = records.where(method=name, shots=shots)
    lefts = sorted({r.config["left"] for r in own})
    by = {left: {r.seed: r for r in own.where(left=left)} for left in lefts}
    seeds = sorted(set.intersection(*map(set, by.values()))) if by else []
    if not seeds:
        return None

    def right(record: Any, left: str) -> np.ndarray:
        marks = record.metrics["domains"]
        tasks = [t for t in marks if (t == left) is (where == "unseen")]
        pairs = [(numbers(marks[t][kind]), numbers(marks[t]["labels"])) for t in tasks]
        return np.concatenate([guess == label for guess, label in pairs])

    tasks = {
        left: np.stack([right(by[left][s], left) for s in seeds]) for left in lefts
    }
    return Rights(tuple(seeds), tasks)


def expected(records: Records, most: int, least: int) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def minus(one: str, two: str, shots: int, where: str) -> Any:
        pair = (rights(records, name, shots, where) for name in (one, two))
        return words.difference(*pair)

    trained = (*ADAPTERS, "full")
    titles = {name: words.SHORT.get(name, own.title) for name, own in METHODS.items()}
    beats = [
        Claim(f"{titles[n]} minus head", minus(n, BASE, most, "seen"), words.above)
        for n in trained
    ]
    carries = [
        Claim(
            f"{titles[n]} minus full", minus(n, "full", most, "unseen"), words.no_cost
        )
        for n in ADAPTERS
    ]
    few = [
        Claim(f"{titles[n]} minus head", minus(n, BASE, least, "unseen"), words.no_gain)
        for n in trained
    ]
    typos = [
        Claim(
            f"{titles[n]} minus head, of what typos cost",
            _more_lost(records, n, most, ("seen", "test"), ("seen", "typos")),
            words.no_gain,
        )
        for n in ADAPTERS
    ]
    lost = _more_lost(
        records, "full", most, ("seen", "test"), ("unseen", "test"), "lori-s"
    )
    return [
        Hypothesis(
            "D1", "every trained way beats the head alone on seen domains", beats
        ),
        Hypothesis("D2", "no adapter carries less far than full fine-tuning", carries),
        Hypothesis(
            "D3",
            "full fine-tuning loses more from seen to unseen domains than LoRI-S",
            [Claim("full minus LoRI-S, of what is lost", lost, words.above)],
        ),
        Hypothesis(
            "D4", f"with {least:,} texts nothing gains on the unseen domain", few
        ),
        Hypothesis("D5", "typos cost no adapter more than the head alone", typos),
    ]


def _more_lost(
    records: Records,
    name: str,
    shots: int,
    first: tuple[str, str],
    second: tuple[str, str],
    other: str = BASE,
) -> stats.Difference | None:
    """How much more one way loses between two scores than another, over texts."""
    found = []
    for kind in (first, second):
        pair = words.aligned(*(rights(records, n, shots, *kind) for n in (name, other)))
        if not pair:
            return None
        one, two = (own.pooled().astype(float) for own in pair)
        found.append((one, two))
    (one, two), (one_later, two_later) = found
    apart = [_resampled(x - y) for x, y in ((one, two), (one_later, two_later))]
    lost = 100 * (apart[0] - apart[1])
    low, high = np.quantile(lost[1:], (0.025, 0.975))
    return stats.Difference(float(lost[0]), float(low), float(high), 0.0)


def _resampled(gaps: np.ndarray, count: int = 2000) -> np.ndarray:
    """The mean of paired gaps `[seeds, n]`, then its means over resampled texts."""
    mean = gaps.mean(axis=0)
    draws = stats.generator(0).integers(len(mean), size=(count, len(mean)))
    return np.concatenate([[mean.mean()], mean[draws].mean(axis=1)])


def _table(records: Records, shots: int) -> Table:
    rows: list[list[Any]] = []
    for name, method in METHODS.items():
        seen, unseen, typos = (
            rights(records, name, shots, *kind)
            for kind in (("seen",), ("unseen",), ("unseen", "typos"))
        )
        if seen is None or unseen is None or typos is None:
            rows.append([method.title, *[None] * 7])
            continue
        base = [rights(records, BASE, shots, kind) for kind in ("seen", "unseen")]
        gaps = [
            words.NONE if name == BASE else words.written(words.difference(own, other))
            for own, other in zip((seen, unseen), base, strict=True)
        ]
        known = records.where(method=name, shots=shots)
        trained = known[0].metrics["trained"]
        rows.append(
            [
                method.title,
                trained,
                percent(seen.pooled()),
                gaps[0],
                percent(unseen.pooled()),
                gaps[1],
                percent(typos.pooled()),
                words.rates(known, tuple(DOMAINS), "left") or words.NONE,
            ]
        )
    columns = (
        "trained", "numbers", "seen, %", "minus head alone", "unseen, %",
        "minus head alone, unseen", "unseen, with typos, %",
        "rates chosen",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption=f"{shots:,} labelled texts of each of three seen domains.",
        notes=[
            "Each domain is left out in turn; `unseen` is that one. Over all texts, "
            "with 95 % bootstrap intervals over texts and seeds; differences paired, "
            "in points. Numbers: of the adapter, the head left out. Three learning "
            "rates for every way, chosen on validation texts of the seen domains, one "
            "for each domain left out; a star marks an end of the grid, where a better "
            "rate may lie outside."
        ],
        align="lrllllll",
        digits=dict.fromkeys(columns, 1),
    )


def _by_domain(records: Records, shots: int) -> Table:
    """Accuracy on each domain when it was left out, and when another was."""
    rows: list[list[Any]] = []
    for name, method in METHODS.items():
        own = rights(records, name, shots, "unseen")
        cells = [
            None if own is None or task not in own.tasks else percent(own.tasks[task])
            for task in DOMAINS
        ]
        rows.append([method.title, *cells])
    columns = ("trained", *(f"{title}, %" for title in DOMAINS.values()))
    return Table(
        columns,
        rows,
        caption=f"Accuracy on each domain when it was left out, {shots:,} texts.",
        align="l" * len(columns),
        digits=dict.fromkeys(columns, 1),
    )


def _reduced(records: Records) -> str:
    if not len(records):
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    return words.budget(records[0].config, LENGTHS["domains"]) + f"Seeds {seeds}."
