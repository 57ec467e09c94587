"""Training of many adapters, each a job: one compiled loop serves many methods.

What differs between the jobs of a method is arrays only: the state, the task, the order
of the batches, the learning rate, and `keep`, which multiplies the gradients. So LoRA,
LoRI-D, LoRI-S of any mask and density, and LoRA of a smaller rank are one program: LoRI
is LoRA with `keep` 0 on `A`, and its mask is `keep` on `B`, as in the authors' code,
which masks gradients too. (`lrk.lori(mask=...)` stores the kept entries only and takes
the same steps: a test compares the two.)
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks import stats
from benchmarks.study.encoder import EVAL_BATCH, Cut, features
from benchmarks.study.tasks import Suite

OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
WARMUP = 0.06  # share of the steps


class Job(NamedTuple):
    """One adapter to train, with the heads that it trains along.

    Attributes:
        state: State of the method's transform.
        heads: Kernels `[slots, width, CLASSES]` and biases `[slots, CLASSES]`.
        keep: As `state.trainable`: what multiplies each gradient, 0 for frozen.
        tasks: Task of each step `[steps]`, a number in the suite.
        slots: Which head each step trains `[steps]`.
        order: Training examples of each step `[steps, batch]`.
        rate: Peak learning rate.
    """

    state: lrk.State
    heads: tuple[Any, Any]
    keep: Any
    tasks: Any
    slots: Any
    order: Any
    rate: Any


class Recipe(NamedTuple):
    """What a method's training has beside Adam.

    Attributes:
        penalty: `penalty(trainable)`, added to the loss; None for none.
        gradient: `gradient(slope, trainable, fixed)`, what Adam reads; None: the slope.
        update: `update(step)`, a finished step, to be multiplied by the rate.
        memory: `memory(trainable)`, what `after` carries from step to step.
        after: `after(trainable, slope, memory, number, steps)`: the trainable part and
            the memory behind the step of a number.
    """

    penalty: Callable[[Any], Any] | None = None
    gradient: Callable[[Any, Any, Any], Any] | None = None
    update: Callable[[Any], Any] | None = None
    memory: Callable[[Any], Any] | None = None
    after: Callable[..., tuple[Any, Any]] | None = None


PLAIN = Recipe()


class Trained(NamedTuple):
    """What training gives: the trained parts, the heads, and the loss of each step."""

    trainable: Any
    heads: tuple[Any, Any]
    losses: Any


def schedule(steps: int) -> np.ndarray:
    """Shares of the peak rate: a short linear warm-up, then linearly to zero."""
    warm = max(1, round(WARMUP * steps))
    step = np.arange(steps)
    return np.minimum((step + 1) / warm, (steps - step) / max(1, steps - warm))


def batches(number: int, steps: int, batch: int, seed: int) -> np.ndarray:
    """Indices `[steps, batch]`: one random order of the examples after another."""
    draws = stats.generator(seed)
    rounds = -(-steps * batch // number)
    order = np.concatenate([draws.permutation(number) for _ in range(rounds)])
    return order[: steps * batch].reshape(steps, batch)


class Trainer:
    """Trains and scores the jobs of a suite."""

    def __init__(self, cut: Cut, suite: Suite) -> None:
        """Takes the encoder and the suite."""
        self.cut, self.suite = cut, suite
        self._compiled: dict[Any, Callable[..., Any]] = {}

    def train(
        self, name: str, tx: lrk.Transform, job: Job, recipe: Recipe = PLAIN
    ) -> Trained:
        """Trains one job in one compiled loop.

        Args:
            name: Names transform and recipe: jobs of one name share their program.
            tx: The transform.
            job: The job.
            recipe: What training has beside Adam.

        Returns:
            What it gave, on the host.
        """
        if ("train", name) not in self._compiled:
            run = functools.partial(self.traced, tx, recipe)
            self._compiled["train", name] = jax.jit(run)
        program = self._compiled["train", name]
        found = program(self.cut.params, self.suite.splits["train"], job)
        return jax.tree.map(np.asarray, found)

    def traced(
        self, tx: lrk.Transform, recipe: Recipe, params: Any, split: Any, job: Job
    ) -> Trained:
        """One job, to be compiled or mapped."""
        steps = job.tasks.shape[0]

        def loss(train: Any, task: Any, slot: Any, index: Any) -> jax.Array:
            own, (kernels, biases) = train
            adapted = tx.apply(params, lrk.State(own, job.state.fixed))
            hidden, mask = split.hidden[task, index], split.mask[task, index]
            pooled = lrk.lift(self.cut.pool)(adapted, hidden, mask)
            logits = pooled @ kernels[slot] + biases[slot][None]
            logits = jnp.where(self.suite.valid[task][None], logits, -jnp.inf)
            found = optax.softmax_cross_entropy_with_integer_labels(
                logits, split.labels[task, index]
            ).mean()
            return found if recipe.penalty is None else found + recipe.penalty(own)

        def step(carry: Any, given: Any) -> tuple[Any, jax.Array]:
            train, memory, kept = carry
            *where, share, number = given
            value, (slope, of_heads) = jax.value_and_grad(loss)(train, *where)
            slope = jax.tree.map(lambda g, k: g * k, slope, job.keep)
            if recipe.gradient is not None:
                slope = recipe.gradient(slope, train[0], job.state.fixed)
            found, memory = OPTIMIZER.update((slope, of_heads), memory)
            update, heads = cast(tuple[Any, Any], found)
            update = update if recipe.update is None else recipe.update(update)
            rate = job.rate * share
            train = jax.tree.map(lambda x, u: x - rate * u, train, (update, heads))
            if recipe.after is not None:
                own, kept = recipe.after(train[0], slope, kept, number, steps)
                train = (own, train[1])
            return (train, memory, kept), value

        train = (job.state.trainable, job.heads)
        shares = jnp.asarray(schedule(steps), jnp.float32)
        given = (job.tasks, job.slots, job.order, shares, jnp.arange(steps))
        kept = () if recipe.memory is None else recipe.memory(train[0])
        carry = (train, OPTIMIZER.init(train), kept)
        (train, *_), losses = jax.lax.scan(step, carry, given)
        return Trained(*train, losses)

    def form(self, name: str, tx: lrk.Transform, state: lrk.State) -> Any:
        """Plain parameters of the adapted encoder."""
        if ("form", name) not in self._compiled:
            self._compiled["form", name] = jax.jit(
                lambda params, state: lrk.materialize(tx.apply(params, state))
            )
        return self._compiled["form", name](self.cut.params, state)

    def logits(
        self, params: Any, task: int, head: tuple[Any, Any], split: str
    ) -> np.ndarray:
        """Logits `[n, classes]` of one task's split under plain parameters."""
        own, number = self.suite.splits[split], len(self.suite.labels(split, task))
        pooled = features(self.cut, params, own.hidden[task], own.mask[task])
        kernel, bias = (np.asarray(x) for x in head)
        return (pooled @ kernel + bias)[:number, : self.suite.classes[task]]

    def lifted(
        self, name: str, tx: lrk.Transform, state: lrk.State, hidden: Any, mask: Any
    ) -> np.ndarray:
        """Pooled outputs `[n, width]` by lift: a network inside has no dense form."""
        if ("lifted", name) not in self._compiled:

            def run(params: Any, state: Any, hidden: Any, mask: Any) -> Any:
                adapted = tx.apply(params, state)
                pool = lrk.lift(self.cut.pool)
                return jax.lax.map(
                    lambda part: pool(adapted, part[0][None], part[1][None])[0],
                    (hidden, mask),
                    batch_size=EVAL_BATCH,
                )

            self._compiled["lifted", name] = jax.jit(run)
        program = self._compiled["lifted", name]
        return np.asarray(program(self.cut.params, state, hidden, mask))

    def head(self, task: int) -> tuple[Any, Any]:
        """The head that the task's probe gives."""
        kernels, biases = self.suite.heads
        return np.asarray(kernels[task]), np.asarray(biases[task])

    def gradient(
        self, name: str, tx: lrk.Transform, job: Job
    ) -> dict[str, dict[str, np.ndarray]]:
        """Gradient of the mean training loss at the job's state, over its batches."""
        key = ("gradient", name)
        if key not in self._compiled:
            self._compiled[key] = jax.jit(functools.partial(self._gradient, tx))
        found = self._compiled[key](self.cut.params, self.suite.splits["train"], job)
        return jax.tree.map(np.asarray, found)

    def _gradient(self, tx: lrk.Transform, params: Any, split: Any, job: Job) -> Any:
        """The gradient, traced; the batches are read one after another."""

        def loss(own: Any, task: Any, slot: Any, index: Any) -> jax.Array:
            adapted = tx.apply(params, lrk.State(own, job.state.fixed))
            hidden, mask = split.hidden[task, index], split.mask[task, index]
            pooled = lrk.lift(self.cut.pool)(adapted, hidden, mask)
            kernels, biases = job.heads
            logits = pooled @ kernels[slot] + biases[slot][None]
            logits = jnp.where(self.suite.valid[task][None], logits, -jnp.inf)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, split.labels[task, index]
            ).mean()

        def add(total: Any, given: Any) -> tuple[Any, None]:
            slope = jax.grad(loss)(job.state.trainable, *given)
            return jax.tree.map(jnp.add, total, slope), None

        zero = jax.tree.map(jnp.zeros_like, job.state.trainable)
        return jax.lax.scan(add, zero, (job.tasks, job.slots, job.order))[0]


def nll(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood; infinite where a logit is not finite."""
    if not np.isfinite(logits).all():
        return float("inf")
    top = logits.max(axis=1, keepdims=True)
    total = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    return float(np.mean(total - logits[np.arange(len(labels)), labels]))
