"""Four text tasks at once on MiniLM: LoRA, LoRI and their merges against a probe.

Trains adapters of rank 8 on all 36 projections of all-MiniLM-L6-v2, and a head, for
TREC questions, SMS spam, movie reviews and product reviews in one jitted step over one
frozen base: as LoRA, as LoRI-D, and as LoRI-S under the mask that LoRI-D gave. Every
head starts from a tuned logistic regression on frozen features, which is also what the
methods must beat. Then the four adapters are merged, each task keeping its own head;
last, the merged LoRA adapters are programmed into a faulty RRAM chip, and healed.

Command: python -m benchmarks run quickstart
Paper: LoRI, arXiv:2504.07448, has other models and tasks: no number of it stands here.
Cost: 10 min on 2 cores, 116 MB of downloads once
Rows: 20
"""

import dataclasses
import time
from typing import Any

import numpy as np

import lowrank as lrk
from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _quickstart_report as reporting
from benchmarks.tables import _quickstart_score as scoring
from benchmarks.tables import _quickstart_train as training
from benchmarks.tables._quickstart_chip_rows import chip_rows
from benchmarks.tables._quickstart_tasks import TITLES, Head, Task
from benchmarks.tables._quickstart_work import Work, masks_of, trained_state


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    seeds: tuple[int, ...] = (0,)
    """Seeds of the adapters and of the order of batches."""
    rank: int = 8
    """Rank of every adapter."""
    alpha: float = 16.0
    """The adapter's scale is alpha / rank."""
    density: float = 0.1
    """Share of B's entries that LoRI-S keeps."""
    steps: int = 64
    """Steps of every method; each takes one batch of each task."""
    batch: int = 16
    """Examples of each task in a step."""
    rates: tuple[float, ...] = (1e-3, 3e-3, 1e-2)
    """Peak learning rates to choose from, for each method and task."""
    trial: int = 8
    """Steps that every rate runs before one is chosen."""
    weights: tuple[float, ...] = (0.25, 0.5, 1.0)
    """Weights of the merge to choose from."""
    train: int = 1280
    """Most training examples of a task, for every method and the probe."""
    valid: int = 128
    """Most validation examples of a task."""
    test: int = 500
    """Most test examples of a task."""
    edges: tuple[int, ...] = (16, 32, 48)
    """Lengths in tokens to which batches are padded; longer texts are cut."""
    chip_rates: tuple[float, ...] = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08)
    """Shares of stuck cells to choose from, for the chip."""
    chip_lrs: float = 0.5
    """Share of the stuck cells that are stuck at low resistance."""
    chip_train: int = 128
    """Training texts of a task for the new heads and for healing."""
    chip_valid: int = 32
    """Validation texts of a task for the stuck rate and the new heads."""
    chip_test: int = 100
    """Test texts of a task for the chip, the last ones."""
    chip_steps: int = 10
    """Steps of healing; each takes one batch of each task."""
    chip_learning: tuple[float, ...] = (1e-3, 3e-3)
    """Peak learning rates of healing to choose from, on validation texts."""
    chip_trial: int = 3
    """Steps that every rate of healing runs before one is chosen."""
    synthetic: bool = False
    """Use made-up texts and a tiny random encoder: no download."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            steps=6,
            trial=2,
            rates=(3e-3, 1e-2),
            weights=(0.5, 1.0),
            train=64,
            valid=32,
            test=48,
            edges=(32,),
            chip_rates=(0.01, 0.1),
            chip_train=32,
            chip_valid=16,
            chip_test=24,
            chip_steps=2,
            chip_trial=1,
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Runs the probes, each method for each seed, then the chip; rows are kept."""
    work = Work(config, session)
    for name in TITLES:
        _probe_row(work, name)
    for seed in config.seeds:
        for method in training.METHODS:
            missing = [
                name
                for name in TITLES
                if session.row(
                    _row(method, name, seed), **work.given(method, name, seed)
                )
                is None
            ]
            if missing:
                _method_rows(work, method, seed, missing)
    chip_rows(work, config.seeds[0])


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(method: str, task: str, seed: int) -> str:
    """The name of a row."""
    return f"{method}-{task}-s{seed}"


