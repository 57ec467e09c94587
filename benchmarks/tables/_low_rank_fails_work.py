"""What the table of failing ranks runs."""

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks import data
from benchmarks.data._classes import FILES
from benchmarks.runner import Session
from benchmarks.study import language as lm
from benchmarks.study.encoder import hidden_states
from benchmarks.study.language import Language, Size
from benchmarks.study.singles import Singles
from benchmarks.study.subspaces import (
    Plan,
    Runner,
    Select,
    did,
    everything,
    lora,
    part,
    subspace_rates,
)
from benchmarks.study.tasks import CLASSES, LENGTHS
from benchmarks.study.texts import KERNELS, Part, Texts, is_head
from benchmarks.study.trials import Cell, Trials
from benchmarks.tables._sizes_rules import lora_rates

OTHERS = ("full", "head", "bias", "last")
HEADED = ("full", "bias", "last", "lora", "wide")  # the head has a rate of its own
START = "pretrained"
BATCH = 32  # examples of a step of the decoder's pretraining
RATE = 3e-3  # and its peak learning rate
FRACTIONS = (0.05, 0.15, 0.35, 0.65, 1.0)  # of pretraining, after which it is kept


def is_bias(path: str, leaf: Any) -> bool:
    """Selects biases, those of norms among them, and the head."""
    return path.endswith("/bias") or is_head(path, leaf)


def is_body(path: str, leaf: Any) -> bool:
    """Selects all but the head."""
    return not is_head(path, leaf)


def is_scale(path: str, leaf: Any) -> bool:
    """Selects the scales of norms."""
    del leaf
    return path.endswith("/scale")


