"""LoRA's own questions: which weights, which rank, and what its change is.

Section 7 of the LoRA paper asks, of GPT-3: which weights to adapt with a fixed number
of trained numbers; which rank is enough; whether the changes of two ranks and of two
seeds share directions; and how a change relates to its weight. Here the same is asked
of the last two layers of MiniLM's encoder, on two text tasks, and of a full fine-tune
of the whole encoder that somebody else has published.

Written down before the run. Q1: at about as many numbers, query and value together are
not worse than any single projection of attention. Q2: rank 1 of query and value is
within 1 point of rank 64. Q3: of a rank-8 change's directions the first lies by more
than half in the first eight of a rank-64 change of another seed, the eighth by less
than a quarter. Q4: a change amplifies directions that its weight has little of: by a
factor of more than 2 at rank 4, and by more than at rank 64. Q5: full fine-tuning's
change has an effective rank above half of the width, and the published one's cosine
with its weight is below 0.1.

Command: python -m benchmarks run lora_questions
Paper: LoRA, arXiv:2106.09685, tables 5 to 7 and figures 3 and 4, on GPT-3: Wq, Wv of
    rank 4 are best or equal (73.7 WikiSQL, 91.3 MNLI), rank 1 nearly as good as 64
    (73.4 and 73.5), amplification 21.5 at rank 4 and about 1.9 at rank 64.
Cost: 40 min on 1 core
Rows: 173
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study.scores import single_metrics
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _lora_questions_measure as measure
from benchmarks.tables import _lora_questions_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    rank: int = 64
    """Rank of the program; smaller ranks use its first columns."""
    methods: tuple[str, ...] = tuple(ways.QUESTIONS)
    """Which weights and ranks."""
    tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Which tasks."""
    pairs: int = 3
    """Pairs of seeds whose directions are compared."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "methods": ("query-r8", "query-value-r4", "all-r1", "all-r8", "all-r64"),
            "tasks": ("trec",),
            "pairs": 1,
        }
        return dataclasses.replace(self, **self.tiny() | {"rank": 16} | own)


def run(config: Config, session: Session) -> None:
    """Trains the adapters, scores them, and reads off their changes; rows are kept."""
    work = Singles(config, session, "tasks")
    rows = [
        (name, task, seed)
        for name in config.methods
        for task in config.tasks
        for seed in config.seeds
    ]
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            _scored(work, *row)
            bar.update()
    seeds = config.seeds
    for task in config.tasks:
        for one, two in list(zip(seeds, seeds[1:], strict=False))[: config.pairs]:
            given = work.given(kind="directions", task=task, seed=one, other=two)
            _row(work, f"directions-{task}-s{one}", given, measure.directions, one)
        for seed in seeds[: config.pairs]:
            given = work.given(kind="change", task=task, seed=seed)
            _row(work, f"change-{task}-s{seed}", given, measure.changes, seed)
    given = {"kind": "published", "synthetic": config.synthetic}
    _row(work, "published", given, measure.published, 0)


def _scored(work: Singles, name: str, task: str, seed: int) -> None:
    """One run of one way, on the test split."""
    given = work.given(method=name, task=task, seed=seed, test=work.options.test)
    row = f"{name}-{task}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    _, tried = work.rate(name, task)
    single = work.single(name, task, seed)
    metrics = single_metrics(work, name, task, single)
    metrics |= {"rate": single.rate, "rates_tried": tried, "trained": single.trained}
    metrics |= {"data": work.suite.facts[task]}
    seconds = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=seconds, seed=seed)


def _row(
    work: Singles, row: str, given: Mapping[str, Any], read: measure.Read, seed: int
) -> None:
    """One row that trains nothing of its own."""
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    metrics = read(work, given)
    seconds = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=seconds, seed=seed)


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
