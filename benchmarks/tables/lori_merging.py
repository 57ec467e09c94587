"""Merging LoRA and LoRI: every merge, two suites of tasks, one scale from validation.

One adapter for each task is merged into one encoder; heads are never merged, each task
is scored with its own head, frozen. Two suites, never averaged together: four different
tasks (SMS spam, TREC questions, WordNet glosses, movie reviews), and sentiment in four
domains. The scale of the merged change is chosen on validation data from one grid for
each merge, method and suite; the weights of the authors' scripts are rows of their own;
one LoRA trained on all tasks at once is the ceiling. Reads the adapters that
`lori_mask` trained, and trains what it lacks.

Written down before the run. H8: merged by the sum, LoRI-D and LoRI-S keep more of
their gain than LoRA does. H9: LoRI-S merges better than LoRI-D. H10: PEFT's linear
merge is worse than the exact sum. H11: TIES, DARE and their kin do not beat the sum.
H12: subspace merges (TSV, Iso, Core Space) beat the sum. H13: nothing reaches the
jointly trained adapter.

Command: python -m benchmarks run lori_merging
Paper: LoRI, arXiv:2504.07448, has other models and tasks: no number of it stands here.
Cost: 40 min on 2 cores
Rows: 706
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.joint import joint_run
from benchmarks.study.merges import Merging, merges
from benchmarks.study.scores import digits, single_metrics
from benchmarks.study.singles import Options, Singles
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _lori_merging_report as reporting

ADAPTERS = ("lora", "lori-d", "lori-s")
FIXED = {"lora": 0.4, "lori-d": 0.4, "lori-s": 0.3}  # of the authors' scripts


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    suites: tuple[str, ...] = tuple(SUITES)
    """Which suites to run."""
    adapters: tuple[str, ...] = ADAPTERS
    """Which adapters to merge."""
    merges: tuple[str, ...] = tuple(merges(1))
    """Which merges to run."""
    scales: tuple[float, ...] = (0.25, 0.4, 0.6, 1.0, 1.6, 2.5)
    """Scales of the merged change to choose from; 0.25 is the mean of four."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "suites": ("tasks",),
            "adapters": ("lora", "lori-s"),
            "merges": ("concat", "linear", "ties"),
            "scales": (0.25, 1.0),
        }
        return dataclasses.replace(self, **self.tiny(), **own)


def run(config: Config, session: Session) -> None:
    """Scores single adapters, the joint one, and every merge; rows are kept."""
    for suite in config.suites:
        work = Singles(config, session, suite)
        merging = Merging(work)
        for name in config.adapters:
            for seed in config.seeds:
                _single_rows(work, name, seed)
                _interference_row(merging, name, seed)
        for seed in config.seeds:
            _joint_row(work, seed)
        total = len(config.merges) * len(config.adapters) * len(config.seeds)
        with session.progress(total, f"merges, {suite}") as bar:
            for merge in config.merges:
                for name in config.adapters:
                    for seed in config.seeds:
                        _merge_rows(merging, config, merge, name, seed)
                        bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _single_rows(work: Singles, name: str, seed: int) -> None:
    """Scores one adapter on its own task, and its head with the adapter off."""
    for task in work.suite.tasks:
        given = work.given(
            kind="single", method=name, task=task, seed=seed, test=work.options.test
        )
        row = f"single-{work.name}-{name}-{task}-s{seed}"
        if work.session.row(row, **given) is not None:
            continue
        begin = time.perf_counter()
        single = work.single(name, task, seed)
        metrics = single_metrics(work, name, task, single)
        metrics |= {
            "rate": single.rate,
            "trained": single.trained,
            "data": work.suite.facts[task],
        }
        _save(work, row, metrics, given, begin, seed)


def _interference_row(merging: Merging, name: str, seed: int) -> None:
    """Writes how far the adapters meet."""
    work = merging.work
    given = work.given(kind="interference", method=name, seed=seed)
    row = f"interference-{work.name}-{name}-s{seed}"
    if work.session.row(row, **given) is None:
        begin = time.perf_counter()
        _save(work, row, merging.interference(name, seed), given, begin, seed)


