"""Beside the headline: training on resampled chips, and merged adapters on chips."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets, points
from benchmarks.chips.nets import Net, Pair
from benchmarks.chips.points import Fault
from benchmarks.tables._rram_healing_work import Work
from lowrank import rram

RANK = 8  # of the adapter that is trained on resampled chips
MERGED_RANK = 16
TASKS = {"fashion": "Fashion-MNIST", "shifted": "MNIST, labels turned by one"}
PLACES = {
    "single": "each adapter alone, no chip",
    "merged": "merged, no chip",
    "digital": "merged, digital beside the chip's base",
    "on-chip": "merged into the weight, on the chip",
}
RATE = 5e-3  # of the adapters that are merged


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


def merged_rows(work: Work, point: str) -> None:
    """Two adapters over one base, merged: beside the chip, and on it."""
    fault, config = work.fault(point), work.config
    chips = min(config.few_chips, work.chips)
    given = {
        **work.shared(),
        **fault.given(),
        "kind": "merged",
        "point": point,
        "rank": MERGED_RANK,
        "steps": 4 * work.options.steps,
        "batch": config.batch,
        "rate": RATE,
        "chips": chips,
    }
    rows = {
        f"merged-{work.name}-{point}-{place}-{task}": (place, task)
        for place in PLACES
        for task in TASKS
    }
    known = [
        work.session.row(row, **given, place=place, task=task)
        for row, (place, task) in rows.items()
    ]
    if all(record is not None for record in known):
        return
    start = time.perf_counter()
    found = _merged(work, fault, chips)
    seconds = (time.perf_counter() - start) / len(rows)
    for row, (place, task) in rows.items():
        own = np.atleast_1d(found[place][task])
        work.session.save(
            row,
            _summary(own),
            config={**given, "place": place, "task": task},
            series={"accuracy": own},
            seconds=seconds,
            seed=0,
        )


def _merged(work: Work, fault: Fault, chips: int) -> dict[str, dict[str, Any]]:
    """Accuracies by place and task; on chips an entry for each."""
    net, params = work.healer.net, jax.tree.map(jnp.asarray, work.healer.net.params)
    tasks = _tasks(work, net)
    tx = methods.low_rank(lrk.lori, MERGED_RANK, net)
    apply = lrk.lift(net.apply)
    states = []
    for i, (train, _) in enumerate(tasks.values()):
        state = tx.init(jax.random.key(i), params)
        train_one = jax.jit(functools.partial(_adapter, work, tx, apply))
        states.append(
            state._replace(trainable=train_one(params, state, train, jax.random.key(i)))
        )

    def both(base: Any) -> Any:
        return lrk.merging.concat([tx.apply(base, state) for state in states])

    def scores(tree: Any) -> dict[str, Any]:
        return {n: nets.accuracy(apply, tree, *test) for n, (_, test) in tasks.items()}

    def on_chips(key: Any) -> dict[str, Any]:
        crossbar, chip = points.chip(net, fault, jax.random.split(key, 3)[0])
        return {
            "digital": scores(both(crossbar.apply(params, chip))),
            "on-chip": scores(crossbar.apply(both(params), chip)),
        }

    single = {
        name: nets.accuracy(apply, tx.apply(params, state), *test)
        for (name, (_, test)), state in zip(tasks.items(), states, strict=True)
    }
    keys = work.healer.keys("scored", chips)[:chips]
    placed = jax.jit(lambda keys: jax.lax.map(on_chips, keys))(keys)
    found = {"single": single, "merged": jax.jit(lambda p: scores(both(p)))(params)}
    return jax.tree.map(np.asarray, {**found, **placed})


def _adapter(
    work: Work,
    tx: lrk.Transform,
    apply: Callable[..., jax.Array],
    params: Any,
    state: lrk.State,
    train: Pair,
    key: Any,
) -> Any:
    """A LoRI-D for one task, trained on the ideal base."""
    adam, steps = optax.scale_by_adam(), 4 * work.options.steps
    x, y = (jnp.asarray(part) for part in train)
    chosen = jax.random.randint(key, (steps, work.options.batch), 0, len(y))

    def loss(trainable: Any, index: Any) -> jax.Array:
        adapted = tx.apply(params, state._replace(trainable=trainable))
        return nets.loss(apply, adapted, x[index], y[index])

    def step(carry: Any, item: Any) -> tuple[Any, None]:
        (trainable, memory), (number, index) = carry, item
        updates, memory = adam.update(jax.grad(loss)(trainable, index), memory)
        left = RATE * 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
        return (
            jax.tree.map(lambda w, u: w - left * u, trainable, updates),
            memory,
        ), None

    first = (state.trainable, adam.init(state.trainable))
    return jax.lax.scan(step, first, (jnp.arange(steps), chosen))[0][0]


def _tasks(work: Work, net: Net) -> dict[str, tuple[Pair, Pair]]:
    """Training and test images of two tasks that share ten outputs."""
    data = nets.DATASETS["fashion"](synthetic=work.config.synthetic)
    fashion = tuple(
        (nets.images(work.name, part.x), np.asarray(part.y, np.int32))
        for part in (data.train, data.test)
    )
    turned = tuple((x, (y + 1) % 10) for x, y in (net.train, net.test))
    return {"fashion": (fashion[0], fashion[1]), "shifted": (turned[0], turned[1])}


def _summary(own: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(own.mean()),
        "low": float(np.quantile(own, 0.05)),
        "worst": float(own.min()),
    }
