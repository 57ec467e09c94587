"""Merged adapters under stuck cells: where they stand, and what heals them."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets, points
from benchmarks.chips.points import Fault
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_adapters import Adapter, Adapters
from benchmarks.tables._rram_beside_plan import Base, best, chip_keys

PLACES = {
    "single": "each adapter alone, no chip",
    "merged": "merged, no chip",
    "single-chip": "each adapter alone, in the weight on the chip",
    "on-chip": "merged, in the weight on the chip",
    "digital": "merged, digital beside the chip",
    "heads": "so, heads trained again for each chip",
    "healed": "so, one LoRA trained for each chip",
}
HEALING = ("heads", "healed")
SEARCH_CHIPS = 6

Scores = dict[str, Any]  # by place, accuracies by task


class Merged:
    """The rows of this part: all seeds of a method in one call."""

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config = base, base.config
        self.adapters = Adapters(base)
        only = lrk.matching(f"^{self.adapters.path}$")
        self.only, self.tx = only, lrk.lora(self.config.heal_rank, select=only)
        self._off, self._on = jax.jit(self._ideal), jax.jit(self._placed)
        self._heal, self._lost = jax.jit(self._healed), jax.jit(self._broken)
        self._tried = jax.jit(self._weighed)

    def given(self) -> dict[str, Any]:
        """What every row of this part says."""
        names = ("weights", "heal_rank", "heal_steps", "heal_batch", "fault_target")
        own = {name: getattr(self.config, name) for name in names}
        return {**self.adapters.given(), "totals": self.config.totals, **own}

    def fault(self) -> Fault:
        """As many cells stuck at low as at high resistance: what validation chose."""
        config, session = self.config, self.base.session
        given = {**self.given(), "kind": "fault"}
        record = session.row("fault", **given)
        if record is None:
            start, lost = time.perf_counter(), []
            keys = chip_keys("merged-search", SEARCH_CHIPS)
            valid, params = self.base.tasks["mnist"]["valid"], self.base.params
            for total in config.totals:
                own = self._lost(params, np.float32(total), keys, valid)
                lost.append(float(own))
                if lost[-1] > 2 * points.HIGHEST:
                    break
            tried = config.totals[: len(lost)]
            total, inside = points.nearest(tried, lost, config.fault_target)
            metrics = {"total": total, "lost": lost[tried.index(total)]}
            record = session.save(
                "fault",
                metrics | {"in_band": inside, **Fault.of("equal", total).given()},
                config=given,
                series={"total": tried, "lost": lost},
                seconds=time.perf_counter() - start,
                seed=0,
            )
        return Fault.of("equal", record.metrics["total"])

    def rows(self, method: str) -> None:
        """Runs what is missing of a method: its places, then what heals it."""
        config, session = self.config, self.base.session
        fault = self.fault()
        shared = {**self.given(), **fault.given(), "method": method}
        for kind in ("places", "healing"):
            given = {s: {**shared, "kind": kind, "seed": s} for s in config.seeds}
            names = {s: f"{kind}-{method}-s{s}" for s in config.seeds}
            known = [session.row(names[s], **given[s]) for s in config.seeds]
            if all(record is not None for record in known):
                continue
            start = time.perf_counter()
            weights = self._weights(method)
            own = self._stack(method, config.seeds)
            scores, told = (
                (self._places(own, weights, fault), {})
                if kind == "places"
                else self._healing(method, own, weights, fault, shared)
            )
            seconds = (time.perf_counter() - start) / len(config.seeds)
            for number, seed in enumerate(config.seeds):
                found = {
                    place: {task: v[:, number] for task, v in tasks.items()}
                    for place, tasks in scores.items()
                }
                means = {
                    place: {task: plan.summary(v) for task, v in tasks.items()}
                    for place, tasks in found.items()
                }
                session.save(
                    names[seed],
                    {"weight": float(weights[number]), "places": means, **told},
                    config=given[seed],
                    series={
                        f"{place}/{task}": values
                        for place, tasks in found.items()
                        for task, values in tasks.items()
                    },
                    seconds=seconds,
                    seed=seed,
                )
            total = seconds * len(config.seeds)
            session.log(f"rram_beside: {kind} of {method}, {total:.0f} s")

    def _stack(self, method: str, seeds: tuple[int, ...]) -> dict[str, Adapter]:
        """The adapters of some seeds side by side, by task."""
        own = [self.adapters.of(method, seed) for seed in seeds]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)

    def _weights(self, method: str, seeds: tuple[int, ...] = ()) -> np.ndarray:
        """The weight of the merge of every seed, chosen on validation off the chip."""
        own = self._stack(method, seeds or self.config.seeds)
        grid = np.asarray(self.config.weights, np.float32)
        valid = {task: splits["valid"] for task, splits in self.base.tasks.items()}
        scores = np.asarray(self._tried(self.base.params, own, grid, valid))
        return np.asarray(
            [best(self.config.weights, one) for one in scores], np.float32
        )

    def _places(
        self, own: dict[str, Adapter], weights: np.ndarray, fault: Fault
    ) -> Scores:
        """Accuracies `[chips or 1, seeds]` by place and task."""
        test = {task: splits["test"] for task, splits in self.base.tasks.items()}
        params, total = self.base.params, np.float32(fault.lrs + fault.hrs)
        off = self._off(params, own, weights, test)
        keys = chip_keys("merged-scored", self.config.chips)
        on = self._on(params, own, weights, total, keys, test)
        return jax.tree.map(np.asarray, {**off, **on})

    def _healing(
        self,
        method: str,
        own: dict[str, Adapter],
        weights: np.ndarray,
        fault: Fault,
        shared: dict[str, Any],
    ) -> tuple[Scores, dict[str, Any]]:
        """The same of the ways to heal, with the rates that validation chose."""
        del shared
        config, params = self.config, self.base.params
        grid, total = config.rates, np.float32(fault.lrs + fault.hrs)
        train = {task: splits["train"] for task, splits in self.base.tasks.items()}
        splits = {
            name: {task: own_[name] for task, own_ in self.base.tasks.items()}
            for name in ("valid", "test")
        }
        tuning = (plan.TUNING,)
        one = self._stack(method, tuning)
        tried = jax.tree.map(lambda v: jnp.repeat(v, len(grid), axis=0), one)
        weight = np.repeat(self._weights(method, tuning), len(grid))
        keys = chip_keys("merged-tuning", config.tuning_chips)
        rates = dict.fromkeys(HEALING, np.asarray(grid, np.float32))
        found = self._heal(
            params, tried, weight, total, rates, keys, train, splits["valid"]
        )
        trials = {
            way: np.mean([np.asarray(v).mean(axis=0) for v in tasks.values()], axis=0)
            for way, tasks in found.items()
        }
        chosen = {way: best(grid, scores) for way, scores in trials.items()}
        count = len(config.seeds)
        rates = {way: np.full(count, rate, np.float32) for way, rate in chosen.items()}
        keys = chip_keys("merged-scored", config.chips)
        found = self._heal(
            params, own, weights, total, rates, keys, train, splits["test"]
        )
        return jax.tree.map(np.asarray, found), {"rates": chosen, "trials": trials}

    # What is compiled: arrays are arguments, chips follow one another.

    def _merge(self, base: Any, own: dict[str, Adapter], weight: Any) -> Any:
        """The adapters of all tasks over a base, merged; the head is the base's."""
        trees = [self.adapters.tree(base, one, head=False) for one in own.values()]
        return lrk.merging.concat(trees, [weight] * len(trees))

    def _chip(self, total: Any, key: Any) -> tuple[lrk.Transform, lrk.State]:
        """A chip that holds the first layer."""
        lrs = points.SHARES["equal"] * total
        device = Fault(lrs, total - lrs).device()
        tx = lrk.rram.crossbar(device, select=self.only)
        return tx, tx.init(key, self.base.params)

    def _accuracies(self, tree: Any, own: dict[str, Adapter], scored: Any) -> Scores:
        """Accuracies by task of one tree, each with its head."""
        return {
            task: self._right(self.adapters.headed(tree, own[task]), pair)
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

        def one(own: dict[str, Adapter], weight: Any) -> jax.Array:
            scores = self._accuracies(self._merge(params, own, weight), own, valid)
            return jnp.mean(jnp.stack(list(scores.values())))

        each = jax.vmap(one, in_axes=(None, 0))
        return jax.lax.map(lambda own: each(own, grid), own)

    def _ideal(self, params: Any, own: Any, weights: Any, test: Any) -> Scores:
        """Places without a chip, `[1, seeds]`."""

        def one(own: dict[str, Adapter], weight: Any) -> Scores:
            single = {
                task: self._right(self.adapters.tree(params, own[task]), pair)
                for task, pair in test.items()
            }
            merged = self._merge(params, own, weight)
            return {"single": single, "merged": self._accuracies(merged, own, test)}

        return jax.tree.map(lambda v: v[None], jax.vmap(one)(own, weights))

    def _placed(
        self, params: Any, own: Any, weights: Any, total: Any, keys: Any, test: Any
    ) -> Scores:
        """Places on and beside chips, `[chips, seeds]`."""

        def chip(key: Any) -> Scores:
            tx, state = self._chip(total, jax.random.split(key, 3)[0])
            deployed = tx.apply(params, state)

            def beside(own: dict[str, Adapter], weight: Any) -> Scores:
                merged = self._merge(deployed, own, weight)
                return self._accuracies(merged, own, test)

            def inside(item: tuple[dict[str, Adapter], Any]) -> Scores:
                own, weight = item
                whole = tx.apply(self._merge(params, own, weight), state)
                single = {
                    task: self._right(
                        self.adapters.headed(
                            tx.apply(
                                self.adapters.tree(params, own[task], head=False), state
                            ),
                            own[task],
                        ),
                        pair,
                    )
                    for task, pair in test.items()
                }
                merged = self._accuracies(whole, own, test)
                return {"single-chip": single, "on-chip": merged}

            placed = jax.lax.map(inside, (own, weights))
            return {"digital": jax.vmap(beside)(own, weights), **placed}

        return jax.lax.map(chip, keys)

    def _healed(
        self,
        params: Any,
        own: Any,
        weights: Any,
        total: Any,
        rates: Any,
        keys: Any,
        train: Any,
        scored: Any,
    ) -> Scores:
        """Both ways to heal, `[chips, n]`: for every entry of stacks and rates."""
        config, adam = self.config, optax.scale_by_adam()
        apply, steps = lrk.lift(self.base.net.apply), config.heal_steps

        def loss(trained: Any, merged: Any, own: Any, fixed: Any, batch: Any) -> Any:
            state = lrk.State(trained["healed"], fixed)
            healed = self.tx.apply(merged, state)
            total = jnp.zeros(())
            for task, pair in batch.items():
                kernel, bias = trained["heads"][task]
                again = own[task]._replace(kernel=kernel, bias=bias)
                for tree, head in ((healed, own[task]), (merged, again)):
                    headed = self.adapters.headed(tree, head)
                    total = total + nets.loss(apply, headed, *pair) / len(batch)
            return total

        def chip(key: Any) -> Scores:
            of_chip, of_data, of_start = jax.random.split(key, 3)
            tx, state = self._chip(total, of_chip)
            deployed = tx.apply(params, state)
            begin = self.tx.init(of_start, params)
            chosen = {
                task: jax.random.randint(
                    jax.random.fold_in(of_data, number),
                    (steps, config.heal_batch), 0, len(train[task][1]),
                )
                for number, task in enumerate(train)
            }  # fmt: skip

            def one(own: dict[str, Adapter], weight: Any, rates: Any) -> Scores:
                merged = self._merge(deployed, own, weight)
                heads = {task: (a.kernel, a.bias) for task, a in own.items()}
                first = {"healed": begin.trainable, "heads": heads}

                def step(carry: Any, item: Any) -> tuple[Any, None]:
                    (trained, memory), (number, index) = carry, item
                    batch = {
                        task: (x[index[task]], y[index[task]])
                        for task, (x, y) in train.items()
                    }
                    grads = jax.grad(loss)(trained, merged, own, begin.fixed, batch)
                    updates, memory = adam.update(grads, memory)
                    left = 0.5 * (1 + jnp.cos(jnp.pi * number / steps))
                    moved = {
                        way: jax.tree.map(
                            lambda w, u, r=left * rates[way]: w - r * u,
                            trained[way], updates[way],
                        )
                        for way in trained
                    }  # fmt: skip
                    return (moved, memory), None

                start = (first, adam.init(first))
                (trained, _), _ = jax.lax.scan(step, start, (jnp.arange(steps), chosen))
                healed = self.tx.apply(
                    merged, lrk.State(trained["healed"], begin.fixed)
                )
                again = {
                    task: own[task]._replace(kernel=kernel, bias=bias)
                    for task, (kernel, bias) in trained["heads"].items()
                }
                return {
                    "healed": self._accuracies(healed, own, scored),
                    "heads": self._accuracies(merged, again, scored),
                }

            return jax.vmap(one)(own, weights, rates)

        return jax.lax.map(chip, keys)
