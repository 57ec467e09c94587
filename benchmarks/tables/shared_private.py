"""Does sharing save parameters at equal accuracy? Sentiment in four domains.

The first objection to parallel adapters is that each must learn anew what the tasks
share. Here four domains of one task (movie and product reviews, tweets, newspaper
comments) have: an adapter each; a smaller one each, of together as many numbers as one
adapter; one adapter for all; a shared LoRA with private LoRIs; MTL-LoRA's shared
factors with a private r x r matrix and mixture; HydraLoRA's shared A with a router over
several B. Every domain has its own head and sees the same batches in all of them.

Written down before the run. H19: the schemes with a shared part reach the accuracy of
an adapter each (within 1 point) with half of its numbers or fewer. H20: one adapter for
all is worse than an adapter each.

Command: python -m benchmarks run shared_private
Paper: HydraLoRA, arXiv:2404.19245, and MTL-LoRA, arXiv:2410.09437, have other models
and tasks: no number of theirs stands here.
Cost: 15 min on 2 cores
Rows: 60
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.rows import joint_row, save, scores_of, single_rows
from benchmarks.study.shared import SCHEMES, Shared, Sharing
from benchmarks.study.singles import TUNING_SEED, Options, Singles
from benchmarks.study.train import nll
from benchmarks.tables import _shared_private_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    schemes: tuple[str, ...] = tuple(SCHEMES)
    """Which schemes with a shared part to run."""
    singles: tuple[str, ...] = ("lora", "lora-r2")
    """Which adapters of one domain each to run beside them."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {"seeds": (0,), "singles": ("lora",)}
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Trains and scores adapters apart, together, and in parts; rows are kept."""
    work = Singles(config, session, "domains")
    sharing = Sharing(work)
    for name in config.singles:
        for seed in config.seeds:
            single_rows(work, name, seed)
    for seed in config.seeds:
        joint_row(work, seed)
    with session.progress(len(config.schemes) * len(config.seeds), "joint runs") as bar:
        for name in config.schemes:
            for seed in config.seeds:
                _scheme_row(sharing, name, seed)
                bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _scheme_row(sharing: Sharing, name: str, seed: int) -> None:
    """Trains one scheme jointly and scores every domain."""
    work = sharing.work
    given = work.given(kind="shared", scheme=name, seed=seed, test=work.options.test)
    row = f"{name}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    rate, tried = _rate(sharing, name)
    found = sharing.train(name, seed, rate)
    guesses = [
        sharing.logits(name, found, i, "test").argmax(axis=1)
        for i in range(len(work.suite.tasks))
    ]
    metrics: dict[str, Any] = {
        "rate": rate,
        "rates_tried": tried,
        "private": found.private,
        "shared": found.shared,
        "trained": found.shared + found.private * len(work.suite.tasks),
        **scores_of(work, guesses, "test"),
    }
    save(work, row, metrics, given, begin, seed)


def _rate(sharing: Sharing, name: str) -> tuple[float, list[float]]:
    """The rate with the least mean validation loss, and the losses tried."""
    work, rates = sharing.work, sharing.work.options.rates
    given, row = work.given(kind="shared", scheme=name), f"rate-shared-{name}"
    kept = work.store.load_arrays(row, config=given)
    if kept is None:
        losses = [
            _loss(sharing, name, sharing.train(name, TUNING_SEED, x)) for x in rates
        ]
        kept = {"losses": np.array(losses)}
        work.store.save_arrays(row, kept, config=given)
    tried = [float(x) for x in kept["losses"]]
    best = int(np.argmin(np.where(np.isfinite(tried), tried, 1e30)))
    return float(rates[best]), tried


def _loss(sharing: Sharing, name: str, found: Shared) -> float:
    """Mean validation loss over the domains."""
    suite = sharing.work.suite
    losses = [
        nll(sharing.logits(name, found, i, "valid"), suite.labels("valid", i))
        for i in range(len(suite.tasks))
    ]
    return float(np.mean(losses))
