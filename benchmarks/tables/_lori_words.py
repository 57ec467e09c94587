"""What the reports of the LoRI tables share: right answers, hypotheses, sources."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import Record, Records
from benchmarks.report import Table
from benchmarks.stats import Difference
from benchmarks.study.methods import HEADLINE
from benchmarks.study.scores import gap, judgement, numbers, percent, right, signed

NONE = "–"  # what a row has no place for
MARGIN = 1.0  # points: H1's, and that of every claim of no difference
FEW = 6  # comparisons that are written out one by one
SPLITS = {"head": "heads' start", "train": "training", "valid": "validation"}
SHORT = {name: own.title.split(":")[0] for name, own in HEADLINE.items()}


class Rights(NamedTuple):
    """Which test texts a method gets right.

    Attributes:
        seeds: Its seeds, in order; None for what no seed changes.
        tasks: For each task `[seeds, n]`.
    """

    seeds: tuple[int, ...] | None
    tasks: dict[str, np.ndarray]

    def at(self, seeds: Iterable[int]) -> "Rights":
        """The rows of some of its seeds."""
        if self.seeds is None:
            return self
        rows = [self.seeds.index(seed) for seed in seeds]
        return Rights(tuple(seeds), {name: x[rows] for name, x in self.tasks.items()})

    def pooled(self) -> np.ndarray:
        """The texts of all tasks side by side, `[seeds, n]`."""
        return np.concatenate(list(self.tasks.values()), axis=1)

    def percents(self) -> list[tuple[float, float, float]]:
        """Accuracy in per cent with its interval: of all tasks, then of each."""
        return [percent(x) for x in (self.pooled(), *self.tasks.values())]


def of_singles(
    records: Records, tasks: Iterable[str], kind: str = "test"
) -> Rights | None:
    """Of records of one task each: the seeds that have every task."""
    found = {t: {r.seed: r for r in records.where(task=t)} for t in tasks}
    seeds = sorted(set.intersection(*(set(own) for own in found.values())))
    if not seeds:
        return None
    rows = {t: Records([own[s] for s in seeds]) for t, own in found.items()}
    return Rights(tuple(seeds), {t: right(own, kind) for t, own in rows.items()})


def of_merges(
    records: Records, tasks: Iterable[str], where: str = "tasks"
) -> Rights | None:
    """Of records that hold all tasks, at a path of their metrics."""
    rows = {r.seed: own for r in records if (own := r.get(where)) is not None}
    if not rows:
        return None
    found = {}
    for task in tasks:
        marks = [rows[seed][task]["predictions"] for seed in sorted(rows)]
        pairs = [(numbers(p["test"]), numbers(p["labels"])) for p in marks]
        found[task] = np.stack([guess == label for guess, label in pairs])
    return Rights(tuple(sorted(rows)), found)


def aligned(*given: Rights | None) -> list[Rights]:
    """The rows of the seeds that all have; empty where there are none."""
    known = [own for own in given if own is not None]
    seeds = [set(own.seeds) for own in known if own.seeds is not None]
    common = sorted(set.intersection(*seeds)) if seeds else []
    if len(known) < len(given) or (seeds and not common):
        return []
    return [own.at(common) for own in known]


def difference(one: Rights | None, two: Rights | None) -> Difference | None:
    """The paired difference over all tasks in points; None where one was not run."""
    pair = aligned(one, two)
    return gap(*(own.pooled() for own in pair)) if pair else None


def negative(found: Difference | None) -> Difference | None:
    """The same difference the other way round, from the same resamples."""
    if found is None:
        return None
    share = 1 - found.share_not_positive
    return Difference(-found.difference, -found.high, -found.low, share)


def written(found: Difference | None) -> str | None:
    """A difference as a cell."""
    return None if found is None else signed(found)


# Tests: 1 where an interval bears a claim out, -1 where it speaks against it, else 0.

Test = Callable[[Difference], int]


def above(found: Difference) -> int:
    """It is better."""
    return int(found.low > 0) - int(found.high < 0)


def below(found: Difference) -> int:
    """It is worse."""
    return -above(found)


def within(found: Difference) -> int:
    """It is the same but for the margin."""
    if found.low > MARGIN or found.high < -MARGIN:
        return -1
    return int(found.low >= -MARGIN and found.high <= MARGIN)


def no_cost(found: Difference) -> int:
    """It is not worse, or by less than the margin at most."""
    return -1 if found.high < 0 else int(found.low > -MARGIN)


def no_gain(found: Difference) -> int:
    """It is not better, or by less than the margin at most."""
    return -1 if found.low > 0 else int(found.high < MARGIN)


def short_of(found: Difference) -> int:
    """It is worse; within the margin and not seen to be worse, it is as good."""
    return 1 if found.high < 0 else -int(found.low > -MARGIN)


class Claim(NamedTuple):
    """A comparison that a hypothesis speaks of: None where it was not run."""

    label: str
    found: Difference | None
    test: Test


class Hypothesis(NamedTuple):
    """A hypothesis: its name, its words, and its comparisons."""

    name: str
    text: str
    claims: Sequence[Claim]

    def verdict(self) -> str:
        """Whether the intervals bear it out."""
        marks = [c.test(c.found) for c in self.claims if c.found is not None]
        if not marks:
            return "not run"
        if min(marks) < 0:
            return "contradicted"
        if len(marks) < len(self.claims):
            return "undecided: rows are missing"
        return "supported" if min(marks) > 0 else "not supported"

    def figures(self) -> str | None:
        """The numbers; of many comparisons how they went, and the two ends."""
        known = [(c.label, c.found) for c in self.claims if c.found is not None]
        if not known:
            return None
        if len(known) <= FEW:
            return "; ".join(f"{label} {signed(found)}" for label, found in known)
        known.sort(key=lambda pair: pair[1].difference)
        ends = [f"{label} {signed(found)}" for label, found in (known[0], known[-1])]
        return f"{tally([found for _, found in known])}; {' to '.join(ends)}"


def tally(found: Sequence[Difference]) -> str:
    """How many comparisons are better, worse, or neither."""
    words = [judgement(own) for own in found]
    return (
        f"of {len(words)} comparisons {words.count('better')} better, "
        f"{words.count('worse')} worse, in {words.count('no difference seen')} no "
        "difference seen"
    )


def hypotheses(found: Sequence[Hypothesis], caption: str) -> Table:
    """The table of verdicts."""
    rows = [[f"{h.name}: {h.text}", h.verdict(), h.figures()] for h in found]
    notes = [
        "Differences in points of accuracy unless said otherwise, paired, with 95 % "
        "bootstrap intervals over texts and seeds, not corrected for their number. "
        "Supported: every interval that the hypothesis speaks of bears it out. "
        "Contradicted: at least one speaks against it. Not supported: neither. A claim "
        "that nothing differs, costs or gains is read with a margin of "
        f"{MARGIN:g} point."
    ]
    columns = ("hypothesis", "verdict", "numbers")
    return Table(columns, rows, caption=caption, align="lll", notes=notes)


def sources(
    titles: Mapping[str, str], facts: Mapping[str, Record], notes: Sequence[str]
) -> Table:
    """Where the data come from, how much was used, and under what licence."""
    rows, links = [], []
    for task, title in titles.items():
        record = facts.get(task)
        links.append(record)
        if record is None:
            rows.append([title, *[None] * (len(SPLITS) + 3)])
            continue
        data = record.metrics["data"]
        sizes = [
            f"{data['sizes'][s]['used']:,} of {data['sizes'][s]['of']:,}"
            for s in (*SPLITS, "test")
        ]
        rows.append([title, *sizes, data["licence"], data["source"]])
    columns = ("task", *SPLITS.values(), "test", "licence", "source")
    caption = (
        "What was reduced, and the data: texts used of those that there are. Heads' "
        "starts and runs read two parts of the same training texts."
    )
    return Table(
        columns, rows, caption=caption, align="lrrrrll", notes=notes, sources=links
    )


def rates(known: Records, names: Sequence[str], by: str = "task") -> str | None:
    """The learning rate that each task chose; a star where its grid ends there."""
    first: dict[str, Record] = {}
    for record in known:
        if record.metrics.get("rates_tried"):
            first.setdefault(record.config[by], record)
    found = []
    for name in names:
        if name in first:
            own = first[name].metrics
            tried = [x for x in own["rates_tried"] if x is not None]
            best = own["rates_tried"].index(min(tried))
            end = best in (0, len(own["rates_tried"]) - 1)
            found.append(f"{own['rate']:.2g}{'*' * end}")
    return ", ".join(found) or None


def budget(config: Mapping[str, Any], length: int) -> str:
    """What a run is, in words; from its config."""
    c = config
    encoder = (
        "a tiny random encoder, and made-up texts"
        if c["synthetic"]
        else f"all-MiniLM-L6-v2 (Apache-2.0), last {c['layers']} of 6 layers"
    )
    return (
        f"Small models and small data: adapters of rank {c['rank']} on {encoder}; "
        f"texts cut to {length} tokens; {c['steps']} steps of {c['batch']} texts, "
        f"{c['steps'] * c['batch'] / c['train']:.2g} rounds of {c['train']:,} training "
        f"texts; heads started on {c['head']:,} others; choices on {c['valid']} "
        f"validation texts, scores on {c['test']} test texts a task. "
    )
