"""Runs of adapter families on single tasks: sized, tuned, trained, scored."""

import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.study.families import (
    DENSITY,
    FAMILIES,
    Family,
    fitted,
    names_kept,
    numbers,
)
from benchmarks.study.singles import TUNING_SEED, Singles
from benchmarks.study.train import Job, batches, nll

GRAM_TEXTS = 256  # training texts whose inputs start EVA
Head = tuple[np.ndarray, np.ndarray]
Program = tuple[str, lrk.Transform, bool]  # its name, and whether weights are formed


class Run(NamedTuple):
    """What one run gives.

    Attributes:
        state: The trained state.
        head: Kernel and bias.
        losses: Loss of each step.
        trained: How many numbers were trained, the head left out.
        wall: Seconds of a step.
        processor: Processor seconds of a step.
    """

    state: lrk.State
    head: Head
    losses: np.ndarray
    trained: int
    wall: float
    processor: float


class FamilyRuns:
    """Trains and scores families on the tasks of a suite."""

    def __init__(
        self,
        work: Singles,
        families: Mapping[str, Family] = FAMILIES,
        *,
        one_start: bool = False,
    ) -> None:
        """Takes what the single-task runs have: options, encoder, tasks.

        Args:
            work: The suite and its options.
            families: The families, by name.
            one_start: Whether the adapters of all tasks start from one draw.
        """
        self.work, self.families, self.one_start = work, families, one_start
        self._made: dict[str, tuple[lrk.Transform, Any]] = {}
        self._sizes: dict[str, int] = {}
        self._inputs: dict[str, dict[str, Any]] = {}
        self._rates: dict[tuple[str, str], tuple[float, list[float]]] = {}

    @functools.cached_property
    def budget(self) -> int:
        """The numbers that LoRA trains at the rank of the study."""
        work = self.work
        return numbers(FAMILIES["lora"], work.cut, work.options.rank)

    def size(self, name: str) -> int:
        """The size of a family at the budget."""
        if name not in self._sizes:
            self._sizes[name] = fitted(self.families[name], self.work.cut, self.budget)
        return self._sizes[name]

    def grid(self, name: str) -> tuple[float, ...]:
        """The learning rates that a family tries."""
        o, speed = self.work.options, self.families[name].speed
        return o.full_rates if name == "full" else tuple(speed * x for x in o.rates)

    def given(self, name: str, **more: Any) -> dict[str, Any]:
        """What decides a run of a family."""
        more = {"kind": "family", "grid": self.grid(name), **more}
        return self.work.given(method=name, one_start=self.one_start, **more)

    def rate(self, name: str, task: str) -> tuple[float, list[float]]:
        """The rate with the least validation loss, and all losses."""
        if (name, task) not in self._rates:
            work, row = self.work, f"rate-family-{name}-{task}"
            given, grid = self.given(name, task=task), self.grid(name)
            found = work.store.load_arrays(row, config=given)
            if found is None:
                losses = [self._tried(name, task, rate) for rate in grid]
                found = {"losses": np.array(losses)}
                work.store.save_arrays(row, found, config=given)
            tried = [float(x) for x in found["losses"]]
            best = int(np.argmin(np.where(np.isfinite(tried), tried, 1e30)))
            self._rates[name, task] = (float(grid[best]), tried)
        return self._rates[name, task]

    def _tried(self, name: str, task: str, rate: float) -> float:
        run = self.run(name, task, TUNING_SEED, rate)
        labels = self.work.suite.labels("valid", self.work.task(task))
        return nll(self.logits(name, run.state, run.head, task, "valid"), labels)

    def run(
        self,
        name: str,
        task: str,
        seed: int,
        rate: float,
        begin: lrk.State | None = None,
    ) -> Run:
        """One run of a family at one rate, from a state if one is given."""
        family = self.families[name]
        tx, state = self.start(name, task, seed)
        state = state if begin is None else begin
        keep = names_kept(family, state.trainable)
        if family.mask:
            keep = self._masked(name, task, seed, state, keep, rate)
        job = self.job(state, keep, task, seed, rate)
        return self.trained(name, tx, job)

    def trained(self, name: str, tx: lrk.Transform, job: Job) -> Run:
        """What a job of a family gives, and how long its steps took."""
        recipe, steps = self.families[name].recipe, len(job.tasks)
        wall, processor = time.perf_counter(), time.process_time()
        trained = self.work.trainer.train(self.kind(name), tx, job, recipe)
        return Run(
            job.state._replace(trainable=trained.trainable),
            (trained.heads[0][0], trained.heads[1][0]),
            trained.losses,
            _counted(trained.trainable, job.keep),
            (time.perf_counter() - wall) / steps,
            (time.process_time() - processor) / steps,
        )

    def kind(self, name: str) -> str:
        """The name of a family's program."""
        return f"family-{self.families[name].kind or name}"

    def transform(self, name: str) -> lrk.Transform:
        """The transform of a family at its size, made once."""
        if name not in self._made:
            tx = self.families[name].make(self.work.cut, self.size(name))
            self._made[name] = (tx, jax.jit(tx.init))
        return self._made[name][0]

    def start(self, name: str, task: str, seed: int) -> tuple[lrk.Transform, lrk.State]:
        """A family's transform and the state that a run starts from."""
        work, tx = self.work, self.transform(name)
        key = jax.random.key(seed) if self.one_start else work.key(task, seed)
        state = self._made[name][1](key, work.cut.params)
        state = jax.tree.map(np.asarray, state)
        if self.families[name].grams:
            state = lrk.eva(state, self._grams(name, task), rho=1)
        return tx, state

    def _grams(self, name: str, task: str) -> dict[str, Any]:
        """Gram matrices of the inputs of every adapted weight, on training texts."""
        if task in self._inputs:
            return self._inputs[task]
        work, split = self.work, self.work.suite.splits["train"]
        tx, number = self._made[name][0], work.task(task)
        texts = slice(min(GRAM_TEXTS, len(work.suite.labels("train", number))))
        fresh = tx.init(jax.random.key(0), work.cut.params)

        def run(params: Any, hidden: Any, mask: Any) -> Any:
            adapted = tx.apply(params, fresh)
            return lrk.merging.gram(work.cut.pool, adapted, hidden, mask)

        args = split.hidden[number, texts], split.mask[number, texts]
        self._inputs[task] = jax.jit(run)(work.cut.params, *args)
        return self._inputs[task]

    def _masked(
        self, name: str, task: str, seed: int, state: lrk.State, keep: Any, rate: float
    ) -> Any:
        """Trains all of `B` first, and keeps LoRI's share of it."""
        job = self.job(state, keep, task, seed, rate)
        dense = self.work.trainer.train(self.kind(name), self.transform(name), job)
        own = {p: {"b": x["b"]} for p, x in dense.trainable.items()}
        mask = lrk.lori_mask(lrk.State(own, {}), density=DENSITY)
        return {p: {**x, "b": np.asarray(mask[p], np.float32)} for p, x in keep.items()}

    def job(
        self, state: lrk.State, keep: Any, task: str, seed: int, rate: float
    ) -> Job:
        """A job of one task, its head that of the probe."""
        o, work, number = self.work.options, self.work, self.work.task(task)
        kernel, bias = work.trainer.head(number)
        texts = len(work.suite.labels("train", number))
        return Job(
            state,
            (kernel[None], bias[None]),
            keep,
            np.full(o.steps, number),
            np.zeros(o.steps, int),
            batches(texts, o.steps, o.batch, seed),
            np.float32(rate),
        )

    def logits(
        self, name: str, state: lrk.State, head: Any, task: str, split: str
    ) -> np.ndarray:
        """Logits of a task's split with a family's state."""
        dense = self.families[name].dense
        program = (self.kind(name), self.transform(name), dense)
        return self.scored(program, state, head, task, split)

    def scored(
        self, program: Program, state: lrk.State, head: Any, task: str, split: str
    ) -> np.ndarray:
        """Logits of a task's split: by plain weights where they can be formed."""
        (kind, tx, dense), work = program, self.work
        number = work.task(task)
        if dense:
            params = work.trainer.form(kind, tx, state)
            return work.trainer.logits(params, number, head, split)
        own = work.suite.splits[split]
        args = own.hidden[number], own.mask[number]
        pooled = work.trainer.lifted(kind, tx, state, *args)
        kept = len(work.suite.labels(split, number))
        kernel, bias = head
        return (pooled @ kernel + bias)[:kept, : work.suite.classes[number]]


def _counted(trainable: Any, keep: Any) -> int:
    """How many numbers were trained; of AdaLoRA those of the triplets that stay."""
    triplets = {"a", "b", "lambda"}
    if isinstance(trainable, dict) and all(
        set(x) == triplets for x in trainable.values()
    ):
        kept = [
            np.count_nonzero(x["lambda"]) * (x["a"].shape[0] + x["b"].shape[1] + 1)
            for x in trainable.values()
        ]
        return int(sum(kept))
    sizes = jax.tree.map(
        lambda k, x: int(np.sum(np.broadcast_to(k, np.shape(x)) != 0)), keep, trainable
    )
    return sum(jax.tree.leaves(sizes))
