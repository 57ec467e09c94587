"""A noisy base with digital LoRAs beside it: what is compiled."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets
from benchmarks.chips.methods import leaf_at
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_plan import Base, chip_keys
from lowrank import rram

TILE = 64
G_MIN, G_MAX = 90.0, 100.0
"""Far from zero, so that no conductance is cut there and the noise stays Gaussian; only
the spread relative to the range between them counts."""
TASK = "fashion"


def noisy(params: Any, axes: Any, sigma: Any, key: jax.Array) -> Any:
    """Weights on crossbars of 64 x 64 tiles, under zero-mean Gaussian noise.

    A kernel `[n, m]` is cut into blocks of 64 columns, which are put on crossbars of 64
    rows with one scale each, one cell a weight; so each tile's weights deviate by
    `sigma` times the largest of them.

    Args:
        params: The weights that were wanted.
        axes: By the path of every kernel that sits on crossbars.
        sigma: Standard deviation relative to a tile's largest weight; may be traced.
        key: Of the chip.
    """
    spread = sigma * (G_MAX - G_MIN) / (rram.Offset.gain * G_MAX)
    device = rram.Device(
        g_min=G_MIN, g_max=G_MAX, write=rram.Additive(spread), scheme=rram.Offset()
    )
    for path in axes:
        w = leaf_at(params, path)
        tx = rram.crossbar(
            device,
            tile=min(TILE, len(w)),
            columns=False,
            select=lambda _path, _leaf: True,
            axes={path: lrk.Axes((0,), (1,), (2,))},
        )
        cut = {path: _blocks(w)}
        back = tx.apply(cut, tx.init(key, cut))[path]
        whole = back.transpose(1, 0, 2).reshape(len(w), -1)[:, : w.shape[1]]
        params = plan.replaced(params, path, whole)
    return params


def _blocks(w: jax.Array) -> jax.Array:
    """`[blocks, rows, 64]`; the last one is filled with zeros."""
    size = min(TILE, w.shape[1])
    padded = jnp.pad(w, ((0, 0), (0, -w.shape[1] % size)))
    return padded.reshape(len(w), -1, size).transpose(1, 0, 2)


class Loras:
    """Trains and scores LoRAs with digital biases, many beside one base."""

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config = base, base.config
        self.tx = lrk.chain(
            methods.low_rank(lrk.lora, self.config.rank, base.net),
            lrk.full(select=lrk.matching("bias$")),
        )
        self._train, self._score = jax.jit(self._trained), jax.jit(self._scored)
        self.splits = base.tasks[TASK]

    def train(self, sigma: float, factors: Any, rates: Any, seed: int) -> Any:
        """LoRAs on one stream of chips and batches, one for each factor and rate."""
        return self._train(
            self.base.params,
            self.splits["train"],
            np.float32(sigma),
            np.asarray(factors, np.float32),
            np.asarray(rates, np.float32),
            jax.random.key(seed),
        )

    def score(self, trained: Any, sigma: float, split: str, chips: int) -> np.ndarray:
        """Accuracies of some LoRAs, `[chips, n]`."""
        kind = "scored" if split == "test" else "tuning"
        keys = chip_keys(f"halora-{kind}", chips)
        own = self._score(
            self.base.params, trained, np.float32(sigma), keys, self.splits[split]
        )
        return np.asarray(own)

    def _trained(
        self, params: Any, data: Any, sigma: Any, factors: Any, rates: Any, key: Any
    ) -> Any:
        """Adam with a falling rate; the product with the base is one for all."""
        net, config = self.base.net, self.config
        apply, adam = lrk.lift(net.apply), optax.scale_by_adam()
        of_start, of_chips, of_data = jax.random.split(key, 3)
        start = self.tx.init(of_start, params)
        every = config.resample
        rounds = max(1, config.steps // every)
        x, y = data

        def loss(trainable: Any, factor: Any, deployed: Any, batch: Any) -> jax.Array:
            adapted = self.tx.apply(deployed, start._replace(trainable=trainable))
            penalty = rram.adapter_norm_penalty(trainable, axes=net.axes)
            return nets.loss(apply, adapted, *batch) + factor * penalty

        def one(carry: Any, factor: Any, rate: Any, deployed: Any, batch: Any) -> Any:
            trainable, memory = carry
            grads = jax.grad(loss)(trainable, factor, deployed, batch)
            updates, memory = adam.update(grads, memory)
            moved = jax.tree.map(lambda w, u: w - rate * u, trainable, updates)
            return moved, memory

        every_one = jax.vmap(one, in_axes=(0, 0, 0, None, None))

        def round_(carry: Any, number: Any) -> tuple[Any, None]:
            own = rram.chip_key(of_chips, number * every, every)
            deployed = noisy(params, net.axes, sigma, own)
            left = 0.5 * (1 + jnp.cos(jnp.pi * number / rounds))
            drawn = jax.random.fold_in(of_data, number)
            index = jax.random.randint(drawn, (every, config.batch), 0, len(y))

            def step(carry: Any, index: Any) -> tuple[Any, None]:
                batch = (x[index], y[index])
                return every_one(carry, factors, left * rates, deployed, batch), None

            return jax.lax.scan(step, carry, index)

        first = (start.trainable, adam.init(start.trainable))
        count = len(factors)
        first = jax.tree.map(lambda v: jnp.broadcast_to(v, (count, *v.shape)), first)
        return jax.lax.scan(round_, first, jnp.arange(rounds))[0][0]

    def _scored(
        self, params: Any, trained: Any, sigma: Any, keys: Any, scored: Any
    ) -> jax.Array:
        """One chip after another, all LoRAs beside it."""
        net = self.base.net
        apply = lrk.lift(net.apply)
        fixed = self.tx.init(jax.random.key(0), params).fixed

        def one(trainable: Any, deployed: Any) -> jax.Array:
            adapted = self.tx.apply(deployed, lrk.State(trainable, fixed))
            return nets.accuracy(apply, adapted, *scored, batch=plan.SCORED)

        def chip(key: Any) -> jax.Array:
            deployed = noisy(params, net.axes, sigma, key)
            return jax.vmap(one, in_axes=(0, None))(trained, deployed)

        return jax.lax.map(chip, keys)
