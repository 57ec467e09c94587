"""Every adapter family at one budget: two text tasks, five seeds, three rates each.

LoRA of rank 4 on the six projections of the last two layers of MiniLM trains 55,296
numbers. Every other family has the size whose trained numbers come nearest to that;
what has no size to choose, (IA)3, BitFit and layer norms, trains what it has, and VeRA
stops at rank 256. Full fine-tuning of the same projections and a head on the frozen
encoder stand beside them, with as many learning rates to choose from. Question types
(TREC) and movie reviews. Prompt tuning is left out, as its rows would stand in front of
the words, below the layers that are adapted.

Written down before the run. M1: rsLoRA, LoRA+, DoRA, AdaLoRA, PiSSA, OLoRA, orthogonal
and EVA starts are within a point of LoRA. M2: LoRA is not worse than full fine-tuning.
M3: every family at the budget is better than the head alone. M4: what trains less than
a fifth of the budget, (IA)3, BitFit and layer norms, is worse than LoRA. M5: of the
added networks the prefix is worse than LoRA, the bottlenecks are not. MAM with learned
scales and with a gate, and UniPELT with fixed scales, were added after the first run,
without a hypothesis of their own; M3 counts them.

Command: python -m benchmarks run methods_text
Paper: each family's own; their numbers are of other models and tasks.
Cost: 45 min on 1 core
Rows: 420
"""

import dataclasses
import time
from typing import Any

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.families import FAMILIES
from benchmarks.study.family_runs import FamilyRuns
from benchmarks.study.rows import save
from benchmarks.study.scores import digits
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _methods_text_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    rank: int = 4
    """Rank of LoRA, whose trained numbers are the budget of all."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates of LoRA; a family of another kind has a multiple of them."""
    steps: int = 64
    """Steps of a run: one round of the training texts."""
    methods: tuple[str, ...] = tuple(FAMILIES)
    """Which families."""
    tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Which tasks."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "methods": ("lora", "adalora", "eva", "lori-s", "prefix", "full", "probe"),
            "tasks": ("trec",),
        }
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Tunes, trains and scores every family; rows are kept."""
    runs = FamilyRuns(Singles(config, session, "tasks"))
    rows = [
        (name, task, seed)
        for name in config.methods
        for task in config.tasks
        for seed in config.seeds
    ]
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            _row(runs, *row)
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(runs: FamilyRuns, name: str, task: str, seed: int) -> None:
    """One run of one family on one task."""
    work = runs.work
    given = runs.given(name, task=task, seed=seed, test=work.options.test)
    row = f"{name}-{task}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    rate, tried = runs.rate(name, task)
    found = runs.run(name, task, seed, rate)
    labels = work.suite.labels("test", work.task(task))
    logits = runs.logits(name, found.state, found.head, task, "test")
    guess = logits.argmax(axis=1)
    metrics: dict[str, Any] = {
        "accuracy": stats.accuracy(guess, labels),
        "predictions": {"labels": digits(labels), "test": digits(guess)},
        "rate": rate,
        "rates_tried": tried,
        "trained": found.trained,
        "budget": runs.budget,
        "size": runs.size(name),
        "seconds_per_step": {"wall": found.wall, "processor": found.processor},
        "data": work.suite.facts[task],
    }
    save(work, row, metrics, given, begin, seed)
