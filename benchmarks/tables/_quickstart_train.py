"""Training adapters and heads for all tasks at once, over one frozen base."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.data import TaskBatch
from benchmarks.tables._quickstart_tasks import Head, Model, Task

KERNELS = lrk.matching(
    r"^encoder/encoder/layer/\d+/(attention/self/(query|key|value)"
    r"|attention/output/dense|intermediate/dense|output/dense)/kernel$"
)
HEAD = lrk.matching("^head/")
METHODS = {"lora": "LoRA", "lori-d": "LoRI-D", "lori-s": "LoRI-S"}
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.scale_by_adam())
WARMUP = 0.06  # share of the steps


def adapter(
    method: str, rank: int, alpha: float, mask: Mapping[str, Any] | None = None
) -> lrk.Transform:
    """The encoder's part of a method; LoRI-S takes the mask that LoRI-D gave."""
    if method == "lora":
        return lrk.lora(rank, alpha=alpha, select=KERNELS)
    return lrk.lori(rank, alpha=alpha, mask=mask, select=KERNELS)


def with_head(tx: lrk.Transform) -> lrk.Transform:
    """The head trained in full, and an adapter on the encoder.

    The adapter comes last: `chain` applies every member but the last in its `init`,
    and outside jit a sparse adapter would compile anew for each number of entries.
    """
    return lrk.chain(lrk.full(select=HEAD), tx)


def start(
    transforms: Sequence[lrk.Transform],
    model: Model,
    heads: Sequence[Head],
    seed: int,
) -> lrk.State:
    """The stacked state of all tasks, each head that of the task's probe.

    Each task has its own key, so each draws its own `A`.
    """
    states = []
    for i, (tx, head) in enumerate(zip(transforms, heads, strict=True)):
        key = jax.random.fold_in(jax.random.key(seed), i)
        state = tx.init(key, model.params)
        own = {
            "head/kernel": {"d": jnp.asarray(head.kernel)},
            "head/bias": {"d": jnp.asarray(head.bias)},
        }
        states.append(state._replace(trainable=(own, state.trainable[1])))
    return lrk.stack(states)


def heads_of(state: lrk.State) -> list[Head]:
    """The head of each task."""
    own = state.trainable[0]
    kernels, biases = (np.asarray(own[f"head/{n}"]["d"]) for n in ("kernel", "bias"))
    return [Head(kernel, bias) for kernel, bias in zip(kernels, biases, strict=True)]


def adapters_of(state: lrk.State) -> lrk.State:
    """The stacked states of the adapters, without the heads."""
    return lrk.State(state.trainable[1], state.fixed[1])


def of_task(state: lrk.State, task: Any) -> lrk.State:
    """One of the stacked states; its number may be traced."""
    return jax.tree.map(lambda x: x[task], state)


def unstacked(state: lrk.State, task: int) -> lrk.State:
    """The same outside jit: cut on the host, where each shape costs no compilation."""
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x)[task]), state)


def make_step(tx: lrk.Transform, model: Model) -> Callable[..., Any]:
    """One optimizer step of all tasks, jitted; compiled once for each text length.

    The base is an argument that all tasks share; only what is trained, and the
    optimizer's state, are donated.
    """

    def one(
        params: Any, train: Any, fixed: Any, memory: Any, rate: Any, *batch: Any
    ) -> tuple[Any, Any, Any]:
        ids, mask, labels, valid = batch

        def loss(train: Any) -> jax.Array:
            adapted = tx.apply(params, lrk.State(train, fixed))
            logits = lrk.lift(model.forward)(adapted, ids, mask)
            logits = jnp.where(valid[None], logits, -jnp.inf)
            return optax.softmax_cross_entropy_with_integer_labels(
                logits, labels
            ).mean()

        value, slope = jax.value_and_grad(loss)(train)
        update, memory = OPTIMIZER.update(slope, memory)
        train = jax.tree.map(lambda x, u: x - rate * u, train, update)
        return train, memory, value

    axes = (None, 0, 0, 0, 0, 0, 0, 0, 0)
    return jax.jit(lrk.map_tasks(one, in_axes=axes), donate_argnums=(1, 3))


def schedule(step: int, steps: int) -> float:
    """Share of the peak rate: a short linear warm-up, then linearly to zero."""
    warm = max(1, round(WARMUP * steps))
    return min((step + 1) / warm, (steps - step) / max(1, steps - warm))