def _probe_row(work: Work, name: str) -> None:
    """Writes the record of a task's probe, and what is known of its data."""
    given = {**work.data_given(), "method": "probe", "task": name}
    if work.session.row(f"probe-{name}", **given) is not None:
        return
    begin = time.perf_counter()
    task = next(task for task in work.tasks if task.name == name)
    probe = work.probes[name]  # the first row pays for loading and all features
    labels = task.parts["test"].labels
    guess = scoring.predict(probe.head, work.frozen[name]["test"], task)
    metrics = {
        **_accuracies(guess, labels, task.classes),
        "majority": stats.accuracy(
            np.full(len(labels), task.facts["majority"]), labels
        ),
        "strength": probe.strength,
        "valid_loss": probe.loss,
        "parameters": {"head": _head_size(probe.head, task), "adapter": 0, "fixed": 0},
        "data": task.facts,
        "predictions": {
            "labels": scoring.digits(labels),
            "test": scoring.digits(guess),
        },
    }
    seconds = time.perf_counter() - begin
    work.session.save(f"probe-{name}", metrics, config=given, seconds=seconds, seed=0)


def _accuracies(guess: np.ndarray, labels: np.ndarray, classes: int) -> dict[str, Any]:
    """Accuracy with its 95 % interval, and macro F1."""
    value, low, high = stats.bootstrap_interval(guess == labels)
    return {
        "accuracy": {"value": value, "low": low, "high": high},
        "macro_f1": stats.macro_f1(guess, labels, classes=classes),
    }


def _head_size(head: Head, task: Task) -> int:
    """Parameters of the outputs that the task has; the padding never changes."""
    return (head.kernel.shape[0] + 1) * task.classes


def _method_rows(work: Work, method: str, seed: int, missing: list[str]) -> None:
    """Trains, merges and scores one method, and writes the records that are missing."""
    config, session, tasks = work.config, work.session, work.tasks
    begin = time.perf_counter()
    masks = masks_of(work, seed) if method == "lori-s" else None
    trained = trained_state(work, method, seed, masks)
    total = scoring.texts_to_score(tasks, config.weights)
    with session.progress(total, f"{training.METHODS[method]}: scores (texts)") as bar:
        scored = scoring.score(
            work.compiled(method)[1],
            work.model,
            tasks,
            trained.state,
            work.frozen,
            config.edges,
            config.weights,
            bar.update,
        )
    seconds = (time.perf_counter() - begin) / len(tasks)
    for i, task in enumerate(tasks):
        if task.name not in missing:
            continue
        metrics = _metrics(work, i, trained, scored)
        metrics |= {
            "rate": float(trained.rates[i]),
            "trial_losses": trained.trial[:, i],
            "steps": config.steps,
            "train_seconds": trained.seconds,
            "step_seconds": trained.step_seconds,
        }
        if masks:
            metrics["kept"] = scoring.kept_shares(masks[i])
        session.save(
            _row(method, task.name, seed),
            metrics,
            config=work.given(method, task.name, seed),
            series={"loss": trained.losses[:, i]},
            seconds=seconds,
            seed=seed,
        )


def _metrics(
    work: Work, number: int, trained: training.Trained, scored: scoring.Scored
) -> dict[str, Any]:
    """What a record says of one task, but for the training."""
    task = work.tasks[number]
    name, labels = task.name, task.parts["test"].labels
    probe = scoring.predict(work.probes[name].head, work.frozen[name]["test"], task)
    own = training.unstacked(training.adapters_of(trained.state), number)
    trainable, fixed = lrk.count(own)
    guesses = {
        "test": scored.test[name],
        "off": scored.off[name],
        "merged": scored.merged[name],
    }
    gap = stats.paired_bootstrap(guesses["test"] == labels, probe == labels)
    return {
        **_accuracies(guesses["test"], labels, task.classes),
        "off": _accuracies(guesses["off"], labels, task.classes),
        "merged": _accuracies(guesses["merged"], labels, task.classes),
        "minus_probe": gap._asdict(),
        "valid_accuracy": scored.valid[name],
        "merge_weight": scored.weight,
        "merge_valid": scored.merges,
        "parameters": {
            "adapter": trainable,
            "head": _head_size(work.probes[name].head, task),
            "fixed": fixed,
        },
        "predictions": {
            "labels": scoring.digits(labels),
            **{kind: scoring.digits(guess) for kind, guess in guesses.items()},
        },
    }
