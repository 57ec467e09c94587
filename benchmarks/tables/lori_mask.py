"""Does LoRI's mask matter? LoRI-S against masks that a sceptic would try.

Adapters of rank 8 on the last two of MiniLM's six layers, for four text tasks (SMS
spam, TREC questions, WordNet glosses, movie reviews), 48 steps of 16 texts each, the
heads started from a probe on other training texts. LoRI-S is trained under the mask of
a whole LoRI-D run, B from zero, as its authors do; the controls have masks of the same
density from elsewhere. Then densities from .9 to .01 and four scopes,
on the two tasks with most room.

Written down before the run. H1: LoRI-S and LoRI-D are within 1 point of LoRA on the
mean of the tasks. H2: LoRI's mask beats a random one of the same counts. H3: the
smallest |B| is the worst mask. H4: a drawn-anew A costs nothing. H5: another task's
mask is worse than the task's own. H6: accuracy is flat from density .9 to .1 and falls
at .01. H7: LoRA at twice the steps beats LoRI-S, whose two stages cost as much.

Command: python -m benchmarks run lori_mask
Paper: LoRI, arXiv:2504.07448, has 7-billion models and other tasks: no number of it
stands here.
Cost: 60 min on 2 cores, shared by the other LoRI tables
Rows: 376
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study.scores import digits, single_metrics
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _lori_mask_report as reporting

ORDER = (*ways.HEADLINE, *ways.SWEEP)  # LoRA and LoRI-D first: masks need the latter


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    methods: tuple[str, ...] = ORDER
    """Which methods to run."""
    sweep_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the densities and scopes."""
    sweep_tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Tasks of the densities and scopes: those with room above their probe."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        few = ("lora", "lori-d", "lori-s", "gradient", "kept", "full", "density-0.5")
        own = {"methods": few, "sweep_seeds": (0,), "sweep_tasks": ("trec",)}
        return dataclasses.replace(self, **self.tiny(), **own)


def run(config: Config, session: Session) -> None:
    """Tunes and trains each method on each task; finished rows are kept."""
    unknown = [name for name in config.methods if name not in ways.METHODS]
    if unknown:
        raise ValueError(f"lori_mask: unknown methods {unknown}; known: {list(ORDER)}.")
    work = Singles(config, session, "tasks")
    _probe_rows(work)
    rows = [
        (name, task, seed)
        for name in config.methods
        for task in _tasks(config, name, work.suite.tasks)
        for seed in _seeds(config, name)
    ]
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            _row(work, *row)
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _seeds(config: Config, name: str) -> tuple[int, ...]:
    return config.sweep_seeds if name in ways.SWEEP else config.seeds


def _tasks(config: Config, name: str, every: tuple[str, ...]) -> tuple[str, ...]:
    return config.sweep_tasks if name in ways.SWEEP else every


def _probe_rows(work: Singles) -> None:
    """Writes what the start is worth: the probe's head on the bare encoder."""
    for task in work.suite.tasks:
        given = work.given(method="start", task=task, test=work.options.test)
        row = f"start-{task}"
        if work.session.row(row, **given) is not None:
            continue
        begin, number = time.perf_counter(), work.task(task)
        labels = work.suite.labels("test", number)
        guess = work.off(work.trainer.head(number), task, "test").argmax(axis=1)
        metrics = {
            "accuracy": float(np.mean(guess == labels)),
            "data": work.suite.facts[task],
            "predictions": {"labels": digits(labels), "test": digits(guess)},
        }
        seconds = time.perf_counter() - begin
        work.session.save(row, metrics, config=given, seconds=seconds, seed=0)


def _row(work: Singles, name: str, task: str, seed: int) -> None:
    """One run of one method, scored on the test split."""
    given: dict[str, Any] = work.given(
        method=name, task=task, seed=seed, test=work.options.test
    )
    row = f"{name}-{task}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    _, tried = work.rate(name, task)
    single = work.single(name, task, seed)
    metrics = single_metrics(work, name, task, single)
    metrics |= {"rate": single.rate, "rates_tried": tried, "trained": single.trained}
    if (mask := work.mask(name, task, seed)) is not None:
        metrics["kept"] = ways.kept_shares(mask)
    work.session.save(
        row,
        metrics,
        config=given,
        series={"loss": single.losses},
        seconds=time.perf_counter() - begin,
        seed=seed,
    )
