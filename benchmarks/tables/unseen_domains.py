"""Does a smaller adapter carry further? Sentiment in a domain that was never seen.

Four domains of one task: movie and product reviews, tweets, newspaper comments. One
adapter with one head is trained on three of them and scored on their own test texts and
on those of the fourth: LoRA, LoRI-D and LoRI-S, a serial adapter, full fine-tuning of
the same layers, and a head on the frozen encoder. Each with 1,000, 300 and 100 labelled
texts of each seen domain, and on test texts with typos.

Written down before the run. D1: with 1,000 texts every trained way beats the frozen
encoder's head on the seen domains. D2: on the unseen domain no adapter is worse than
full fine-tuning. D3: full fine-tuning loses more from seen to unseen domains than
LoRI-S does. D4: with 100 texts no trained way is better than the head alone on the
unseen domain. D5: typos cost no adapter more than they cost the head alone, but for a
point.

Command: python -m benchmarks run unseen_domains
Paper: none; a question of LoRA's readers.
Cost: 60 min on 1 core
Rows: 264
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.rows import save
from benchmarks.study.scores import digits
from benchmarks.study.singles import Options, Singles
from benchmarks.study.tasks import SUITES
from benchmarks.study.unseen import METHODS, Run, Unseen
from benchmarks.tables import _unseen_domains_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    head: int = 500
    """Training texts of each domain on which the heads' starts are fitted."""
    train: int = 500
    """Other training texts of each domain, which the runs see."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which ways."""
    lefts: tuple[str, ...] = tuple(SUITES["domains"])
    """Domains to leave out, one at a time."""
    shots: tuple[int, ...] = (1_000, 300, 100)
    """Labelled texts of each seen domain: half start the head, half train."""
    few_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the smaller numbers of texts."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "methods": ("probe", "lori-s", "serial"),
            "lefts": ("sentiment_tweets",),
            "shots": (64, 16),
            "few_seeds": (0,),
            "head": 32,
            "train": 32,
        }
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Trains and scores every way with every domain left out; rows are kept."""
    unseen = Unseen(Singles(config, session, "domains"))
    rows = [
        (name, left, shots, seed)
        for shots in config.shots
        for name in config.methods
        for left in config.lefts
        for seed in (config.seeds if shots == max(config.shots) else config.few_seeds)
    ]
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            _row(unseen, *row)
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(unseen: Unseen, name: str, left: str, shots: int, seed: int) -> None:
    """One run of one way."""
    work = unseen.work
    given = work.given(
        kind="unseen",
        method=name,
        left=left,
        shots=shots,
        seed=seed,
        test=work.options.test,
    )
    row = f"{name}-{left}-n{shots}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    rate, tried = (None, []) if name == "probe" else unseen.rate(name, left)
    found = unseen.run(name, left, shots, seed)
    metrics: dict[str, Any] = {"rate": rate, "rates_tried": tried}
    metrics |= {"trained": found.trained, "domains": _scores(unseen, name, found)}
    save(work, row, metrics, given, begin, seed)


def _scores(unseen: Unseen, name: str, found: Run) -> dict[str, Any]:
    """Predictions on the test texts of every domain, as they are and with typos."""
    suite = unseen.work.suite
    return {
        task: {
            "labels": digits(suite.labels("test", i)),
            "test": digits(unseen.logits(name, found, i, "test").argmax(axis=1)),
            "typos": digits(
                unseen.logits(name, found, i, "test", typos=True).argmax(axis=1)
            ),
        }
        for i, task in enumerate(suite.tasks)
    }
