"""Runs of the table of convolutional transfer: tuned, trained, scored."""

import functools
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

import lowrank as lrk
from benchmarks import data, stats
from benchmarks.runner import Session
from benchmarks.study.convnet import CLASSES, EVAL_BATCH, Images, at_cut, few, load_cut
from benchmarks.study.singles import TUNING_SEED
from benchmarks.study.train import OPTIMIZER, batches, schedule
from benchmarks.tables._conv_transfer_ways import WAYS, Sizes
from benchmarks.tables._quickstart_probe import fit_probe

FEWEST = 50  # images of a class, for which the table says how many steps
Head = tuple[Any, Any]


class Run(NamedTuple):
    """What one run gives.

    Attributes:
        params: Plain parameters of the network; None where they are the frozen ones.
        head: Kernel `[width, CLASSES]` and bias `[CLASSES]`.
        trained: How many numbers were trained, the head left out.
        losses: Loss of each step.
        seconds: Processor time of a step: the median, the first left out.
    """

    params: Any
    head: Head
    trained: int
    losses: np.ndarray
    seconds: float


class Work:
    """Everything that the rows share; nothing is loaded before it is asked for."""

    def __init__(
        self, options: Any, session: Session, shots: int, beside: "Work | None" = None
    ) -> None:
        """Takes the table's options, and what a work of other shots has loaded."""
        self.options, self.session, self.shots = options, session, shots
        self.steps = max(1, round(options.steps * shots / FEWEST))
        self.tag = "" if shots == FEWEST else f"-n{shots}"
        self._few: dict[int, Images] = {}
        self._heads: dict[int, Head] = {}
        self._rates: dict[str, tuple[float, list[float]]] = {}
        self._programs: dict[str, tuple[lrk.Transform, Any, Any]] = {}
        if beside is not None:
            self.cut, self.whole, self.parts = beside.cut, beside.whole, beside.parts
            self._above, self._programs = beside._above, beside._programs

    @functools.cached_property
    def cut(self) -> Any:
        """The network."""
        o = self.options
        return load_cut(o.blocks, o.side, synthetic=o.synthetic)

    @functools.cached_property
    def whole(self) -> data.Dataset:
        """The images."""
        return data.fashion_mnist(synthetic=self.options.synthetic)

    @functools.cached_property
    def parts(self) -> dict[str, Images]:
        """Validation and test images at the cut."""
        o = self.options
        return {
            "valid": at_cut(self.cut, self.whole.valid.take(slice(o.valid))),
            "test": at_cut(self.cut, self.whole.test.take(slice(o.test))),
        }

    def train_images(self, seed: int) -> Images:
        """The few labelled images of a seed, at the cut."""
        if seed not in self._few:
            own = few(self.whole.train, self.shots, seed)
            self._few[seed] = at_cut(self.cut, own)
        return self._few[seed]

    def head(self, seed: int) -> Head:
        """The head fitted on the frozen network: where every way starts."""
        if seed not in self._heads:
            known, valid = self.train_images(seed), self.parts["valid"]
            pairs = [(self.features(None, x.hidden), x.labels) for x in (known, valid)]
            probe = fit_probe(pairs[0], pairs[1], CLASSES, outputs=CLASSES)
            self._heads[seed] = (probe.head.kernel, probe.head.bias)
        return self._heads[seed]

    def features(self, params: Any, hidden: Any) -> np.ndarray:
        """Pooled features `[n, width]` under plain parameters."""
        params, number = self.cut.params if params is None else params, len(hidden)
        found = []
        for start in range(0, number, EVAL_BATCH):
            index = np.arange(start, start + EVAL_BATCH) % number
            found.append(np.asarray(self._above(params, hidden[index])))
        return np.concatenate(found)[:number]

    @functools.cached_property
    def _above(self) -> Any:
        return jax.jit(self.cut.features)

    def rate(self, name: str) -> tuple[float, list[float]]:
        """The rate with the best validation accuracy, and the accuracies of all.

        Of equal ones the first in the grid: the smallest.
        """
        if name not in self._rates:
            grid = getattr(self.options, f"{WAYS[name].grid}_rates")
            given = self.given(kind="rate", way=name)
            found = self.session.load_arrays(f"rate-{name}{self.tag}", config=given)
            if found is None:
                marks = [self._mark(name, rate) for rate in grid]
                found = {"accuracy": np.array(marks)}
                self.session.save_arrays(f"rate-{name}{self.tag}", found, config=given)
            tried = [float(x) for x in found["accuracy"]]
            self._rates[name] = (float(grid[int(np.argmax(tried))]), tried)
        return self._rates[name]

    def _mark(self, name: str, rate: float) -> float:
        run = self.run(name, TUNING_SEED, rate)
        guess = self.logits(run, "valid").argmax(axis=1)
        return stats.accuracy(guess, self.parts["valid"].labels)

    def logits(self, run: Run, split: str) -> np.ndarray:
        """Logits `[n, CLASSES]` of the validation or the test images."""
        kernel, bias = (np.asarray(x) for x in run.head)
        return self.features(run.params, self.parts[split].hidden) @ kernel + bias

    def run(self, name: str, seed: int, rate: float, steps: int = 0) -> Run:
        """Trains one way on the few images of a seed; for a timing, a few steps."""
        head = self.head(seed)
        make = WAYS[name].make
        if make is None:
            return Run(None, head, 0, np.zeros(0), 0.0)
        o, known = self.options, self.train_images(seed)
        tx, init, step = self._program(name, make)
        state = init(jax.random.key(seed), self.cut.params)
        trained = lrk.count(state)[0]
        steps = steps or self.steps
        order = batches(len(known.labels), steps, o.batch, seed)
        carry = ((state.trainable, head), OPTIMIZER.init((state.trainable, head)))
        losses, times = [], [time.process_time()]
        for index, share in zip(order, schedule(steps), strict=True):
            batch = (known.hidden[index], known.labels[index])
            shares = np.float32(share * rate), np.float32(share * o.head_rate)
            carry, value = step(self.cut.params, state.fixed, carry, batch, shares)
            losses.append(jax.block_until_ready(value))
            times.append(time.process_time())
        seconds = float(np.median(np.diff(times)[1:])) if steps > 1 else 0.0
        (trainable, head), _ = carry
        state = state._replace(trainable=trainable)
        dense = lrk.materialize(tx.apply(self.cut.params, state))
        return Run(dense, head, trained, np.asarray(losses), seconds)

    def _program(self, name: str, make: Any) -> tuple[lrk.Transform, Any, Any]:
        """A way's transform, its compiled init, and its compiled step."""
        if name not in self._programs:
            o = self.options
            sizes = Sizes(o.rank, o.large_rank, o.loha_rank, o.lokr_rank, o.sparse)
            tx = make(self.cut, sizes)
            step = jax.jit(functools.partial(self._step, tx))
            self._programs[name] = (tx, jax.jit(tx.init), step)
        return self._programs[name]

    def _step(
        self,
        tx: lrk.Transform,
        params: Any,
        fixed: Any,
        carry: Any,
        batch: Any,
        by: Any,
    ) -> tuple[Any, jax.Array]:
        """One step of adapter and head, each at its own rate."""
        (hidden, labels), (train, memory) = batch, carry

        def loss(train: Any) -> jax.Array:
            own, (kernel, bias) = train
            adapted = tx.apply(params, lrk.State(own, fixed))
            pooled = lrk.lift(self.cut.features)(adapted, hidden)
            logits = pooled @ kernel + bias[None]
            cost = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
            return cost.mean()

        value, slope = jax.value_and_grad(loss)(train)
        update, memory = OPTIMIZER.update(slope, memory)
        rates = tuple(
            jax.tree.map(lambda _, rate=rate: rate, own)
            for own, rate in zip(train, by, strict=True)
        )
        train = jax.tree.map(lambda x, u, rate: x - rate * u, train, update, rates)
        return (train, memory), value

    def given(self, **more: Any) -> dict[str, Any]:
        """What decides a result, but for the way and the seed."""
        o = self.options
        names = (
            "blocks", "side", "batch", "valid", "rank", "large_rank",
            "loha_rank", "lokr_rank", "sparse", "head_rate", "factors_rates",
            "direct_rates", "full_rates", "synthetic",
        )  # fmt: skip
        own = {"shots": self.shots, "steps": self.steps}
        return {name: getattr(o, name) for name in names} | own | more