def _joint_row(work: Singles, seed: int) -> None:
    """Trains one LoRA for all tasks, each with its head, and scores it."""
    given = work.given(kind="joint", seed=seed, test=work.options.test)
    row = f"joint-{work.name}-s{seed}"
    if work.session.row(row, **given) is None:
        begin = time.perf_counter()
        joint = joint_run(work, seed)
        params = work.trainer.form("lora", work.transform("lora"), joint.state)
        metrics = {
            "rate": joint.rate,
            "rates_tried": joint.tried,
            "trained": joint.trained,
            **_scored(work, params, joint.heads, "test"),
        }
        _save(work, row, metrics, given, begin, seed)


def _merge_rows(
    merging: Merging, config: Config, merge: str, name: str, seed: int
) -> None:
    """Merges the adapters of one seed; sums have a row at the authors' weights too."""
    work = merging.work
    about = {"kind": "merge", "method": name, "merge": merge, "seed": seed}
    given = work.given(**about, test=config.test, scales=list(config.scales))
    row = f"{work.name}-{merge}-{name}-s{seed}"
    fixed = merge in ("concat", "linear")
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    scale, marks = _scale(merging, config, merge, name)
    change = _change(merging, merge, name, seed)
    heads = _heads(work, name, seed)
    found = _scored(work, merging.encoder(change, scale), heads, "test")
    metrics: dict[str, Any] = {"scale": scale, "valid_by_scale": marks, **found}
    if fixed:
        encoder = merging.encoder(change, FIXED[name])
        metrics["at_fixed"] = {
            "weight": FIXED[name],
            **_scored(work, encoder, heads, "test"),
        }
    _save(work, row, metrics, given, begin, seed)


def _change(merging: Merging, merge: str, name: str, seed: int) -> Any:
    """What the merge adds to the weights."""
    facts = merging.facts(merging.merges[merge].needs, name, seed)
    return merging.change(merge, merging.states(name, seed), facts, seed)


def _scale(
    merging: Merging, config: Config, merge: str, name: str
) -> tuple[float, dict[str, float]]:
    """The scale with the best mean validation accuracy, on the first seed."""
    work, seed = merging.work, config.seeds[0]
    given = work.given(merge=merge, method=name, scales=list(config.scales), seed=seed)
    row = f"scale-{work.name}-{merge}-{name}"
    kept = work.store.load_arrays(row, config=given)
    if kept is None:
        change, heads = _change(merging, merge, name, seed), _heads(work, name, seed)
        marks = [
            _scored(work, merging.encoder(change, scale), heads, "valid")["mean"]
            for scale in config.scales
        ]
        kept = {"marks": np.array(marks)}
        work.store.save_arrays(row, kept, config=given)
    marks = [float(mark) for mark in kept["marks"]]
    best = config.scales[int(np.argmax(marks))]
    names = [f"{scale:g}" for scale in config.scales]
    return float(best), dict(zip(names, marks, strict=True))


def _heads(work: Singles, name: str, seed: int) -> list[Any]:
    return [work.single(name, task, seed).head for task in work.suite.tasks]


def _scored(
    work: Singles, params: Any, heads: Sequence[Any], split: str
) -> dict[str, Any]:
    """Accuracy of one encoder on every task, each with its own head."""
    found: dict[str, Any] = {"tasks": {}}
    for i, task in enumerate(work.suite.tasks):
        labels = work.suite.labels(split, i)
        guess = work.trainer.logits(params, i, heads[i], split).argmax(axis=1)
        found["tasks"][task] = {
            "accuracy": stats.accuracy(guess, labels),
            "macro_f1": stats.macro_f1(
                guess, labels, classes=int(work.suite.classes[i])
            ),
            "predictions": {"labels": digits(labels), "test": digits(guess)},
        }
    values = [own["accuracy"] for own in found["tasks"].values()]
    return {"mean": float(np.mean(values)), **found}


def _save(
    work: Singles, row: str, metrics: Any, given: Any, begin: float, seed: int
) -> None:
    seconds = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=seconds, seed=seed)
