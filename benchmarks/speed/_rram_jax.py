"""The contenders in JAX: a training step, and many chips, with lowrank and by hand."""

import dataclasses
import math
from collections.abc import Callable, Collection
from typing import Any

import jax
import jax.numpy as jnp
import optax

import lowrank as lrk
from benchmarks.speed import _rram_hand as hand
from benchmarks.speed._rram_nets import NOISE, Noise, Problem, accuracy_of, loss_of
from lowrank import rram

RATE = 1e-3  # of Adam

STEPS = {
    "clean": "no chip",
    "by hand, chip": "a sampled chip",
    "by hand, read": "a sampled chip, fresh read noise",
    "by hand, converters": "a sampled chip, fresh read noise, DAC and ADC",
    "lowrank, chip": "a sampled chip",
    "lowrank, read": "a sampled chip, fresh read noise",
    "lowrank, converters": "a sampled chip, fresh read noise, DAC and ADC",
    "lowrank, noise": "ideal cells, fresh noise",
    "lowrank, noise and converters": "ideal cells, fresh noise, DAC and ADC",
    "lowrank, redrawn": "a fresh chip in every step",
    "lowrank, cells": "ideal but for noise of each weight's cell, drawn in every step",
}
"""Every contender of a training step in JAX, and what is between it and its weights."""


def devices(noise: Noise = NOISE) -> dict[str, rram.Device]:
    """The devices by name, all of the same noise set.

    `chip`, `read` and `converters` are a chip with levels, write noise and faults, each
    with one effect more than the one before. `noise` and `noise and converters` are
    what the peers offer: ideal cells, additive noise that is drawn anew. `cells` draws
    it when a chip is sampled, once for each weight as the peers do: for one cell, next
    to a calibrated reference.
    """
    # Of one cell as a share of g_max, so that a pair gives `noise.weight` of a weight.
    cell = noise.weight * (hand.G_MAX - hand.G_MIN) / (math.sqrt(2.0) * hand.G_MAX)
    dac = rram.Converter(noise.bits, limit=noise.input_limit)
    adc = rram.Converter(noise.bits, limit=noise.output_limit)
    noisy = dataclasses.replace(adc, noise=noise.output_noise / noise.output_limit)
    chip = rram.Device(
        g_min=hand.G_MIN,
        g_max=hand.G_MAX,
        levels=noise.levels,
        p_lrs=noise.p_lrs,
        p_hrs=noise.p_hrs,
        write=rram.Lognormal(noise.write),
    )
    ideal = rram.Device(g_min=hand.G_MIN, g_max=hand.G_MAX)
    # One cell moves over half of a weight's range, so it needs half of its noise.
    single = ideal.replace(
        scheme=rram.Offset(), write=rram.Additive(cell / math.sqrt(2.0))
    )
    return {
        "chip": chip,
        "read": chip.replace(read=cell),
        "converters": chip.replace(read=cell, dac=dac, adc=adc),
        "noise": ideal.replace(read=cell),
        "noise and converters": ideal.replace(read=cell, dac=dac, adc=noisy),
        "cells": single,
        "cells and converters": single.replace(dac=dac, adc=noisy),
    }


def crossbar(problem: Problem, device: rram.Device) -> lrk.Transform:
    """The chip of a network: every weight sits on it, no bias does."""
    return rram.crossbar(
        device,
        tile=problem.tile,
        select=lrk.matching("/w$"),
        axes=problem.axes,
    )


class Step:
    """One training step with Adam, called again and again on its own result.

    Attributes:
        state: Parameters, Adam's moments, and the number of steps taken.
    """

    def __init__(
        self, logits: Callable[..., jax.Array], problem: Problem, chip: Any, seed: int
    ) -> None:
        """Compiles `logits(params, chip, key, x)` into a step."""
        optimizer = optax.adam(RATE)
        key = jax.random.key(seed)

        def step(state: Any, chip: Any, x: jax.Array, y: jax.Array) -> Any:
            params, moments, count = state
            own = jax.random.fold_in(key, count)

            def loss(params: Any) -> jax.Array:
                return loss_of(logits(params, chip, own, x), y)

            value, grads = jax.value_and_grad(loss)(params)
            updates, moments = optimizer.update(grads, moments)
            return (optax.apply_updates(params, updates), moments, count + 1), value

        params = jax.tree.map(jnp.array, problem.params)
        self.state = (params, optimizer.init(params), jnp.zeros((), jnp.int32))
        self._args = (chip, jnp.asarray(problem.x), jnp.asarray(problem.y))
        self._logits = jax.jit(logits)
        self.program = (
            jax.jit(step, donate_argnums=0).lower(self.state, *self._args).compile()
        )

    def __call__(self) -> jax.Array:
        """Takes a step and returns the loss before it."""
        self.state, value = self.program(self.state, *self._args)
        return value

    def logits(self, draw: int = 0) -> jax.Array:
        """The logits of the batch with the parameters as they are."""
        chip, x, _ = self._args
        return self._logits(self.state[0], chip, jax.random.key(draw), x)

    def spread(self, clean: jax.Array, draws: int) -> float:
        """Root mean square of what chip and noise do to the logits."""
        found = [self.logits(i) - clean for i in range(draws)]
        return float(jnp.sqrt(jnp.mean(jnp.square(jnp.stack(found)))))


