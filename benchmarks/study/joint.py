"""One LoRA trained on all tasks of a suite at once, each task with its own head."""

from typing import Any, NamedTuple

import jax
import numpy as np

import lowrank as lrk
from benchmarks.study import methods as ways
from benchmarks.study.singles import TUNING_SEED, Singles
from benchmarks.study.train import Job, batches, nll

NAME = "lora"


class Joint(NamedTuple):
    """A jointly trained adapter.

    Attributes:
        state: Its state.
        heads: Kernel and bias of each task.
        rate: The rate that was chosen.
        tried: Mean validation loss of each rate.
        trained: How many numbers of the adapter were trained.
    """

    state: lrk.State
    heads: list[tuple[np.ndarray, np.ndarray]]
    rate: float
    tried: list[float]
    trained: int


def joint_run(work: Singles, seed: int) -> Joint:
    """Trains on as many batches of every task as the single runs see of theirs.

    Tasks take turns, one batch each. The rate is chosen as for the single runs.
    """
    rates = work.options.rates
    given, row = work.given(kind="joint"), f"rate-{work.name}-joint"
    found = work.store.load_arrays(row, config=given)
    if found is None:
        losses = [_loss(work, *_train(work, TUNING_SEED, rate)) for rate in rates]
        found = {"losses": np.array(losses)}
        work.store.save_arrays(row, found, config=given)
    tried = [float(x) for x in found["losses"]]
    rate = rates[int(np.argmin(np.where(np.isfinite(tried), tried, 1e30)))]
    state, heads = _train(work, seed, rate)
    method = ways.METHODS[NAME]
    numbers = ways.trained_numbers(method, state.trainable, None)
    return Joint(state, heads, rate, tried, numbers)


def _train(work: Singles, seed: int, rate: float) -> tuple[lrk.State, list[Any]]:
    """One joint run: the state and the heads."""
    o, tasks = work.options, len(work.suite.tasks)
    method, tx = ways.METHODS[NAME], work.transform(NAME)
    key = jax.random.fold_in(jax.random.key(seed), 100)
    state = jax.tree.map(np.asarray, jax.jit(tx.init)(key, work.cut.params))
    turns = np.tile(np.arange(tasks), o.steps)
    orders = [
        batches(len(work.suite.labels("train", i)), o.steps, o.batch, seed)
        for i in range(tasks)
    ]
    kernels, biases = (np.asarray(x) for x in work.suite.heads)
    job = Job(
        state,
        (kernels, biases),
        ways.keep(method, state.trainable, None),
        turns,
        turns,
        np.stack(orders, axis=1).reshape(tasks * o.steps, o.batch),
        np.float32(rate),
    )
    trained = work.trainer.train(method.kind, tx, job)
    heads = list(zip(*trained.heads, strict=True))
    return state._replace(trainable=trained.trainable), heads


def _loss(work: Singles, state: lrk.State, heads: list[Any]) -> float:
    """Mean validation loss over the tasks."""
    losses = [
        nll(
            work.logits(NAME, state, heads[i], task, "valid"),
            work.suite.labels("valid", i),
        )
        for i, task in enumerate(work.suite.tasks)
    ]
    return float(np.mean(losses))
