"""Scores of the trained adapters: alone, merged, and switched off."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks import stats
from benchmarks.tables._quickstart_tasks import Head, Model, Task, embed, nll
from benchmarks.tables._quickstart_train import adapters_of, heads_of, of_task

Features = Mapping[str, Mapping[str, np.ndarray]]  # by task, by split


class Scored(NamedTuple):
    """Predictions on the test split, by task, and what was measured for choices.

    Attributes:
        test: With the adapter, `[n]` class numbers.
        off: With the trained head on the bare base.
        merged: With all adapters merged into one encoder, and the task's own head.
        weight: The weight of every adapter in the merge.
        valid: Validation accuracy, by task.
        merges: Mean validation accuracy over tasks, by weight.
    """

    test: dict[str, np.ndarray]
    off: dict[str, np.ndarray]
    merged: dict[str, np.ndarray]
    weight: float
    valid: dict[str, float]
    merges: dict[str, float]


class Encoders:
    """Plain parameters of adapted encoders, formed by two jitted functions."""

    def __init__(self, tx: lrk.Transform, model: Model, number: int) -> None:
        """Takes the adapter's transform and the number of tasks."""

        def one(params: Any, states: lrk.State, task: Any) -> Any:
            return lrk.materialize(tx.apply(params, of_task(states, task))["encoder"])

        def all_of_them(params: Any, states: lrk.State, weight: Any) -> Any:
            own = [of_task(states, task) for task in range(number)]
            trees = [tx.apply(params, state)["encoder"] for state in own]
            return lrk.materialize(lrk.merging.concat(trees, [weight] * number))

        self._params = model.params
        self._one, self._all = jax.jit(one), jax.jit(all_of_them)

    def alone(self, states: lrk.State, task: int) -> Any:
        """The encoder with the adapter of one task."""
        return self._one(self._params, states, task)

    def merged(self, states: lrk.State, weight: float) -> Any:
        """One encoder with every task's adapter at one weight; no head takes part."""
        return self._all(self._params, states, weight)


def judge(
    encoders: Encoders,
    model: Model,
    tasks: Sequence[Task],
    state: lrk.State,
    edges: Sequence[int],
) -> list[float]:
    """Validation loss of each task with its own adapter and head."""
    losses, heads, states = [], heads_of(state), adapters_of(state)
    for i, (task, head) in enumerate(zip(tasks, heads, strict=True)):
        part = task.parts["valid"]
        features = embed(model, encoders.alone(states, i), part.tokens, edges)
        losses.append(nll(head.logits(features, task.classes), part.labels))
    return losses


def score(
    encoders: Encoders,
    model: Model,
    tasks: Sequence[Task],
    state: lrk.State,
    frozen: Features,
    edges: Sequence[int],
    weights: Sequence[float],
    tick: Callable[[int], Any] | None = None,
) -> Scored:
    """Score one method on all tasks; the test split is read once for each column.

    Args:
        encoders: Forms the adapted encoders.
        model: The model.
        tasks: The tasks.
        state: Stacked state of all tasks, heads included.
        frozen: Features of the bare base.
        edges: Lengths to pad to.
        weights: Weights of the merge to try; the best on validation is scored.
        tick: Is told how many texts were done.
    """

    def features(encoder: Any, task: Task, split: str) -> np.ndarray:
        return embed(model, encoder, task.parts[split].tokens, edges, tick)

    test, off, valid = {}, {}, {}
    heads, states = heads_of(state), adapters_of(state)
    for i, (task, head) in enumerate(zip(tasks, heads, strict=True)):
        encoder = encoders.alone(states, i)
        guess = predict(head, features(encoder, task, "valid"), task)
        valid[task.name] = stats.accuracy(guess, task.parts["valid"].labels)
        test[task.name] = predict(head, features(encoder, task, "test"), task)
        off[task.name] = predict(head, frozen[task.name]["test"], task)
    merges, best, chosen, encoder = {}, -1.0, 0.0, None
    for weight in weights:
        candidate = encoders.merged(states, weight)
        right = [
            stats.accuracy(
                predict(head, features(candidate, task, "valid"), task),
                task.parts["valid"].labels,
            )
            for task, head in zip(tasks, heads, strict=True)
        ]
        merges[f"{weight:g}"] = float(np.mean(right))
        if np.mean(right) > best:
            best, chosen, encoder = float(np.mean(right)), weight, candidate
    merged = {
        task.name: predict(head, features(encoder, task, "test"), task)
        for task, head in zip(tasks, heads, strict=True)
    }
    return Scored(test, off, merged, float(chosen), valid, merges)


def texts_to_score(tasks: Sequence[Task], weights: Sequence[float]) -> int:
    """How many texts `score` reads."""
    sizes = {s: sum(len(t.parts[s].labels) for t in tasks) for s in ("valid", "test")}
    return (1 + len(weights)) * sizes["valid"] + 2 * sizes["test"]


def predict(head: Head, features: np.ndarray, task: Task) -> np.ndarray:
    """Class numbers `[n]`."""
    return head.logits(features, task.classes).argmax(axis=1)


def digits(numbers: np.ndarray) -> str:
    """Class numbers below 10 as one string, which a record holds well."""
    return "".join(str(int(number)) for number in numbers)


def numbers(text: str) -> np.ndarray:
    """The inverse of `digits`."""
    return np.array([int(letter) for letter in text])


def kept_shares(mask: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Share of each matrix's entries that a mask keeps, by layer and projection."""
    shares: dict[str, dict[str, float]] = {}
    for path, kept in mask.items():
        layer, _, name = path.split("/layer/")[1].partition("/")
        name = name.removesuffix("/kernel")
        shares.setdefault(layer, {})[name] = float(np.mean(np.asarray(kept)))
    return shares
