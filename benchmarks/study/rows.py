"""Rows that several tables write: adapters alone, together, merged."""

import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.study.joint import joint_run
from benchmarks.study.merges import Merging
from benchmarks.study.scores import digits, single_metrics
from benchmarks.study.singles import Singles

FIXED = {"lora": 0.4, "lori-d": 0.4, "lori-s": 0.3}  # of the authors' scripts


def single_rows(work: Singles, name: str, seed: int) -> None:
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
        save(work, row, metrics, given, begin, seed)


def interference_row(merging: Merging, name: str, seed: int) -> None:
    """Writes how far the adapters meet."""
    work = merging.work
    given = work.given(kind="interference", of="pairs", method=name, seed=seed)
    row = f"interference-{work.name}-{name}-s{seed}"
    if work.session.row(row, **given) is None:
        begin = time.perf_counter()
        save(work, row, merging.interference(name, seed), given, begin, seed)


def joint_row(work: Singles, seed: int) -> None:
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
            **scored(work, params, joint.heads, "test"),
        }
        save(work, row, metrics, given, begin, seed)


def merge_row(
    merging: Merging,
    scales: Sequence[float],
    merge: str,
    name: str,
    seed: int,
) -> None:
    """Merges the adapters of one seed; sums have a row at the authors' weights too."""
    work = merging.work
    about = {"kind": "merge", "method": name, "merge": merge, "seed": seed}
    given = work.given(**about, test=work.options.test, scales=list(scales))
    row = f"{work.name}-{merge}-{name}-s{seed}"
    fixed = merge in ("concat", "linear") and name in FIXED
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    scale, marks = _scale(merging, scales, merge, name)
    change = _change(merging, merge, name, seed)
    heads = _heads(work, name, seed)
    found = scored(work, merging.encoder(change, scale), heads, "test")
    metrics: dict[str, Any] = {"scale": scale, "valid_by_scale": marks, **found}
    if fixed:
        encoder = merging.encoder(change, FIXED[name])
        metrics["at_fixed"] = {
            "weight": FIXED[name],
            **scored(work, encoder, heads, "test"),
        }
    save(work, row, metrics, given, begin, seed)


def _change(merging: Merging, merge: str, name: str, seed: int) -> Any:
    """What the merge adds to the weights."""
    facts = merging.facts(merging.merges[merge].needs, name, seed)
    return merging.change(merge, merging.states(name, seed), facts, seed)


def _scale(
    merging: Merging, scales: Sequence[float], merge: str, name: str
) -> tuple[float, dict[str, float]]:
    """The scale with the best mean validation accuracy, on the first seed."""
    work, seed = merging.work, merging.work.options.seeds[0]
    given = work.given(merge=merge, method=name, scales=list(scales), seed=seed)
    row = f"scale-{work.name}-{merge}-{name}"
    kept = work.store.load_arrays(row, config=given)
    if kept is None:
        change, heads = _change(merging, merge, name, seed), _heads(work, name, seed)
        marks = [
            scored(work, merging.encoder(change, scale), heads, "valid")["mean"]
            for scale in scales
        ]
        kept = {"marks": np.array(marks)}
        work.store.save_arrays(row, kept, config=given)
    marks = [float(mark) for mark in kept["marks"]]
    best = scales[int(np.argmax(marks))]
    names = [f"{scale:g}" for scale in scales]
    return float(best), dict(zip(names, marks, strict=True))


def _heads(work: Singles, name: str, seed: int) -> list[Any]:
    return [work.single(name, task, seed).head for task in work.suite.tasks]


def scored(
    work: Singles, params: Any, heads: Sequence[Any], split: str
) -> dict[str, Any]:
    """Accuracy of one encoder on every task, each with its own head."""
    guesses = [
        work.trainer.logits(params, i, heads[i], split).argmax(axis=1)
        for i in range(len(work.suite.tasks))
    ]
    return scores_of(work, guesses, split)


def scores_of(
    work: Singles, guesses: Sequence[np.ndarray], split: str
) -> dict[str, Any]:
    """Accuracy of the predictions of every task, and their mean."""
    found: dict[str, Any] = {"tasks": {}}
    for i, (task, guess) in enumerate(zip(work.suite.tasks, guesses, strict=True)):
        labels = work.suite.labels(split, i)
        found["tasks"][task] = {
            "accuracy": stats.accuracy(guess, labels),
            "macro_f1": stats.macro_f1(
                guess, labels, classes=int(work.suite.classes[i])
            ),
            "predictions": {"labels": digits(labels), "test": digits(guess)},
        }
    values = [own["accuracy"] for own in found["tasks"].values()]
    return {"mean": float(np.mean(values)), **found}


def save(
    work: Singles, row: str, metrics: Any, given: Any, begin: float, seed: int
) -> None:
    """Writes a row that began at a time."""
    seconds = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=seconds, seed=seed)
