"""One adapter for one task: tuned, trained, kept on disk, and scored.

What is trained here serves several tables, so it lies in a folder of its own beside
theirs: each table trains what it does not find.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study.encoder import Cut, features, load_cut
from benchmarks.study.tasks import Caps, Suite, load_suite
from benchmarks.study.train import Job, Trained, Trainer, batches, nll

TUNING_SEED = 1000  # of the runs that choose a learning rate


@dataclasses.dataclass(frozen=True)
class Options:
    """Options that every study has; each becomes a flag."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the adapters and of the order of batches."""
    layers: int = 2
    """How many of MiniLM's last layers are adapted; those below run once."""
    rank: int = 8
    """Rank of every adapter; its scale is 2."""
    steps: int = 48
    """Steps of a run."""
    batch: int = 16
    """Examples of a step."""
    rates: tuple[float, ...] = (2e-3, 6e-3, 2e-2)
    """Peak learning rates of the adapters."""
    full_rates: tuple[float, ...] = (5e-5, 2e-4, 8e-4)
    """As many of full fine-tuning."""
    head: int = 512
    """Training texts on which the heads' starts are fitted."""
    train: int = 1024
    """Other training texts, which the runs see."""
    valid: int = 200
    """Validation texts of a task."""
    test: int = 400
    """Test texts of a task."""
    synthetic: bool = False
    """Use made-up texts and a tiny random encoder: no download."""

    def tiny(self) -> dict[str, Any]:
        """What `smoke` replaces: seconds, no network."""
        return {
            "seeds": (0, 1),
            "layers": 1,
            "rank": 2,
            "steps": 4,
            "batch": 8,
            "rates": (3e-3, 1e-2),
            "full_rates": (1e-4, 1e-3),
            "head": 48,
            "train": 64,
            "valid": 32,
            "test": 32,
            "synthetic": True,
        }


class Single(NamedTuple):
    """A trained adapter of one task.

    Attributes:
        trainable: Trained part of its state.
        head: Its head: kernel and bias.
        losses: Loss of each step.
        rate: The rate that was chosen.
        trained: How many numbers of the adapter were trained.
        seconds: Wall time of the run; without the search.
    """

    trainable: Any
    head: tuple[np.ndarray, np.ndarray]
    losses: np.ndarray
    rate: float
    trained: int
    seconds: float


