"""Parallel and serial adapters of one size: forgetting, merging, unseen domains."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.study.families import FAMILIES, NETS, WRITE, Family, names_kept
from benchmarks.study.family_runs import FamilyRuns, Program, Run
from benchmarks.study.methods import SCALE
from benchmarks.study.singles import TUNING_SEED
from benchmarks.study.train import nll
from benchmarks.study.unseen import Unseen

SAME = "LoRA, the same two products"
PLACED: dict[str, Family] = {
    "lora": FAMILIES["lora"]._replace(title="LoRA, all six projections"),
    "lora-two": Family(
        SAME, lambda _, size: lrk.lora(size, scale=SCALE, select=WRITE), NETS
    ),
    "parallel": FAMILIES["parallel"]._replace(title="parallel bottlenecks"),
    "serial": FAMILIES["houlsby"]._replace(title="serial bottlenecks"),
    "prefix": FAMILIES["prefix"],
}
MERGES = ("together", "average")
Merged = tuple[Program, Callable[[float], lrk.State]]


class Sequence(NamedTuple):
    """What one adapter that learned two tasks after each other gives.

    Attributes:
        before: Logits of the first task, its own head, before the second was learned.
        after: The same afterwards.
        new: Logits of the second task.
    """

    before: np.ndarray
    after: np.ndarray
    new: np.ndarray


class Placed:
    """Runs of the placed adapters on the tasks of a suite."""

    def __init__(self, runs: FamilyRuns) -> None:
        """Takes the runs, whose adapters start from one draw for all tasks."""
        self.runs, self.work = runs, runs.work
        self._singles: dict[tuple[str, str, int], Run] = {}
        self._scales: dict[tuple[str, str], tuple[float, list[float]]] = {}

    def single(self, name: str, task: str, seed: int) -> Run:
        """An adapter of one task at its tuned rate, trained once."""
        if (name, task, seed) not in self._singles:
            rate, _ = self.runs.rate(name, task)
            self._singles[name, task, seed] = self.runs.run(name, task, seed, rate)
        return self._singles[name, task, seed]

    def disturbed(self, name: str, task: str, other: str, seed: int) -> np.ndarray:
        """Logits of another task, with the head of its probe, under an adapter."""
        head = self.work.trainer.head(self.work.task(other))
        state = self.single(name, task, seed).state
        return self.runs.logits(name, state, head, other, "test")

    def sequence(self, name: str, first: str, second: str, seed: int) -> Sequence:
        """Trains the adapter of one task further on another; the old head stays."""
        old, (rate, _) = self.single(name, first, seed), self.runs.rate(name, second)
        new = self.runs.run(name, second, seed, rate, old.state)

        def logits(run: Run, head: Any, task: str) -> np.ndarray:
            return self.runs.logits(name, run.state, head, task, "test")

        return Sequence(
            logits(old, old.head, first),
            logits(new, old.head, first),
            logits(new, new.head, second),
        )

    def merged(self, how: str, name: str, tasks: tuple[str, ...], seed: int) -> Merged:
        """The program of a merge, and its state at a scale.

        Together: all adapters at once, each scaled; serial ones behind each other.
        Average: one adapter with the mean of all numbers, scaled by as many more.
        """
        states = [self.single(name, task, seed).state for task in tasks]
        kind, tx = self.runs.kind(name), self.runs.transform(name)
        dense = self.runs.families[name].dense
        if how == "average":
            mean = jax.tree.map(lambda *xs: np.mean(xs, axis=0), *states)
            program = (kind, tx, dense)
            return program, lambda scale: _scaled(mean, len(tasks) * scale)
        if name == "prefix":  # one longer prefix: a leaf has room for one
            rows = {
                path: {
                    "rows": np.concatenate([s.trainable[path]["rows"] for s in states])
                }
                for path in states[0].trainable
            }
            joined = states[0]._replace(trainable=rows)
            return (f"{kind}-long", tx, dense), lambda scale: _scaled(joined, scale)
        many = lrk.chain(*[tx] * len(tasks))

        def at(scale: float) -> lrk.State:
            own = [_scaled(state, scale) for state in states]
            return lrk.State(
                tuple(s.trainable for s in own), tuple(s.fixed for s in own)
            )

        return (f"{kind}-many", many, dense), at

    def scale(
        self, how: str, name: str, tasks: tuple[str, ...], scales: tuple[float, ...]
    ) -> tuple[float, list[float]]:
        """The scale with the least mean validation loss on the first seed, and all."""
        if (how, name) not in self._scales:
            seed, losses = self.work.options.seeds[0], []
            program, at = self.merged(how, name, tasks, seed)
            for scale in scales:
                found = [
                    nll(
                        self.scored(program, at(scale), name, task, seed, "valid"),
                        self.work.suite.labels("valid", self.work.task(task)),
                    )
                    for task in tasks
                ]
                losses.append(float(np.mean(found)))
            best = float(scales[int(np.argmin(losses))])
            self._scales[how, name] = (best, losses)
        return self._scales[how, name]

    def scored(
        self,
        program: Program,
        state: lrk.State,
        name: str,
        task: str,
        seed: int,
        split: str,
    ) -> np.ndarray:
        """Logits of a task under a merged state, with the head of its own adapter."""
        head = self.single(name, task, seed).head
        return self.runs.scored(program, state, head, task, split)


class Elsewhere:
    """Runs of the placed adapters over domains, one of which is left out."""

    def __init__(self, runs: FamilyRuns) -> None:
        """Takes the runs on the suite of domains."""
        self.runs, self.unseen = runs, Unseen(runs.work)
        self._heads: dict[str, Any] = {}

    def run(self, name: str, left: str, seed: int, rate: float) -> Run:
        """One adapter and one head for all domains but one."""
        runs, o = self.runs, self.runs.work.options
        if left not in self._heads:
            self._heads[left] = self.unseen.start(left, o.head)
        tx, state = runs.start(name, left, seed)
        keep = names_kept(runs.families[name], state.trainable)
        head = self._heads[left]
        job = self.unseen.job(state, keep, head, left, o.train, seed, rate)
        return runs.trained(name, tx, job)

    def rate(self, name: str, left: str) -> tuple[float, list[float]]:
        """The rate with the least validation loss on the seen domains, and all."""
        runs, row = self.runs, f"rate-placed-{name}-{left}"
        grid = runs.grid(name)
        given = runs.given(name, kind="unseen", left=left)
        found = runs.work.store.load_arrays(row, config=given)
        if found is None:
            losses = [
                self._loss(name, left, self.run(name, left, TUNING_SEED, x))
                for x in grid
            ]
            found = {"losses": np.array(losses)}
            runs.work.store.save_arrays(row, found, config=given)
        tried = [float(x) for x in found["losses"]]
        best = int(np.argmin(np.where(np.isfinite(tried), tried, 1e30)))
        return float(grid[best]), tried

    def _loss(self, name: str, left: str, run: Run) -> float:
        """Mean validation loss over the seen domains."""
        suite = self.runs.work.suite
        losses = [
            nll(
                self.runs.logits(name, run.state, run.head, suite.tasks[i], "valid"),
                suite.labels("valid", i),
            )
            for i in self.unseen.seen(left)
        ]
        return float(np.mean(losses))


def _scaled(state: lrk.State, scale: float) -> lrk.State:
    """The state with every scale multiplied."""
    fixed = {
        path: {**own, "scale": np.float32(scale) * own["scale"]}
        for path, own in state.fixed.items()
    }
    return state._replace(fixed=fixed)
