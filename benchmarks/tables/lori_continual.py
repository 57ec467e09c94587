"""One adapter through a sequence of tasks: what LoRA, LoRI-D and LoRI-S forget.

A spam filter stands in for the safety training that the authors begin with. One adapter
is trained on SMS spam, then TREC questions, WordNet glosses and movie reviews, and in a
second run in reverse. Each task has a head of its own, started from its probe, trained
with the adapter in its own stage and frozen after it. LoRA goes on training A and B;
LoRI keeps the A of the first stage; LoRI-S trains, in each stage, the entries of B that
the mask of that task keeps (from that task's own LoRI-D run, which had another A, as in
the authors' scripts). Nothing is replayed. After each stage every task seen so far is
scored.

Written down before the run. H16: LoRI-D forgets less than LoRA. H17: LoRI-S forgets
less than LoRI-D. H18: what LoRI forgets less, it also learns less.

Command: python -m benchmarks run lori_continual
Paper: LoRI, arXiv:2504.07448, measures refusals of 7-billion models; no number stands
here.
Cost: 15 min on 2 cores
Rows: 30
"""

import dataclasses
import time
from typing import Any

import jax
import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study.scores import digits
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _lori_continual_report as reporting

ORDERS = ("forward", "reversed")
METHODS = ("lora", "lori-d", "lori-s")


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    methods: tuple[str, ...] = METHODS
    """Which methods to run."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {"methods": ("lora", "lori-s"), "seeds": (0,)}
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Runs each sequence; finished rows are kept."""
    work = Singles(config, session, "tasks")
    total = len(config.methods) * len(ORDERS) * len(config.seeds)
    with session.progress(total, "sequences") as bar:
        for name in config.methods:
            for order in ORDERS:
                for seed in config.seeds:
                    _row(work, name, order, seed)
                    bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(work: Singles, name: str, order: str, seed: int) -> None:
    """One sequence: after each stage, the accuracy of every task seen so far."""
    given = work.given(method=name, order=order, seed=seed, test=work.options.test)
    row = f"{name}-{order}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    tasks = work.suite.tasks[:: 1 if order == "forward" else -1]
    heads: dict[str, Any] = {}
    state = work.fresh(name, tasks[0], seed)
    stages, predictions = [], {}
    for stage, task in enumerate(tasks):
        state, heads[task] = _stage(work, name, state, task, seed)
        seen = {}
        for old in tasks[: stage + 1]:
            labels = work.suite.labels("test", work.task(old))
            logits = work.logits(name, state, heads[old], old, "test")
            guess = logits.argmax(axis=1)
            seen[old] = stats.accuracy(guess, labels)
            predictions[f"{stage}-{old}"] = digits(guess)
            predictions[f"labels-{old}"] = digits(labels)
        stages.append({"task": task, "accuracy": seen})
    metrics = {
        "stages": stages,
        "rates": {task: work.rate(name, task)[0] for task in tasks},
        "predictions": predictions,
    }
    seconds = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=seconds, seed=seed)


def _stage(
    work: Singles, name: str, state: Any, task: str, seed: int
) -> tuple[Any, tuple[np.ndarray, np.ndarray]]:
    """Trains the adapter on one task: its state, and the task's head."""
    method, (rate, _) = ways.METHODS[name], work.rate(name, task)
    mask = work.mask(name, task, seed)
    job = work.job(method, state, mask, task, seed, rate)
    trained = work.trainer.train(method.kind, work.transform(name), job)
    kernels, biases = trained.heads
    own = jax.tree.map(np.asarray, trained.trainable)
    return state._replace(trainable=own), (kernels[0], biases[0])
