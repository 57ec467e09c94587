"""Beside the headline: training on resampled chips."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets, points
from benchmarks.chips.nets import Pair
from benchmarks.chips.points import Fault
from benchmarks.tables._rram_healing_work import Work
from lowrank import rram

RANK = 8  # of the adapter that is trained on resampled chips


def resampled_rows(work: Work, point: str) -> None:
    """LoRA that sees chip after chip but no map, with HaLoRA's penalty and without."""
    config, session = work.config, work.session
    fault = work.fault(point)
    for factor in (0.0, config.norm_penalty):
        row = f"resampled-{work.name}-{point}-{factor:g}"
        given = {
            **work.shared(),
            **fault.given(),
            "kind": "resampled",
            "point": point,
            "way": f"lora-{RANK}",
            "factor": factor,
            "every": config.resample,
            "steps": work.options.steps,
            "batch": config.batch,
            "rates": config.rates,
            "chips": work.chips,
        }
        if session.row(row, **given) is not None:
            continue
        start = time.perf_counter()
        run = jax.jit(functools.partial(_resampled, work, fault, factor))
        net, few = work.healer.net, slice(config.valid)
        params = jax.tree.map(jnp.asarray, net.params)
        tuning = work.healer.keys("tuning", 1)[: config.tuning_chips]
        valid = tuple(part[few] for part in net.valid)
        trials = [
            float(run(params, net.train, valid, tuning, np.float32(rate)).mean())
            for rate in config.rates
        ]
        rate = config.rates[int(np.argmax(trials))]
        keys = work.healer.keys("scored", work.chips)[: work.chips]
        own = np.asarray(run(params, net.train, net.test, keys, np.float32(rate)))
        session.save(
            row,
            {**_summary(own), "rate": rate, "trials": trials},
            config=given,
            series={"accuracy": own},
            seconds=time.perf_counter() - start,
            seed=0,
        )


def _resampled(
    work: Work,
    fault: Fault,
    factor: float,
    params: Any,
    train: Pair,
    scored: Pair,
    keys: jax.Array,
    rate: Any,
) -> jax.Array:
    """One adapter, trained on many chips and scored on others, `[chips]`."""
    net, every = work.healer.net, work.config.resample
    tx = methods.low_rank(lrk.lora, RANK, net)
    apply = lrk.lift(net.apply)
    key = jax.random.key(work.healer.seed)
    start = tx.init(key, params)
    adam = optax.scale_by_adam()
    rounds = max(1, work.options.steps // every)

    def loss(trainable: Any, deployed: Any, index: Any) -> jax.Array:
        adapted = tx.apply(deployed, start._replace(trainable=trainable))
        own = nets.loss(apply, adapted, train[0][index], train[1][index])
        if not factor:
            return own
        penalty = rram.adapter_norm_penalty(trainable, axes=net.axes)
        return own + factor * penalty

    def round_(carry: Any, number: Any) -> tuple[Any, None]:
        own = rram.chip_key(key, number * every, every)
        crossbar, chip = points.chip(net, fault, own)
        deployed = crossbar.apply(params, chip)
        shape = (every, work.options.batch)
        index = jax.random.randint(own, shape, 0, len(train[1]))
        left = 0.5 * (1 + jnp.cos(jnp.pi * number / rounds))

        def step(carry: Any, index: Any) -> tuple[Any, None]:
            trainable, memory = carry
            grads = jax.grad(loss)(trainable, deployed, index)
            updates, memory = adam.update(grads, memory)
            moved = jax.tree.map(lambda w, u: w - rate * left * u, trainable, updates)
            return (moved, memory), None

        return jax.lax.scan(step, carry, index)

    first = (start.trainable, adam.init(start.trainable))
    (trained, _), _ = jax.lax.scan(round_, first, jnp.arange(rounds))

    def score(key: Any) -> jax.Array:
        crossbar, chip = points.chip(net, fault, jax.random.split(key, 3)[0])
        deployed = crossbar.apply(params, chip)
        adapted = tx.apply(deployed, start._replace(trainable=trained))
        return nets.accuracy(apply, adapted, *scored)

    return jax.lax.map(score, keys)


def _summary(own: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(own.mean()),
        "low": float(np.quantile(own, 0.05)),
        "worst": float(own.min()),
    }
