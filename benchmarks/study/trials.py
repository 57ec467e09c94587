"""Cells of a study of sizes: each tuned on validation data, then run and recorded."""

import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from benchmarks.runner import Session
from benchmarks.study.subspaces import HEAD, TUNING_SEED, Plan, Problem, Runner


class Bench(Protocol):
    """What is learnt, from which weights, and how it is scored."""

    def problem(self, cell: "Cell") -> Problem:
        """The training examples of a cell's task."""
        ...

    def start(self, cell: "Cell", seed: int) -> Any:
        """The weights that a run starts from."""
        ...

    def valid(self, cell: "Cell", params: Any) -> float:
        """Mean validation loss."""
        ...

    def test(self, cell: "Cell", params: Any) -> dict[str, Any]:
        """What a record says of trained weights."""
        ...


class Cell(NamedTuple):
    """A way at a size, from some weights, on a task."""

    way: str
    weights: str
    task: str
    size: int

    @property
    def name(self) -> str:
        """Name of its rows, without the seed."""
        return f"{self.way}-{self.weights}-{self.task}-n{self.size}"


class Trials:
    """Runs cells at the rate that validation data choose, and keeps their rows."""

    def __init__(
        self,
        bench: Bench,
        runner: Runner,
        session: Session,
        plan: Plan,
        given: Mapping[str, Any],
        head: Mapping[str, Sequence[float]] | None = None,
    ) -> None:
        """Takes the parts, and what decides every result: a cell's own is added.

        Args:
            bench: What is learnt.
            runner: The ways.
            session: Where rows are kept.
            plan: Steps and examples.
            given: What decides every result.
            head: By name, ways whose head has a learning rate of its own: that which
                validation chooses for the head alone, of as many.
        """
        self.bench, self.runner, self.session = bench, runner, session
        self.plan, self._given = plan, dict(given)
        self._head = dict(head or {})
        self._numbers: dict[Any, int] = {}

    def given(self, cell: Cell, rates: Sequence[float], **more: Any) -> dict[str, Any]:
        """What decides a row."""
        largest = self.runner.largest.get(cell.way, 0)
        own = {**cell._asdict(), "rates": list(rates), "largest": largest}
        if cell.way in self._head:
            own["head_rates"] = list(self._head[cell.way])
        return {**self._given, **own, **self.plan._asdict(), **more}

    def train(self, cell: Cell, rate: float, seed: int) -> tuple[Any, np.ndarray]:
        """One run: weights, and the loss of each step."""
        return self.runner.train(
            cell.way, self.bench.problem(cell), self.plan,
            self.bench.start(cell, seed),
            size=cell.size, rate=rate, seed=seed, head=self.head_rate(cell),
        )  # fmt: skip

    def head_rate(self, cell: Cell) -> float | None:
        """The rate of a cell's head: the best of the head alone, or None."""
        if cell.way not in self._head:
            return None
        alone = cell._replace(way=HEAD, size=1)
        return self.rate(alone, self._head[cell.way])[0]

    def rate(self, cell: Cell, rates: Sequence[float]) -> tuple[float, list[float]]:
        """The rate of least validation loss, each run in full with a seed apart."""
        name, given = f"rate-{cell.name}", self.given(cell, rates)
        found = self.session.load_arrays(name, config=given)
        if found is None:
            losses = [
                self.bench.valid(cell, self.train(cell, rate, TUNING_SEED)[0])
                for rate in rates
            ]
            found = {"losses": np.array(losses)}
            self.session.save_arrays(name, found, config=given)
        losses = np.where(np.isfinite(found["losses"]), found["losses"], 1e30)
        return float(rates[int(np.argmin(losses))]), [float(x) for x in losses]

    def row(self, cell: Cell, rates: Sequence[float], seed: int) -> Any:
        """The record of a cell and seed, from disk where it is there."""
        row, given = f"{cell.name}-s{seed}", self.given(cell, rates, seed=seed)
        found = self.session.row(row, **given)
        if found is not None:
            return found
        begin = time.perf_counter()
        rate, tried = self.rate(cell, rates)
        params, losses = self.train(cell, rate, seed)
        metrics = self.bench.test(cell, params) | {
            "valid_loss": self.bench.valid(cell, params),
            "rate": rate,
            "rates_tried": tried,
            "trained": self._trained(cell),
        }
        if (head := self.head_rate(cell)) is not None:
            metrics["head_rate"] = head
        return self.session.save(
            row, metrics, config=given, series={"loss": losses},
            seconds=time.perf_counter() - begin, seed=seed,
        )  # fmt: skip

    def begin(self, cell: Cell, seed: int) -> Any:
        """The record of a start: what it scores before any training."""
        row, given = f"{cell.name}-s{seed}", self.given(cell, (), seed=seed)
        found = self.session.row(row, **given)
        if found is not None:
            return found
        begin = time.perf_counter()
        metrics = self.bench.test(cell, self.bench.start(cell, seed))
        seconds = time.perf_counter() - begin
        return self.session.save(
            row, metrics | {"trained": 0}, config=given, seconds=seconds, seed=seed
        )

    def _trained(self, cell: Cell) -> int:
        """How many numbers a cell trains."""
        key = (cell.way, cell.task, cell.weights, cell.size)
        if key not in self._numbers:
            start = self.bench.start(cell, 0)
            self._numbers[key] = self.runner.trained(cell.way, start, cell.size)
        return self._numbers[key]
