"""Learning rates, ranks, scales and seeds of LoRA in one mapped program."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.study.encoder import EVAL_BATCH, kernels
from benchmarks.study.singles import Singles
from benchmarks.study.train import PLAIN, Job, batches

RULES = {"rank": "alpha / r", "root": "alpha / sqrt(r)"}
MEETING = 8  # the rank at which both rules give one scale
SCALE = 2.0  # that scale
LAST = 8  # steps whose training losses are averaged


class Point(NamedTuple):
    """One run of the sweep: a rank and a seed by number, a scale, a rate."""

    state: Any
    scale: Any
    rate: Any
    order: Any


class Result(NamedTuple):
    """What every run gives, each with a leading axis of runs.

    Attributes:
        loss: Mean training loss of the last steps.
        valid: Validation logits `[runs, n, classes]`.
        test: Predicted classes of test texts `[runs, n]`.
    """

    loss: Any
    valid: Any
    test: Any


def scale(rule: str, rank: int) -> float:
    """The scale of a rule at a rank."""
    share = MEETING / rank
    return SCALE * (share if rule == "rank" else share**0.5)


def padded(work: Singles, ranks: tuple[int, ...], task: str) -> lrk.State:
    """Fresh adapters of all ranks and seeds, zeros up to the largest rank, stacked."""
    states = []
    for rank in ranks:
        init = jax.jit(lrk.lora(rank, select=kernels(work.cut)).init)
        for seed in work.options.seeds:
            states.append(init(work.key(task, seed), work.cut.params))
    return lrk.stack(lrk.pad_ranks(states))


def sweep(
    work: Singles,
    task: str,
    ranks: tuple[int, ...],
    runs: list[tuple[float, int, int, float]],
) -> Result:
    """Trains and scores every run in one call.

    Args:
        work: The suite and its options.
        task: The task.
        ranks: All ranks.
        runs: For each its scale, rank, seed and peak rate.

    Returns:
        Their results, in order.
    """
    o, number, suite = work.options, work.task(task), work.suite
    tx = lrk.lora(max(ranks), select=kernels(work.cut))
    states = padded(work, ranks, task)
    texts = len(suite.labels("train", number))
    orders = {seed: batches(texts, o.steps, o.batch, seed) for seed in o.seeds}
    points = Point(
        np.array([_place(ranks, o.seeds, rank, seed) for _, rank, seed, _ in runs]),
        np.array([scale for scale, *_ in runs], np.float32),
        np.array([rate for *_, rate in runs], np.float32),
        np.stack([orders[seed] for _, _, seed, _ in runs]),
    )
    kernel, bias = work.trainer.head(number)
    classes = int(suite.classes[number])
    counts = {split: len(suite.labels(split, number)) for split in ("valid", "test")}

    def one(point: Point, params: Any, states: lrk.State, splits: Any) -> Any:
        drawn = jax.tree.map(lambda x: x[point.state], states)
        fixed = {path: {"scale": point.scale} for path in drawn.fixed}
        job = Job(
            lrk.State(drawn.trainable, fixed),
            (jnp.asarray(kernel)[None], jnp.asarray(bias)[None]),
            jax.tree.map(lambda _: np.float32(1), drawn.trainable),
            jnp.full(o.steps, number),
            jnp.zeros(o.steps, int),
            point.order,
            point.rate,
        )
        trained = work.trainer.traced(tx, PLAIN, params, splits["train"], job)
        adapted = tx.apply(params, lrk.State(trained.trainable, fixed))
        heads, biases = trained.heads
        pool = lrk.lift(work.cut.pool)

        def logits(split: str) -> Any:
            own, kept = splits[split], counts[split]
            pooled = jax.lax.map(
                lambda part: pool(adapted, part[0][None], part[1][None])[0],
                (own.hidden[number, :kept], own.mask[number, :kept]),
                batch_size=EVAL_BATCH,
            )
            return (pooled @ heads[0] + biases[0][None])[:, :classes]

        guess = jnp.argmax(logits("test"), axis=1).astype(jnp.int8)
        return Result(jnp.mean(trained.losses[-LAST:]), logits("valid"), guess)

    mapped = lrk.map_tasks(one, in_axes=(0, None, None, None))
    found = jax.jit(mapped)(points, work.cut.params, states, suite.splits)
    return jax.tree.map(np.asarray, found)


def _place(ranks: Any, seeds: Any, rank: int, seed: int) -> int:
    """Where the adapter of a rank and seed stands in the stack."""
    return list(ranks).index(rank) * len(seeds) + list(seeds).index(seed)