class Work:
    """Benches and their ways."""

    def __init__(self, config: Any, session: Session) -> None:
        """Loads nothing yet."""
        self.config, self.session = config, session
        self.work = Singles(config, session, "tasks")

    # The text problems.

    @functools.cached_property
    def suite(self) -> Trials:
        """The four tasks, with a head of as many classes each."""
        parts = {task: self._suite(task) for task in self.work.suite.tasks}
        numbers = dict.fromkeys(parts, CLASSES)
        plan = Plan(self.config.steps, self.config.batch)
        return self._texts(parts, numbers, plan, {"length": LENGTHS["tasks"]})

    @functools.cached_property
    def files(self) -> Trials:
        """Definitions in 45 classes."""
        c = self.config
        found = data.load("wordnet_files", synthetic=c.synthetic)
        most = {"train": c.files_train, "valid": c.valid, "test": c.test}
        parts = {
            name: self._part(f"files-{name}", found.splits[name].take(slice(n)), 20)
            for name, n in most.items()
        }
        plan = Plan(c.steps, c.batch)
        given = {"files_train": c.files_train, "length": 20}
        return self._texts({"files": parts}, {"files": len(FILES)}, plan, given)

    @functools.cached_property
    def random(self) -> Trials:
        """Random labels: what is learnt by heart is also what is scored.

        The head is frozen: alone it would learn them, with as many features as labels.
        """
        c = self.config
        found = data.load("wordnet_topics", synthetic=c.synthetic)
        used = found.splits["train"].take(slice(c.random_texts))
        own = dict(self._part("random", used, c.random_length))
        key = jax.random.key(17)
        own["labels"] = jax.random.randint(key, own["labels"].shape, 0, CLASSES)
        parts = {name: own for name in ("train", "valid", "test")}
        given = {"length": c.random_length, "random_texts": c.random_texts}
        texts = Texts(self.work.cut, lambda _: parts, {"random": CLASSES}, std=1.0)
        plan = Plan(c.random_steps, c.batch)
        return self._trials_of(texts, plan, given, is_body)

    def _suite(self, task: str) -> dict[str, Part]:
        """A task's arrays without the suite's padding."""
        found, i = {}, self.work.task(task)
        for name in ("train", "valid", "test"):
            own = self.work.suite.splits[name]
            number = len(self.work.suite.labels(name, i))
            parts = {"hidden": own.hidden, "mask": own.mask, "labels": own.labels}
            found[name] = {key: x[i, :number] for key, x in parts.items()}
        return found

    def _part(self, name: str, used: Any, length: int) -> Part:
        """Hidden states of some texts, from disk where they are there."""
        cut, row = self.work.cut, f"hidden-{name}-{length}"
        given = {"cut": cut.name, "length": length, "number": len(used.x)}
        kept = self.session.load_arrays(row, config=given)
        if kept is None:
            tokens = data.encode(used.x, cut.tokenizer, length)
            hidden, mask = hidden_states(cut, tokens, length)
            kept = {"hidden": hidden, "mask": mask}
            self.session.save_arrays(row, kept, config=given)
        return {
            "hidden": jnp.asarray(kept["hidden"]),
            "mask": jnp.asarray(kept["mask"]),
            "labels": jnp.asarray(np.asarray(used.y, np.int32)),
        }

    def _texts(
        self,
        parts: Mapping[str, Mapping[str, Part]],
        numbers: Mapping[str, int],
        plan: Plan,
        given: Mapping[str, Any],
    ) -> Trials:
        """A bench of texts whose heads train."""
        texts = Texts(self.work.cut, parts.__getitem__, numbers)
        return self._trials_of(texts, plan, given, everything)

    def _trials_of(
        self, texts: Texts, plan: Plan, given: Mapping[str, Any], moves: Select
    ) -> Trials:
        """A bench of texts with its ways, of which only some leaves move."""
        c = self.config
        last = f"layer/{max(map(int, self.work.cut.params['layer']))}/"

        def is_last(path: str, leaf: Any) -> bool:
            return path.startswith(last) or is_head(path, leaf)

        ways = {
            "full": part("all weights", moves),
            "bias": part("biases", lrk.both(is_bias, moves)),
            "last": part("last layer", lrk.both(is_last, moves)),
            "did": did(lrk.subspace.fastfood_stacked(c.block), moves),
            "lora": lora(KERNELS, is_head if moves is everything else None),
        }
        heads = {}
        if moves is everything:
            ways["head"] = part("head alone", is_head)
            ways["wide"] = lora(KERNELS, is_head)
            heads = dict.fromkeys(HEADED, c.head_rates)
        names = ("layers", "train", "valid", "test", "head", "synthetic")
        own = {name: getattr(c, name) for name in names} | dict(given)
        runner = self._runner(ways, max((*c.ranks, *c.compared)), c.block)
        return Trials(texts, runner, self.session, plan, own, heads)

    def _runner(self, ways: Mapping[str, Any], rank: int, d: int) -> Runner:
        """A runner of ways up to a rank and a dimension."""
        ranks = (*self.config.ranks, *self.config.compared)
        largest = dict.fromkeys(ways, 1) | {"did": d, "wide": self.config.wide}
        return Runner(ways, largest | {"lora": max(r for r in ranks if r <= rank)})

    # The decoder.

    @functools.cached_property
    def dialogue(self) -> Trials:
        """A decoder that goes from novels to film dialogue."""
        c, size = self.config, self.size
        texts = {
            "novels": lm.novels(synthetic=c.synthetic),
            "dialogue": lm.dialogue(synthetic=c.synthetic),
        }
        corpora = {
            name: lm.corpus(text, c.context, c.windows // 2, c.windows)
            for name, text in texts.items()
        }
        language = Language(corpora, c.context, lambda _: (size, self._decoder))
        self._language = language
        last = f"model/layers/{size.layers - 1}/"

        def is_last(path: str, leaf: Any) -> bool:
            del leaf
            return path.startswith((last, "lm_head/"))

        ways = {
            "full": part("all weights", everything),
            "bias": part("scales of norms", is_scale),
            "last": part("last layer", is_last),
            "did": did(lrk.subspace.fastfood()),
            "lora": lora(lm.KERNELS, None),
        }
        names = ("context", "pretraining", "windows", "synthetic")
        own = {name: getattr(c, name) for name in names} | {"size": list(size)}
        own = {f"decoder_{name}": x for name, x in own.items()}
        plan = Plan(c.decoder_steps, c.batch)
        runner = self._runner(ways, size.width, max(c.decoder_ds))
        return Trials(language, runner, self.session, plan, own)

    @property
    def size(self) -> Size:
        """The decoder's."""
        return Size(self.config.width, self.config.depth)

    @functools.cached_property
    def _decoder(self) -> Any:
        """Its pretrained weights: those of the table of sizes, where they are there."""
        c, size = self.config, self.size
        at = sorted({max(1, round(share * c.pretraining)) for share in FRACTIONS})
        _, start = lm.decoder(size, c.context)
        given = {"context": c.context, "synthetic": c.synthetic, "size": list(size)}
        found = lm.pretrained(
            self.session.beside("sizes"), self._language.examples("novels", size),
            start, Plan(c.pretraining, BATCH), RATE, at, f"pretrained-{size.name}",
            given,
        )  # fmt: skip
        return found[at[-1]]

    # All rows.

    def rows(self) -> list[Callable[[], Any]]:
        """Every cell of every bench and seed, as functions that run it if need be."""
        c = self.config
        found: dict[tuple[Cell, int], Callable[[], Any]] = {}
        for task in c.problems:
            for cell, seeds in self._problem(task):
                self._add(found, self._trials(task), cell, seeds)
            if "head" not in self._trials(task).runner.ways:
                begin = Cell("start", START, task, 0)
                for seed in c.seeds:
                    run = functools.partial(self._trials(task).begin, begin, seed)
                    found[begin, seed] = run
        for task in c.tasks:
            cells = [Cell(way, START, task, 1) for way in OTHERS]
            cells += [Cell("lora", START, task, rank) for rank in c.compared]
            cells += [Cell("wide", START, task, c.wide)]
            for cell in (cell for cell in cells if cell.way in c.ways):
                self._add(found, self.suite, cell, c.seeds)
        return list(found.values())

    def _trials(self, task: str) -> Trials:
        return self.suite if task == "trec" else getattr(self, task)

    def _problem(self, task: str) -> list[tuple[Cell, Sequence[int]]]:
        """The cells of a problem, with their seeds."""
        c, known = self.config, self._trials(task).runner.ways
        most = c.width if task == "dialogue" else math.inf
        found = [(Cell(way, START, task, 1), c.seeds) for way in OTHERS]
        for rank in sorted({*c.ranks, *c.compared}):
            seeds = c.seeds if rank in c.compared else c.few_seeds
            if rank <= most:
                found.append((Cell("lora", START, task, rank), seeds))
        ds = c.decoder_ds if task == "dialogue" else c.ds
        found += [(Cell("did", START, task, d), c.few_seeds) for d in ds]
        return [
            pair for pair in found if pair[0].way in known and pair[0].way in c.ways
        ]

    def _add(
        self, found: Any, trials: Trials, cell: Cell, seeds: Sequence[int]
    ) -> None:
        """Adds a cell's rows, once."""
        rates = self._rates(trials, cell)
        for seed in seeds:
            run = functools.partial(trials.row, cell, rates, seed)
            found.setdefault((cell, seed), run)

    def _rates(self, trials: Trials, cell: Cell) -> Sequence[float]:
        """As many learning rates for every cell."""
        c = self.config
        if cell.way == "did":
            total = lm.count(trials.bench.start(cell, 0))
            moves = c.decoder_moves if cell.task == "dialogue" else c.moves
            return subspace_rates(moves, total, cell.size)
        if cell.way in ("lora", "wide"):
            own = {"dialogue": c.decoder_rates, "random": c.random_rates}
            return lora_rates(own.get(cell.task, c.rates), cell.size)
        if cell.task == "dialogue":
            return c.decoder_full_rates if cell.way == "full" else c.decoder_part_rates
        rates = {"head": c.head_rates, "bias": c.bias_rates}
        if cell.task != "random":
            rates["last"] = c.last_rates
        return rates.get(cell.way, c.full_rates)
