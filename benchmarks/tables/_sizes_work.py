"""What the table of sizes runs."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.study import language as lm
from benchmarks.study.language import INIT, KERNELS, Language, Size, Snapshots
from benchmarks.study.subspaces import (
    Plan,
    Runner,
    did,
    everything,
    lora,
    part,
    subspace_rates,
)
from benchmarks.study.trials import Cell, Trials
from benchmarks.tables._sizes_rules import lora_rates

FROM, TO = "novels", "dialogue"
KEPT = (
    "context",
    "pretraining",
    "pretraining_batch",
    "pretraining_rate",
    "checkpoints",
)
HELD = ("valid", "test", "synthetic")


class Work:
    """Decoders, texts and programs that rows share."""

    def __init__(self, config: Any, session: Session) -> None:
        """Loads nothing yet."""
        self.config, self.session = config, session
        c = config
        self.sizes = [Size(*own) for own in zip(c.widths, c.layers, strict=True)]
        self._checkpoints: dict[Size, dict[int, Any]] = {}
        self._trials: dict[Size, Trials] = {}
        self.given = {name: getattr(c, name) for name in (*KEPT, *HELD)}

    @functools.cached_property
    def language(self) -> Language:
        """The texts, and the weights by name."""
        c = self.config
        texts = {
            FROM: lm.novels(synthetic=c.synthetic),
            TO: lm.dialogue(synthetic=c.synthetic),
        }
        corpora = {
            name: lm.corpus(text, c.context, c.valid, c.test)
            for name, text in texts.items()
        }
        return Language(corpora, c.context, self.weights)

    def trials(self, size: Size) -> Trials:
        """What tunes, runs and records the cells of a size."""
        if size not in self._trials:
            c = self.config
            ways = {
                "full": part("all weights", everything),
                "did": did(lrk.subspace.fastfood()),
                "lora": lora(KERNELS, None),
            }
            most = {"did": max(self.ds(size)), "lora": max(c.ranks)}
            runner = Runner(ways, {"full": 1, **most})
            plan = Plan(c.steps, c.batch)
            found = Trials(self.language, runner, self.session, plan, self.given)
            self._trials[size] = found
        return self._trials[size]

    def ds(self, size: Size) -> list[int]:
        """The dimensions of a size: fewer than it has weights."""
        return [d for d in self.config.ds if d < self.total(size)]

    def checkpoints(self, size: Size) -> dict[int, Any]:
        """Weights along the pretraining of a size; those on disk are read."""
        if size not in self._checkpoints:
            self._checkpoints[size] = self._pretrained(size)
        return self._checkpoints[size]

    def _pretrained(self, size: Size) -> dict[int, Any]:
        c = self.config
        problem = self.language.examples(FROM, size)
        _, start = lm.decoder(size, c.context)
        plan = Plan(c.pretraining, c.pretraining_batch)
        given = {"context": c.context, "synthetic": c.synthetic, "size": list(size)}
        return lm.pretrained(
            self.session, problem, start, plan, c.pretraining_rate, c.checkpoints,
            f"pretrained-{size.name}", given,
        )  # fmt: skip

    def weights(self, name: str) -> tuple[Size, Any]:
        """A size and its weights, by a name that `named` gives."""
        own, _, step = name.partition("-step")
        size = next(size for size in self.sizes if size.name == own)
        return size, self.checkpoints(size)[int(step)]

    def named(self, size: Size, step: int | None = None) -> str:
        """The name of a checkpoint, by default the last."""
        last = self.config.checkpoints[-1]
        return f"{size.name}-step{last if step is None else step}"

    def total(self, size: Size) -> int:
        """How many weights a size has."""
        return lm.count(lm.decoder(size, self.config.context)[1])

    def rows(self) -> list[Callable[[], Any]]:
        """All rows, as functions that run them if need be."""
        c, found = self.config, []
        cells = []
        if "sizes" in c.parts:
            cells += [(size, self.named(size)) for size in self.sizes]
        if "checkpoints" in c.parts:
            middle = next(size for size in self.sizes if size.width == c.middle)
            steps = (INIT, *c.checkpoints[:-1])
            cells += [(middle, self.named(middle, step)) for step in steps]
        for size, name in cells:
            found += [functools.partial(self.begin, size, name)]
            found += [
                functools.partial(
                    self.trials(size).row, cell, self.rates(cell, size), seed
                )
                for cell in self.cells(size, name)
                for seed in c.seeds
            ]
        if "ranks" in c.parts:
            for size in self.sizes:
                found += [functools.partial(self.pretraining_ranks, size)]
                found += [functools.partial(self.ranks, size, s) for s in c.seeds]
        return found

    def cells(self, size: Size, name: str) -> list[Cell]:
        """All cells of a checkpoint."""
        c = self.config
        ranks = [rank for rank in c.ranks if rank <= size.width]
        sizes = {"full": [1], "did": self.ds(size), "lora": ranks}
        return [Cell(way, name, TO, n) for way in c.ways for n in sizes[way]]

    def rates(self, cell: Cell, size: Size) -> Sequence[float]:
        """As many learning rates for every cell."""
        c = self.config
        if cell.way == "did":
            return subspace_rates(c.moves, self.total(size), cell.size)
        if cell.way == "full":
            return c.full_rates
        return lora_rates(c.rates, cell.size)

    def begin(self, size: Size, name: str) -> None:
        """The row of a start."""
        cell = Cell("start", name, TO, 0)
        given = {**self.given, **cell._asdict()}
        lm.begin_row(self.session, self.language, cell, given, **size._asdict())

    def ranks(self, size: Size, seed: int) -> None:
        """The row of the change along adaptation, all weights trained."""
        c, name = self.config, self.named(size)
        cell = Cell("full", name, TO, 1)
        rates = self.rates(cell, size)
        given = self.trials(size).given(cell, rates, seed=seed, looks=c.looks)
        given |= {"way": "ranks"}
        row = f"ranks-{name}-s{seed}"
        if self.session.row(row, **given) is not None:
            return
        begin = time.perf_counter()
        rate, _ = self.trials(size).rate(cell, rates)
        once = Snapshots(
            self.language.problem(cell), Plan(c.steps, c.batch), rate, seed
        )
        start = self.language.start(cell, seed)
        found = once.through(start, c.looks)
        self._save_ranks(row, given, start, found, begin, seed)

    def pretraining_ranks(self, size: Size) -> None:
        """The row of the change along pretraining."""
        given = {**self.given, "way": "pretraining ranks", "weights": self.named(size)}
        row = f"ranks-pretraining-{size.name}"
        if self.session.row(row, **given) is not None:
            return
        begin = time.perf_counter()
        found = dict(self.checkpoints(size))
        start = found.pop(INIT)
        self._save_ranks(row, given, start, found, begin, 0)

    def _save_ranks(
        self, row: str, given: Any, start: Any, found: Any, begin: float, seed: int
    ) -> None:
        """Writes means over kernels of what changed, at every look."""
        looks = [change(start, params) for params in found.values()]
        names = looks[0]
        self.session.save(
            row, looks[-1], config=given,
            series={"steps": list(found), **{n: [x[n] for x in looks] for n in names}},
            seconds=time.perf_counter() - begin, seed=seed,
        )  # fmt: skip


def change(start: Any, params: Any) -> dict[str, float]:
    """Ranks of what changed, as shares of the width, and its size: means of kernels."""
    rows = []
    for path in lrk.select_paths(lrk.full(select=KERNELS), start):
        before, after = (np.asarray(_leaf(tree, path)) for tree in (start, params))
        moved, width = after - before, min(before.shape)
        rows.append(
            {
                "effective": float(lrk.analysis.effective_rank(moved)) / width,
                "stable": float(lrk.analysis.stable_rank(moved)) / width,
                "relative": float(np.linalg.norm(moved) / np.linalg.norm(before)),
            }
        )
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _leaf(tree: Any, path: str) -> Any:
    return functools.reduce(lambda node, name: node[name], path.split("/"), tree)