class Trained(NamedTuple):
    """What training gave.

    Attributes:
        state: Stacked state of all tasks.
        losses: Training loss `[steps, tasks]`, of the rate that was chosen.
        rates: Peak learning rate `[tasks]`.
        trial: Validation loss `[rates, tasks]` at the end of the trial.
        seconds: Wall time, search and compilation included.
        step_seconds: Median wall time of a step.
    """

    state: lrk.State
    losses: np.ndarray
    rates: np.ndarray
    trial: np.ndarray
    seconds: float
    step_seconds: float


class Run(NamedTuple):
    """One learning rate under way: what is trained, the optimizer's state, losses."""

    train: Any
    memory: Any
    losses: list[Any]


def train(
    step: Callable[..., Any],
    model: Model,
    tasks: Sequence[Task],
    state: lrk.State,
    batches: Sequence[TaskBatch],
    rates: Sequence[float],
    trial: int,
    judge: Callable[[lrk.State], Sequence[float]],
    tick: Callable[[], Any] = lambda: None,
) -> Trained:
    """Train all tasks at once, the learning rate of each chosen on the way.

    Every rate runs the first `trial` steps of one and the same schedule; each task goes
    on from the rate with the least loss on its validation data, so its result is that
    of a run with this rate from the start.

    Args:
        step: What `make_step` returned.
        model: The model; its parameters stay as they are.
        tasks: The tasks.
        state: Stacked state to start from.
        batches: One batch of all tasks for each step.
        rates: Peak learning rates to try.
        trial: Steps of each rate before one is chosen.
        judge: Validation losses `[tasks]` of a stacked state.
        tick: Is called after each step.

    Returns:
        The trained state, and how it came about.
    """
    begin, times = time.perf_counter(), []
    valid = np.stack([task.valid for task in tasks])
    memory = jax.vmap(OPTIMIZER.init)(state.trainable)

    def advance(run: Run, peak: np.ndarray, first: int, last: int) -> Run:
        now, memory, losses = run
        for i in range(first, last):
            clock = time.perf_counter()
            inputs = [*_inputs(tasks, batches[i]), valid]
            rate = np.float32(peak * schedule(i, len(batches)))
            now, memory, loss = step(
                model.params, now, state.fixed, memory, rate, *inputs
            )
            losses = [*losses, np.asarray(loss)]
            times.append(time.perf_counter() - clock)
            tick()
        return Run(now, memory, losses)

    runs = []
    for rate in rates:
        begun, zero = jax.tree.map(np.array, (state.trainable, memory))
        peak = np.full(len(tasks), rate)
        runs.append(advance(Run(begun, zero, []), peak, 0, trial))
    marks = np.asarray([judge(lrk.State(run.train, state.fixed)) for run in runs])
    best = np.nanargmin(np.where(np.isfinite(marks), marks, 1e30), axis=0)
    run = advance(_pick(runs, best), np.asarray(rates)[best], trial, len(batches))
    return Trained(
        lrk.State(run.train, state.fixed),
        np.stack(run.losses),
        np.asarray(rates)[best],
        marks,
        time.perf_counter() - begin,
        float(np.median(times)),
    )


def _inputs(
    tasks: Sequence[Task], batch: TaskBatch
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Token numbers, masks `[tasks, batch, length]`, and labels `[tasks, batch]`."""
    parts = [task.parts["train"] for task in tasks]
    pairs = [
        part.tokens.batch(index, batch.length)
        for part, index in zip(parts, batch.index, strict=True)
    ]
    labels = [part.labels[i] for part, i in zip(parts, batch.index, strict=True)]
    ids, masks = zip(*pairs, strict=True)
    return np.stack(ids), np.stack(masks), np.stack(labels)


def _pick(runs: Sequence[Run], best: np.ndarray) -> Run:
    """For each task the run that was best for it."""

    def choose(*arrays: Any) -> np.ndarray:
        return np.stack([np.asarray(arrays[b])[task] for task, b in enumerate(best)])

    return Run(
        jax.tree.map(choose, *[run.train for run in runs]),
        jax.tree.map(choose, *[run.memory for run in runs]),
        [choose(*losses) for losses in zip(*[run.losses for run in runs], strict=True)],
    )