def steps(
    problem: Problem, seed: int, names: Collection[str] | None = None
) -> dict[str, Step]:
    """The training steps of `STEPS`, all or some; those of one chip share the chip."""
    kinds = devices()
    key = jax.random.key(seed)
    params = jax.tree.map(jnp.asarray, problem.params)
    wanted = [name for name in STEPS if names is None or name in names]
    cells: Any = None
    if any(name.startswith("by hand") for name in wanted):
        sampled = jax.jit(crossbar(problem, kinds["chip"]).init)(key, params)
        cells = hand.from_lowrank(problem, sampled.fixed)

    def clean(params: Any, chip: Any, key: Any, x: Any) -> jax.Array:
        del chip, key
        return problem.apply(params, x)

    made: dict[str, Step] = {}
    for name in wanted:
        who, _, what = name.partition(", ")
        chip, logits = None, clean
        if who == "by hand":
            chip, logits = cells, _by_hand(problem, what)
        elif what in ("redrawn", "cells"):
            device = kinds["chip" if what == "redrawn" else what]
            logits = _redrawn(problem, crossbar(problem, device))
        elif what:
            tx = crossbar(problem, kinds[what])
            chip, logits = jax.jit(tx.init)(key, params), _with(problem, tx)
        made[name] = Step(logits, problem, chip, seed)
    return made


def _by_hand(problem: Problem, kind: str) -> Callable[..., jax.Array]:
    def logits(params: Any, chip: Any, key: Any, x: Any) -> jax.Array:
        products = hand.Chip(
            params,
            chip,
            problem.tile,
            NOISE,
            None if kind == "chip" else key,
            kind == "converters",
        )
        return problem.forward(products, params, x)

    return logits


def _with(problem: Problem, tx: lrk.Transform) -> Callable[..., jax.Array]:
    """The network through lowrank's chip."""
    network = lrk.lift(problem.apply)

    def logits(params: Any, chip: Any, key: Any, x: Any) -> jax.Array:
        return network(tx.apply(params, chip, key=key), x)

    return logits


def _redrawn(problem: Problem, tx: lrk.Transform) -> Callable[..., jax.Array]:
    """The network through a chip that is sampled for this one step."""
    through = _with(problem, tx)

    def logits(params: Any, chip: Any, key: Any, x: Any) -> jax.Array:
        del chip
        return through(params, tx.init(key, params), key, x)

    return logits


# Many chips.


CHIPS = (
    "lowrank, map",
    "lowrank, vmap",
    "lowrank, one call per chip",
    "by hand, map",
    "lowrank, cells",
    "lowrank, cells and converters",
)
"""Every contender in JAX of the evaluation of many chips."""


def chips(
    problem: Problem,
    count: int,
    batch: int,
    seed: int,
    names: Collection[str] | None = None,
) -> dict[str, Callable[[], Any]]:
    """Callables that give the accuracies of sampled chips, by name.

    Args:
        problem: The network and its rows.
        count: Chips of one call.
        batch: Chips of one call of those that hold all of them at once.
        seed: Of the chips.
        names: Some of `CHIPS`; None: all.

    Returns:
        Functions of no arguments.
    """
    kinds = devices()
    keys = jax.random.split(jax.random.key(seed), count)
    params = jax.tree.map(jnp.asarray, problem.params)
    args = (params, jnp.asarray(problem.rows), jnp.asarray(problem.labels))
    made: dict[str, Callable[[], Any]] = {}
    for name in CHIPS:
        if names is not None and name not in names:
            continue
        what = name.partition(", ")[2]
        one = evaluation(problem, kinds.get(what, kinds["chip"]))
        if name == "by hand, map":
            one = _by_hand_evaluation(problem)
        if what == "one call per chip":
            made[name] = _each(jax.jit(one), keys, args)
        else:
            batched = what == "vmap"
            f = jax.jit(_many(one, "vmap" if batched else "map"))
            made[name] = _bound(f, (keys[:batch] if batched else keys, *args))
    return made


def _bound(f: Any, args: tuple[Any, ...]) -> Callable[[], Any]:
    """A compiled call of all chips."""
    compiled = f.lower(*args).compile()
    return lambda: compiled(*args)


def _each(f: Any, keys: jax.Array, args: tuple[Any, ...]) -> Callable[[], Any]:
    """A compiled call for each chip."""
    return lambda: [f(key, *args) for key in keys]


def _many(one: Callable[..., Any], method: str) -> Callable[..., Any]:
    return lrk.map_tasks(one, method=method, in_axes=(0, None, None, None))


def evaluation(problem: Problem, device: rram.Device) -> Callable[..., jax.Array]:
    """`(key, params, x, y) -> accuracy` of the chip that the key samples."""
    tx = crossbar(problem, device)
    network = lrk.lift(problem.apply)

    def one(key: Any, params: Any, x: Any, y: Any) -> jax.Array:
        sampled, noise = jax.random.split(key)
        chip = tx.init(sampled, params)
        return accuracy_of(network(tx.apply(params, chip, key=noise), x), y)

    return one


def _by_hand_evaluation(problem: Problem) -> Callable[..., jax.Array]:
    def one(key: Any, params: Any, x: Any, y: Any) -> jax.Array:
        cells = hand.cells_of(params, key, hand.Numbers())
        products = hand.Chip(params, cells, problem.tile, NOISE, None, False)
        return accuracy_of(problem.forward(products, params, x), y)

    return one


def traces(problem: Problem, values: int, seed: int) -> int:
    """How often sweeps of a stuck rate and of a spread trace what they evaluate."""
    device, count = devices()["chip"], 0

    @jax.jit
    def run(device: rram.Device, *args: Any) -> jax.Array:
        nonlocal count
        count += 1
        return evaluation(problem, device)(*args)

    args = (jax.random.key(seed), problem.params, problem.rows, problem.labels)
    for i in range(values):
        share = i / values
        run(device.replace(p_lrs=0.1 * share), *args)
        run(device.replace(write=rram.Lognormal(share)), *args)
    return count
