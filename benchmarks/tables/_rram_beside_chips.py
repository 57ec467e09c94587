"""Merges on and beside chips: what is compiled, one chip after another."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

import lowrank as lrk
from benchmarks.chips import nets, points
from benchmarks.chips.points import Fault
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_adapters import Adapter, Adapters, Head
from benchmarks.tables._rram_beside_plan import Base
from lowrank import rram

PLACES = {
    "single": "each adapter alone, no chip",
    "merged": "merged, no chip",
    "single-chip": "each adapter alone, in the weight on the chip",
    "on-chip": "merged, in the weight on the chip",
    "digital": "merged, digital beside the chip",
    "heads": "so, heads trained again for each chip",
    "healed": "so, one LoRA trained for each chip",
    "heads-clean": "heads trained again, chips without faults",
    "healed-clean": "one LoRA trained, chips without faults",
}
HEALING = ("heads", "healed")

Scores = dict[str, Any]  # by place, accuracies by task
Own = dict[str, Adapter]  # by task; often stacks, an entry for each merge
Heads = dict[str, Head]


class Chips:
    """Programs over stacks of merges; every array is an argument.

    Attributes:
        lost: `(params, total, keys, pair)`: what chips cost the base.
        weighed: `(params, own, weights, pairs)`: merges without a chip, by weight.
        ideal: `(params, own, weights, pairs)`: places without a chip.
        placed: `(params, own, weights, total, keys, pairs)`: places on chips.
        healed: `(params, own, weights, total, rates, keys, train, pairs)`: what heals.
    """

    def __init__(self, base: Base, adapters: Adapters) -> None:
        """Compiles nothing yet."""
        self.base, self.config, self.adapters = base, base.config, adapters
        self.only = lrk.matching(f"^{adapters.path}$")
        self.tx = lrk.lora(self.config.heal_rank, select=self.only)
        self.lost, self.weighed = jax.jit(self._broken), jax.jit(self._weighed)
        self.ideal, self.placed = jax.jit(self._ideal), jax.jit(self._placed)
        self.healed = jax.jit(self._healed)

    def _merge(self, base: Any, own: Own, weight: Any) -> Any:
        """The adapters of all tasks over a base, merged; the head is the base's."""
        trees = [self.adapters.tree(base, one, head=False) for one in own.values()]
        return lrk.merging.concat(trees, [weight] * len(trees))

    def _chip(self, total: Any, key: Any) -> tuple[lrk.Transform, lrk.State]:
        """A chip that holds the first layer."""
        lrs = points.SHARES["equal"] * total
        device = Fault(lrs, total - lrs).device()
        tx = rram.crossbar(device, select=self.only)
        return tx, tx.init(key, self.base.params)

    def _accuracies(self, tree: Any, heads: Heads, scored: Any) -> Scores:
        """Accuracies by task of one tree, each with its head."""
        return {
            task: self._right(self.adapters.headed(tree, heads[task]), pair)
            for task, pair in scored.items()
        }

    def _right(self, tree: Any, pair: Any) -> jax.Array:
        apply = lrk.lift(self.base.net.apply)
        return nets.accuracy(apply, tree, *pair, batch=plan.SCORED)

    def _broken(self, params: Any, total: Any, keys: Any, valid: Any) -> jax.Array:
        """What chips cost the base, on average."""

        def one(key: Any) -> jax.Array:
            tx, chip = self._chip(total, key)
            return self._right(tx.apply(params, chip), valid)

        return self._right(params, valid) - jnp.mean(jax.lax.map(one, keys))

    def _weighed(self, params: Any, own: Any, grid: Any, valid: Any) -> jax.Array:
        """The mean accuracy of merges without a chip, `[seeds, weights]`."""

        def one(own: Own, weight: Any) -> jax.Array:
            scores = self._accuracies(
                self._merge(params, own, weight), heads(own), valid
            )
            return jnp.mean(jnp.stack(list(scores.values())))

        each = jax.vmap(one, in_axes=(None, 0))
        return jax.lax.map(lambda own: each(own, grid), own)

    def _ideal(self, params: Any, own: Any, weights: Any, test: Any) -> Scores:
        """Places without a chip, `[1, seeds]`."""

        def one(own: Own, weight: Any) -> Scores:
            single = {
                task: self._right(self.adapters.tree(params, own[task]), pair)
                for task, pair in test.items()
            }
            merged = self._merge(params, own, weight)
            return {
                "single": single,
                "merged": self._accuracies(merged, heads(own), test),
            }

        return jax.tree.map(lambda v: v[None], jax.vmap(one)(own, weights))

    def _placed(
        self, params: Any, own: Any, weights: Any, total: Any, keys: Any, test: Any
    ) -> Scores:
        """Places on and beside chips, `[chips, seeds]`."""

        def chip(key: Any) -> Scores:
            tx, state = self._chip(total, jax.random.split(key, 3)[0])
            deployed = tx.apply(params, state)

            def beside(own: Own, weight: Any) -> Scores:
                merged = self._merge(deployed, own, weight)
                return self._accuracies(merged, heads(own), test)

            def inside(item: tuple[Own, Any]) -> Scores:
                own, weight = item
                whole = tx.apply(self._merge(params, own, weight), state)
                single = {
                    task: self._right(
                        tx.apply(self.adapters.tree(params, own[task]), state), pair
                    )
                    for task, pair in test.items()
                }
                merged = self._accuracies(whole, heads(own), test)
                return {"single-chip": single, "on-chip": merged}

            placed = jax.lax.map(inside, (own, weights))
            return {"digital": jax.vmap(beside)(own, weights), **placed}

        return jax.lax.map(chip, keys)

    def _healed(
        self,
        params: Any,
        own: Own,
        weights: Any,
        total: Any,
        rates: Any,
        keys: Any,
        train: Any,
        scored: Any,
    ) -> Scores:
        """Both ways to heal, `[chips, n]`, for every entry of stacks and rates.

        All entries see the same images of a chip, so their products with its base are
        one.
        """

        def chip(key: Any) -> Scores:
            of_chip, of_data, of_start = jax.random.split(key, 3)
            tx, state = self._chip(total, of_chip)
            deployed, begin = tx.apply(params, state), self.tx.init(of_start, params)
            chosen = self._images(of_data, train)

            def one(own: Own, weight: Any, rates: Any) -> Scores:
                merged = self._merge(deployed, own, weight)
                trained = self._trained(merged, own, rates, begin, train, chosen)
                state = begin._replace(trainable=trained["healed"])
                tree = self.tx.apply(merged, state)
                return {
                    "healed": self._accuracies(tree, heads(own), scored),
                    "heads": self._accuracies(merged, trained["heads"], scored),
                }

            return jax.vmap(one)(own, weights, rates)

        return jax.lax.map(chip, keys)

    def _images(self, key: Any, train: Any) -> dict[str, jax.Array]:
        """Which images of each task a step takes, `[steps, batch]`."""
        shape = (self.config.heal_steps, self.config.heal_batch)
        keys = jax.random.split(key, len(train))
        return {
            task: jax.random.randint(own, shape, 0, len(train[task][1]))
            for task, own in zip(train, keys, strict=True)
        }

    def _trained(
        self,
        merged: Any,
        own: Own,
        rates: Any,
        begin: lrk.State,
        train: Any,
        chosen: Any,
    ) -> dict[str, Any]:
        """One LoRA for all tasks, and all heads, beside each other; Adam."""
        adam, steps = optax.scale_by_adam(), self.config.heal_steps

        def loss(trained: dict[str, Any], batch: Any) -> jax.Array:
            state = begin._replace(trainable=trained["healed"])
            healed = self.tx.apply(merged, state)
            one = self._loss(healed, heads(own), batch)
            return one + self._loss(merged, trained["heads"], batch)

        def step(carry: Any, item: Any) -> tuple[Any, None]:
            (trained, memory), (number, index) = carry, item
            batch = {
                task: (x[index[task]], y[index[task]]) for task, (x, y) in train.items()
            }
            grads = jax.grad(loss)(trained, batch)
            updates, memory = adam.update(grads, memory)
            left = 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
            moved = _moved(trained, updates, {w: left * rates[w] for w in trained})
            return (moved, memory), None

        first = {"healed": begin.trainable, "heads": heads(own)}
        start = (first, adam.init(first))
        return jax.lax.scan(step, start, (jnp.arange(steps), chosen))[0][0]

    def _loss(self, tree: Any, heads: Heads, batch: Any) -> jax.Array:
        """The mean loss over tasks, each with its head."""
        apply = lrk.lift(self.base.net.apply)
        losses = [
            nets.loss(apply, self.adapters.headed(tree, heads[task]), *pair)
            for task, pair in batch.items()
        ]
        return jnp.mean(jnp.stack(losses))


def heads(own: Own) -> Heads:
    """The heads of the tasks."""
    return {task: one.head for task, one in own.items()}


def _moved(trained: Any, updates: Any, rates: Any) -> dict[str, Any]:
    """What both ways train, after a step of each at its own rate."""
    return {
        way: jax.tree.map(lambda w, u, r=rates[way]: w - r * u, own, updates[way])
        for way, own in trained.items()
    }
