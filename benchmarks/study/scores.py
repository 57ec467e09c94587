"""Scores of an adapter, and how records hold predictions."""

from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.study.singles import Single, Singles


def digits(numbers: np.ndarray) -> str:
    """Class numbers below 10 as one string, which a record holds well."""
    return "".join(str(int(number)) for number in numbers)


def numbers(text: str) -> np.ndarray:
    """The inverse of `digits`."""
    return np.array([int(letter) for letter in text])


def single_metrics(
    work: Singles, name: str, task: str, single: Single
) -> dict[str, Any]:
    """What a record says of an adapter: alone, and its head with the adapter off."""
    number = work.task(task)
    state, classes = work.state(name, single), int(work.suite.classes[number])
    found: dict[str, Any] = {}
    labels = {split: work.suite.labels(split, number) for split in ("valid", "test")}
    logits = {
        split: work.logits(name, state, single.head, task, split) for split in labels
    }
    guess = logits["test"].argmax(axis=1)
    off = work.off(single.head, task, "test").argmax(axis=1)
    found["accuracy"] = stats.accuracy(guess, labels["test"])
    found["macro_f1"] = stats.macro_f1(guess, labels["test"], classes=classes)
    found["off"] = stats.accuracy(off, labels["test"])
    found["valid_accuracy"] = stats.accuracy(
        logits["valid"].argmax(axis=1), labels["valid"]
    )
    found["predictions"] = {
        "labels": digits(labels["test"]),
        "test": digits(guess),
        "off": digits(off),
    }
    return found


def right(records: Records, kind: str = "test") -> np.ndarray:
    """Which test examples are right, `[seeds, n]`, for the records of one cell."""
    ordered = sorted(records, key=lambda record: record.seed)
    found = [record.metrics["predictions"] for record in ordered]
    return np.stack([numbers(p[kind]) == numbers(p["labels"]) for p in found])


def percent(scores: np.ndarray) -> tuple[float, float, float]:
    """Mean in per cent with its 95 % interval, over seeds and examples."""
    value, low, high = stats.bootstrap_interval(scores)
    return (100 * value, 100 * low, 100 * high)


def gap(one: np.ndarray, two: np.ndarray) -> stats.Difference:
    """The paired difference in points; rows are seeds, or one row for all seeds."""
    seeds = max(len(one), len(two))
    pair = [np.broadcast_to(x, (seeds, x.shape[1])) for x in (one, two)]
    found = stats.paired_bootstrap(*pair)
    return stats.Difference(
        100 * found.difference,
        100 * found.low,
        100 * found.high,
        found.share_not_positive,
    )


def signed(found: stats.Difference) -> str:
    """Writes a difference with its interval, signs included."""
    return f"{found.difference:+.1f} [{found.low:+.1f}, {found.high:+.1f}]"


def judgement(found: stats.Difference) -> str:
    """Whether an interval lies above zero, below it, or holds it."""
    if found.low > 0:
        return "better"
    return "worse" if found.high < 0 else "no difference seen"
