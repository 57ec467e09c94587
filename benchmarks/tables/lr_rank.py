"""Learning rate by rank: whether alpha / sqrt(r) keeps the best rate where it is.

LoRA multiplies its product by alpha / r, rsLoRA by alpha / sqrt(r). Ranks 1 to 64 with
both rules, eight learning rates and five seeds are one mapped program: adapters of all
ranks are filled up with zeros to the largest, which stay zeros. Both rules give a scale
of 2 at rank 8. Adam, the last layer of MiniLM, TREC questions.

Written down before the run, from the claims of rsLoRA. R1: the best rate drifts less
with the rank under alpha / sqrt(r). R2: with it, rank 64 at its best rate is better on
test texts than rank 4 at its own. R3: at rank 64, with the rate that is best at rank 8,
alpha / sqrt(r) has the lower validation loss. R4: each at its own best rate, the two
rules are within a point of each other at rank 64.

Command: python -m benchmarks run lr_rank
Paper: Kalajdzievski, arXiv:2312.03732, trains a 7-billion model; no number stands here.
Cost: 10 min on 1 core
Rows: 70
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.rank_sweep import RULES, Result, scale, sweep
from benchmarks.study.rows import save
from benchmarks.study.scores import digits
from benchmarks.study.singles import Options, Singles
from benchmarks.study.train import nll
from benchmarks.tables import _lr_rank_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    layers: int = 1
    """How many of MiniLM's last layers are adapted; those below run once."""
    rank: int = 64
    """The largest rank, up to which adapters are filled with zeros."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    """Ranks."""
    rates: tuple[float, ...] = (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2, 6.4e-2)
    """Peak learning rates."""
    test: int = 200
    """Test texts."""
    task: str = "trec"
    """Which task."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {"rank": 4, "ranks": (1, 4), "rates": (1e-3, 1e-2)}
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Runs the whole grid in one call, unless all of its rows are there."""
    work = Singles(config, session, "tasks")
    rows = {
        (rule, rank, seed): _given(work, config, rule, rank, seed)
        for rule in RULES
        for rank in config.ranks
        for seed in config.seeds
    }
    names = {key: "{}-r{}-s{}".format(*key) for key in rows}
    if all(session.row(names[key], **given) is not None for key, given in rows.items()):
        return
    begin = time.perf_counter()
    runs = sorted(
        {
            (scale(rule, rank), rank, seed, rate)
            for rule, rank, seed in rows
            for rate in config.rates
        }
    )
    session.log(f"{len(runs)} runs in one program")
    found = sweep(work, config.task, config.ranks, runs)
    places = {run: i for i, run in enumerate(runs)}
    for (rule, rank, seed), given in rows.items():
        own = [places[scale(rule, rank), rank, seed, rate] for rate in config.rates]
        metrics = _metrics(work, config.task, Result(*(x[own] for x in found)))
        metrics |= {"scale": scale(rule, rank), "data": work.suite.facts[config.task]}
        save(work, names[rule, rank, seed], metrics, given, begin, seed)


def _given(
    work: Singles, config: Config, rule: str, rank: int, seed: int
) -> dict[str, Any]:
    """What decides a row; `rank` of the options is the largest."""
    given = work.given(largest=max(config.ranks), task=config.task, test=config.test)
    return {**given, "kind": "lr-rank", "rule": rule, "rank": rank, "seed": seed}


def _metrics(work: Singles, task: str, found: Result) -> dict[str, Any]:
    """Losses and predictions of one row, by rate."""
    number = work.task(task)
    valid, test = (work.suite.labels(split, number) for split in ("valid", "test"))
    losses = [nll(logits, valid) for logits in found.valid]
    return {
        "train_loss": found.loss.tolist(),
        "valid_loss": losses,
        "valid_accuracy": np.mean(found.valid.argmax(axis=2) == valid, axis=1).tolist(),
        "labels": digits(test),
        "test": [digits(guess) for guess in found.test],
    }


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
