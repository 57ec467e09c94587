"""Parallel or serial: what is forgotten, what merges, what carries further, what waits.

Adapters of one size, some beside a product (LoRA, parallel bottlenecks) and some behind
it (serial bottlenecks), at the same two products of each layer, those that write into
the residual stream; LoRA on all six projections and a prefix of keys and values stand
beside them. All train about 55,296 numbers. Asked are: how much of an old task is lost
when the adapter learns a new one (its loss, with its own old head, which stays); how
much a new task's adapter disturbs a task that it never saw, with the head of that
task's probe; what is left of two tasks when their adapters are merged, both acting
together or as one adapter with the mean of their numbers; accuracy in a domain that was
left out; and the time of the adapted layers, merged into the weights and not, for one
text and for 32.

Written down before the run, after a reader's guess that parallel adapters disturb less
and merge better. P1: after a new task, both parallel ways have lost less of the old
one's loss than the serial one. P2: they disturb a task that they never saw less. P3:
merged, acting together, they lose less accuracy. P4: in the unseen domain they are not
worse than the serial one. P5: unmerged, each of the three takes longer than the bare
layers; LoRA merged into the weights is within 5 per cent of them.

Command: python -m benchmarks run parallel_serial
Paper: He et al., arXiv:2110.04366, compare the two on other tasks: no number of theirs
stands here.
Cost: 15 min on 1 core
Rows: 202
"""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.family_runs import FamilyRuns
from benchmarks.study.placed import MERGES, PLACED, Elsewhere, Placed
from benchmarks.study.rows import save
from benchmarks.study.scores import digits
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _parallel_serial_report as reporting
from benchmarks.tables import _parallel_serial_time as timed


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    rank: int = 4
    """Rank of LoRA on all six projections, whose trained numbers are the budget."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates; of the prefix eight times as much."""
    steps: int = 32
    """Steps of a run; of one that sees three domains, of each."""
    head: int = 500
    """Training texts on which the heads' starts are fitted."""
    train: int = 500
    """Other training texts, which the runs see."""
    methods: tuple[str, ...] = tuple(PLACED)
    """Which adapters."""
    tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Two tasks: each is learned after the other, and both are merged."""
    lefts: tuple[str, ...] = ("sentiment_movie", "sentiment_tweets")
    """Domains to leave out, one at a time."""
    scales: tuple[float, ...] = (0.3, 0.5, 0.7, 1.0)
    """Scales of merged adapters, of which validation chooses."""
    batches: tuple[int, ...] = (1, 32)
    """Texts of a batch whose time is taken."""
    rounds: int = 30
    """Rounds of timing."""
    processes: int = 3
    """Processes of timing."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "methods": ("lora-two", "serial", "prefix"),
            "seeds": (0,),
            "lefts": ("sentiment_tweets",),
            "scales": (0.5, 1.0),
            "head": 32,
            "train": 32,
            "batches": (1,),
            "rounds": 2,
            "processes": 1,
        }
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Trains, merges, scores and times; rows are kept."""
    tasks = Singles(config, session, "tasks")
    placed = Placed(FamilyRuns(tasks, PLACED, one_start=True))
    elsewhere = Elsewhere(FamilyRuns(Singles(config, session, "domains"), PLACED))
    both = list(zip(config.tasks, reversed(config.tasks), strict=True))
    with session.progress(len(config.methods) * len(config.seeds), "adapters") as bar:
        for name in config.methods:
            for seed in config.seeds:
                for task, other in both:
                    _pair(placed, name, task, other, seed)
                for how in MERGES:
                    _merge(placed, config, how, name, seed)
                for left in config.lefts:
                    _unseen(elsewhere, name, left, seed)
                bar.update()
    for batch in config.batches:
        _time(placed.runs, config, batch)


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(
    runs: FamilyRuns, row: str, given: Any, make: Callable[[], Any], seed: int
) -> None:
    """One row, unless it is there."""
    if runs.work.session.row(row, **given) is None:
        begin = time.perf_counter()
        save(runs.work, row, make(), given, begin, seed)


def _marks(logits: np.ndarray, labels: np.ndarray) -> dict[str, Any]:
    """Predictions, and the loss of every text."""
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    losses = total - logits[np.arange(len(labels)), labels]
    return {
        "predictions": {
            "labels": digits(labels),
            "test": digits(logits.argmax(axis=1)),
        },
        "losses": [round(float(x), 5) for x in losses],
    }


def _pair(placed: Placed, name: str, task: str, other: str, seed: int) -> None:
    """An adapter of a task alone, what it does to another, and that one after it."""
    runs, work = placed.runs, placed.work
    test = work.options.test
    labels = {t: work.suite.labels("test", work.task(t)) for t in (task, other)}

    def alone() -> dict[str, Any]:
        found = placed.single(name, task, seed)
        bare = work.off(work.trainer.head(work.task(other)), other, "test")
        disturbed = placed.disturbed(name, task, other, seed)
        logits = runs.logits(name, found.state, found.head, task, "test")
        return {
            **_marks(logits, labels[task]),
            "other": {
                "bare": _marks(bare, labels[other]),
                "disturbed": _marks(disturbed, labels[other]),
            },
            "rate": runs.rate(name, task)[0],
            "rates_tried": runs.rate(name, task)[1],
            "trained": found.trained,
            "data": work.suite.facts[task],
        }

    def after() -> dict[str, Any]:
        found = placed.sequence(name, task, other, seed)
        return {
            "before": _marks(found.before, labels[task]),
            "after": _marks(found.after, labels[task]),
            "new": _marks(found.new, labels[other]),
        }

    given = runs.given(name, kind="alone", task=task, other=other, seed=seed, test=test)
    _row(runs, f"alone-{name}-{task}-s{seed}", given, alone, seed)
    given = runs.given(name, kind="after", task=task, other=other, seed=seed, test=test)
    _row(runs, f"after-{name}-{task}-s{seed}", given, after, seed)


def _merge(placed: Placed, o: Config, how: str, name: str, seed: int) -> None:
    """Both tasks under their merged adapters."""
    runs, work = placed.runs, placed.work

    def merge() -> dict[str, Any]:
        scale, tried = placed.scale(how, name, o.tasks, o.scales)
        program, at = placed.merged(how, name, o.tasks, seed)
        tasks = {
            task: _marks(
                placed.scored(program, at(scale), name, task, seed, "test"),
                work.suite.labels("test", work.task(task)),
            )
            for task in o.tasks
        }
        return {"scale": scale, "scales_tried": tried, "tasks": tasks}

    more = {"tasks": list(o.tasks), "scales": list(o.scales), "test": o.test}
    given = runs.given(name, kind="merge", merge=how, seed=seed, **more)
    _row(runs, f"merge-{how}-{name}-s{seed}", given, merge, seed)


def _unseen(elsewhere: Elsewhere, name: str, left: str, seed: int) -> None:
    """One adapter for three domains, scored on all four."""
    runs = elsewhere.runs
    suite = runs.work.suite

    def unseen() -> dict[str, Any]:
        rate, tried = elsewhere.rate(name, left)
        found = elsewhere.run(name, left, seed, rate)
        domains = {
            task: _marks(
                runs.logits(name, found.state, found.head, task, "test"),
                suite.labels("test", i),
            )
            for i, task in enumerate(suite.tasks)
        }
        return {"rate": rate, "rates_tried": tried, "domains": domains}

    given = runs.given(
        name, kind="unseen", left=left, seed=seed, test=runs.work.options.test
    )
    _row(runs, f"unseen-{name}-{left}-s{seed}", given, unseen, seed)


def _time(runs: FamilyRuns, o: Config, batch: int) -> None:
    """The adapted layers, bare and with every adapter."""
    given = {
        "kind": "time",
        "weights": "a copy for each",
        "batch": batch,
        "layers": o.layers,
        "synthetic": o.synthetic,
        "sizes": {name: runs.size(name) for name in o.methods},
        "rounds": o.rounds,
        "processes": o.processes,
    }
    _row(runs, f"time-b{batch}", given, lambda: timed.times(given), 0)
