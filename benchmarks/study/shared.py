"""Adapters with a part that tasks share and a part that each owns, trained jointly."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.study.encoder import Cut, kernels
from benchmarks.study.methods import SCALE
from benchmarks.study.singles import Singles
from benchmarks.study.train import OPTIMIZER, batches, schedule

HEADS = 4  # up-projections of HydraLoRA and MTL-LoRA: as many as there are domains
Select = Callable[[str, Any], bool]


class Scheme(NamedTuple):
    """A way to share.

    Attributes:
        title: What tables call it.
        make: `make(cut, rank)`: the transform of one task.
        private: Which leaves of its state each task owns; the others are shared. None
            where all is shared.
    """

    title: str
    make: Callable[[Cut, int], lrk.Transform]
    private: Select | None


def _shared_and_private(cut: Cut, rank: int) -> lrk.Transform:
    half = max(1, rank // 2)
    select = kernels(cut)
    return lrk.chain(
        lrk.lora(half, alpha=SCALE * half, select=select),
        lrk.lori(half, alpha=SCALE * half, select=select),
    )


def _mtl(cut: Cut, rank: int) -> lrk.Transform:
    half = max(1, rank // 2)
    return lrk.mtl_lora(half, HEADS, alpha=SCALE * half, select=kernels(cut))


def _hydra(cut: Cut, rank: int) -> lrk.Transform:
    half = max(1, rank // 2)
    return lrk.hydra(half, HEADS, alpha=SCALE * half, select=kernels(cut))


SCHEMES = {
    "lora+lori": Scheme(
        "shared LoRA, private LoRIs", _shared_and_private, lrk.matching("^1/")
    ),
    "mtl-lora": Scheme("MTL-LoRA", _mtl, lrk.matching("/(task|mix)$")),
    "hydra": Scheme("HydraLoRA, all shared", _hydra, None),
}


class Shared(NamedTuple):
    """What joint training gives.

    Attributes:
        states: The state of each task, its own part and the shared one together.
        heads: Kernel and bias of each task.
        private: How many numbers each task owns, its head left out.
        shared: How many numbers all share.
        losses: Mean loss of each step.
    """

    states: list[lrk.State]
    heads: list[tuple[np.ndarray, np.ndarray]]
    private: int
    shared: int
    losses: np.ndarray


class Sharing:
    """Trains and scores schemes on the tasks of a suite."""

    def __init__(self, work: Singles) -> None:
        """Takes what the single-task runs have: options, encoder, tasks."""
        self.work = work
        self._made: dict[str, tuple[lrk.Transform, Any, Any]] = {}
        self._pools: dict[str, Callable[..., Any]] = {}

    def train(self, name: str, seed: int, rate: float) -> Shared:
        """One joint run: each step takes one batch of every task."""
        work, o = self.work, self.work.options
        tx, init, program = self._program(name)
        tasks = range(len(work.suite.tasks))
        states = [
            init(jax.random.fold_in(jax.random.key(seed), i), work.cut.params)
            for i in tasks
        ]
        private, shared = self._parted(name, states)
        order = [
            batches(len(work.suite.labels("train", i)), o.steps, o.batch, seed)
            for i in tasks
        ]
        given = (
            np.stack(order, axis=1),
            np.asarray(schedule(o.steps) * rate, np.float32),
        )
        train = ((private.trainable, shared.trainable), work.suite.heads)
        fixed = (private.fixed, shared.fixed)
        train, losses = program(
            work.cut.params, work.suite.splits["train"], train, fixed, *given
        )
        (own, common), heads = jax.tree.map(np.asarray, train)
        private = private._replace(trainable=own)
        shared = shared._replace(trainable=common)
        trained = self._joined(name, private, shared)
        sizes = [
            sum(np.size(x) for x in jax.tree.leaves(part.trainable))
            for part in (private, shared)
        ]
        return Shared(
            trained,
            list(zip(*heads, strict=True)),
            sizes[0] // len(tasks),
            sizes[1],
            np.asarray(losses),
        )

    def pooled(self, name: str, state: lrk.State, task: int, split: str) -> np.ndarray:
        """Pooled outputs of a task's split, by lift: a router has no dense form."""
        if name not in self._pools:
            tx = self._program(name)[0]

            def run(params: Any, state: Any, hidden: Any, mask: Any) -> Any:
                adapted = tx.apply(params, state)
                lifted = lrk.lift(self.work.cut.pool)
                return jax.lax.map(
                    lambda part: lifted(adapted, *part), (hidden, mask), batch_size=50
                )

            def whole(params: Any, state: Any, hidden: Any, mask: Any) -> Any:
                return run(params, state, hidden[:, None], mask[:, None])[:, 0]

            self._pools[name] = jax.jit(whole)
        own = self.work.suite.splits[split]
        number = len(self.work.suite.labels(split, task))
        found = self._pools[name](
            self.work.cut.params, state, own.hidden[task], own.mask[task]
        )
        return np.asarray(found)[:number]

    def logits(self, name: str, run: Shared, task: int, split: str) -> np.ndarray:
        """Logits of a task's split with its own head."""
        kernel, bias = run.heads[task]
        pooled = self.pooled(name, run.states[task], task, split)
        return (pooled @ kernel + bias)[:, : self.work.suite.classes[task]]

    def _parted(self, name: str, states: list[lrk.State]) -> tuple[Any, Any]:
        """The private parts, stacked, and the shared part of the first task."""
        select = SCHEMES[name].private
        if select is None:
            none = lrk.State({}, {})
            return none, states[0]
        pairs = [lrk.partition(state, select) for state in states]
        return lrk.stack([own for own, _ in pairs]), pairs[0][1]

    def _joined(self, name: str, private: Any, shared: Any) -> list[lrk.State]:
        """The whole state of each task."""
        number = len(self.work.suite.tasks)
        if SCHEMES[name].private is None:
            return [shared] * number
        own = [jax.tree.map(lambda x, i=i: x[i], private) for i in range(number)]
        return [lrk.combine(part, shared) for part in own]

    def _program(self, name: str) -> tuple[lrk.Transform, Any, Any]:
        """The transform, its jitted init, and the jitted training loop."""
        if name not in self._made:
            tx = SCHEMES[name].make(self.work.cut, self.work.options.rank)
            loop = jax.jit(functools.partial(self._loop, name, tx))
            self._made[name] = (tx, jax.jit(tx.init), loop)
        return self._made[name]

    def _loop(
        self,
        name: str,
        tx: lrk.Transform,
        params: Any,
        split: Any,
        train: Any,
        fixed: Any,
        order: Any,
        rates: Any,
    ) -> Any:
        """All steps of a joint run, traced."""
        suite, pool = self.work.suite, self.work.cut.pool
        every = SCHEMES[name].private is None
        tasks = jnp.arange(len(suite.tasks))

        def loss(
            own: Any, common: Any, head: Any, own_fixed: Any, task: Any, index: Any
        ) -> Any:
            shared = lrk.State(common, fixed[1])
            private = lrk.State(own, own_fixed)
            state = shared if every else lrk.combine(private, shared)
            adapted = tx.apply(params, state)
            hidden, mask = split.hidden[task, index], split.mask[task, index]
            pooled = lrk.lift(pool)(adapted, hidden, mask)
            kernel, bias = head
            logits = pooled @ kernel + bias[None]
            logits = jnp.where(suite.valid[task][None], logits, -jnp.inf)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, split.labels[task, index]
            ).mean()

        def step(carry: Any, given: Any) -> Any:
            ((own, common), heads), memory = carry
            index, rate = given
            slope = jax.value_and_grad(loss, argnums=(0, 1, 2))
            each = lrk.map_tasks(slope, in_axes=(0, None, 0, 0, 0, 0))
            value, (g_own, g_common, g_heads) = each(
                own, common, heads, fixed[0], tasks, index
            )
            total = jax.tree.map(lambda g: g.sum(axis=0), g_common)
            update, memory = OPTIMIZER.update(((g_own, total), g_heads), memory)
            now = ((own, common), heads)
            now = jax.tree.map(lambda x, u: x - rate * u, now, update)
            return (now, memory), value.mean()

        start = (train, OPTIMIZER.init(train))
        (train, _), losses = jax.lax.scan(step, start, (order, rates))
        return train, losses