class Singles:
    """All single-task runs of one suite."""

    def __init__(self, options: Options, session: Session, suite: str) -> None:
        """Nothing is loaded before it is asked for."""
        self.options, self.session, self.name = options, session, suite
        self.store = session.beside("study")
        self._rates: dict[tuple[str, str], tuple[float, list[float]]] = {}
        self._transforms: dict[str, tuple[lrk.Transform, Any]] = {}

    @functools.cached_property
    def cut(self) -> Cut:
        """The encoder."""
        return load_cut(self.options.layers, synthetic=self.options.synthetic)

    @functools.cached_property
    def suite(self) -> Suite:
        """The tasks."""
        o = self.options
        caps = Caps(o.head, o.train, o.valid, o.test)
        return load_suite(self.name, self.cut, caps, self.store, synthetic=o.synthetic)

    @functools.cached_property
    def trainer(self) -> Trainer:
        """What trains and scores."""
        return Trainer(self.cut, self.suite)

    def given(self, **more: Any) -> dict[str, Any]:
        """What decides a run."""
        skip = ("seeds", "test")
        fields = [f.name for f in dataclasses.fields(Options) if f.name not in skip]
        own = {name: getattr(self.options, name) for name in fields}
        return {**own, "suite": self.name, **more}

    def task(self, task: str) -> int:
        """The number of a task in the suite."""
        return self.suite.tasks.index(task)

    def key(self, task: str, seed: int) -> Any:
        """The key of an adapter: its own for each task and seed."""
        return jax.random.fold_in(jax.random.key(seed), self.task(task))

    def rate(self, name: str, task: str) -> tuple[float, list[float]]:
        """The learning rate of a method on a task, and the validation losses tried.

        Every rate runs in full with a seed of its own; the least validation loss wins.
        """
        if ways.METHODS[name].shared_a:  # tuned with an A of its own
            return self.rate(name.removesuffix("-shared"), task)
        if (name, task) not in self._rates:
            o, row = self.options, f"rate-{self.name}-{name}-{task}"
            given = self.given(method=name, task=task)
            grid = o.full_rates if ways.METHODS[name].kind == "full" else o.rates
            found = self.store.load_arrays(row, config=given)
            if found is None:
                losses = [self._try(name, task, rate) for rate in grid]
                found = {"losses": np.array(losses)}
                self.store.save_arrays(row, found, config=given)
            losses = np.where(np.isfinite(found["losses"]), found["losses"], 1e30)
            best = float(grid[int(np.argmin(losses))])
            self._rates[name, task] = (best, [float(x) for x in losses])
        return self._rates[name, task]

    def _try(self, name: str, task: str, rate: float) -> float:
        """Validation loss of one run at one rate."""
        state, trained, _ = self._run(name, task, TUNING_SEED, rate)
        logits = self.logits(name, state, _head(trained), task, "valid")
        return nll(logits, self.suite.labels("valid", self.task(task)))

    def single(self, name: str, task: str, seed: int) -> Single:
        """A trained adapter at its tuned rate, from disk where it is there."""
        row, given = (
            f"{self.name}-{name}-{task}-s{seed}",
            self.given(method=name, task=task, seed=seed),
        )
        found = self.store.load_arrays(row, config=given)
        if found is not None:
            return _restored(found)
        rate, _ = self.rate(name, task)
        begin = time.perf_counter()
        state, trained, numbers = self._run(name, task, seed, rate)
        single = Single(
            state.trainable,
            _head(trained),
            trained.losses,
            rate,
            numbers,
            time.perf_counter() - begin,
        )
        if name in ways.STORED:
            self.store.save_arrays(row, _storable(single), config=given)
        return single

    def state(self, name: str, single: Single) -> lrk.State:
        """The state of a trained adapter."""
        abstract = self._init(name, jax.random.key(0))
        return abstract._replace(trainable=single.trainable)

    def transform(self, name: str) -> lrk.Transform:
        """The transform that a method trains; one object for each kind."""
        method = ways.METHODS[name]
        if method.kind not in self._transforms:
            tx = ways.transform(method, self.cut, self.options.rank)
            self._transforms[method.kind] = (tx, jax.jit(tx.init))
        return self._transforms[method.kind][0]

    def fresh(self, name: str, task: str, seed: int) -> lrk.State:
        """The state that the adapter of a task starts from, before any mask."""
        method = ways.METHODS[name]
        key = jax.random.key(seed) if method.shared_a else self.key(task, seed)
        key = jax.random.fold_in(key, 1) if method.fresh_a else key
        return ways.drawn(method, self._init(name, key), key)

    def _init(self, name: str, key: Any) -> lrk.State:
        """A fresh state, on the host."""
        self.transform(name)
        _, init = self._transforms[ways.METHODS[name].kind]
        return jax.tree.map(np.asarray, init(key, self.cut.params))

    def _run(
        self, name: str, task: str, seed: int, rate: float
    ) -> tuple[lrk.State, Trained, int]:
        """One run of a method."""
        method = ways.METHODS[name]
        mask, dense = self._mask(name, task, seed)
        state = ways.start(method, self.fresh(name, task, seed), mask, dense)
        job = self.job(method, state, mask, task, seed, rate)
        trained = self.trainer.train(method.kind, self.transform(name), job)
        numbers = ways.trained_numbers(method, state.trainable, mask)
        return state._replace(trainable=trained.trainable), trained, numbers

    def job(
        self,
        method: ways.Method,
        state: lrk.State,
        mask: Any,
        task: str,
        seed: int,
        rate: float,
    ) -> Job:
        """A job of one task, its head that of the probe."""
        o, number = self.options, self.task(task)
        steps = o.steps * method.steps
        kernel, bias = self.trainer.head(number)
        texts = len(self.suite.labels("train", number))
        return Job(
            state,
            (kernel[None], bias[None]),
            ways.keep(method, state.trainable, mask),
            np.full(steps, number),
            np.zeros(steps, int),
            batches(texts, steps, o.batch, seed),
            np.float32(rate),
        )

    def mask(self, name: str, task: str, seed: int) -> dict[str, np.ndarray] | None:
        """The mask of a method, for a task and seed."""
        return self._mask(name, task, seed)[0]

    def _mask(self, name: str, task: str, seed: int) -> tuple[Any, lrk.State | None]:
        """A mask, and the LoRI-D state that it came from."""
        method = ways.METHODS[name]
        if not method.mask:
            return None, None
        key = jax.random.fold_in(self.key(task, seed), 2)
        if method.mask == "gradient":
            state = self._init("lora", self.key(task, seed))
            job = self.job(method, state, None, task, seed, 0.0)
            scores = self.trainer.gradient("lora", self.transform("lora"), job)
            return ways.mask_of(method, None, scores, key), None
        source = task
        if method.mask == "other":
            names = self.suite.tasks
            source = names[(self.task(task) + 1) % len(names)]
        dense = self.state("lori-d", self.single("lori-d", source, seed))
        return ways.mask_of(method, dense, None, key), dense

    def logits(
        self, name: str, state: lrk.State, head: Any, task: str, split: str
    ) -> np.ndarray:
        """Logits of a task's split with an adapter."""
        kind = ways.METHODS[name].kind
        params = self.trainer.form(kind, self.transform(name), state)
        return self.trainer.logits(params, self.task(task), head, split)

    @functools.cached_property
    def bare(self) -> dict[tuple[str, str], np.ndarray]:
        """Pooled outputs of the bare encoder, by task and split."""
        found = {}
        for i, task in enumerate(self.suite.tasks):
            for split in ("valid", "test"):
                own = self.suite.splits[split]
                found[task, split] = features(
                    self.cut, self.cut.params, own.hidden[i], own.mask[i]
                )[: len(self.suite.labels(split, i))]
        return found

    def off(self, head: Any, task: str, split: str) -> np.ndarray:
        """Logits of a task's split with a head on the bare encoder."""
        kernel, bias = head
        classes = self.suite.classes[self.task(task)]
        return (self.bare[task, split] @ kernel + bias)[:, :classes]


def _head(trained: Trained) -> tuple[np.ndarray, np.ndarray]:
    """The head in the only slot."""
    kernels, biases = trained.heads
    return kernels[0], biases[0]


def _storable(single: Single) -> dict[str, Any]:
    """Nested dicts of arrays; paths hold slashes, which names of arrays may."""
    return {
        **single._asdict(),
        "head": dict(zip(("kernel", "bias"), single.head, strict=True)),
    }


def _restored(found: Mapping[str, Any]) -> Single:
    """The inverse of `_storable`."""
    head = (found["head"]["kernel"], found["head"]["bias"])
    return Single(
        found["trainable"],
        head,
        found["losses"],
        float(found["rate"]),
        int(found["trained"]),
        float(found["seconds"]),
    )
