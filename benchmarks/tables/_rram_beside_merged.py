"""Merged adapters under stuck cells: where they stand, and what heals them."""

import functools
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.chips import points
from benchmarks.chips.points import Fault
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_adapters import Adapters
from benchmarks.tables._rram_beside_chips import HEALING, Chips, Own, Scores
from benchmarks.tables._rram_beside_plan import Base, best, chip_keys

SEARCH_CHIPS = 6


class Merged:
    """The rows of this part: all seeds of a method in one call."""

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config = base, base.config
        self.adapters = Adapters(base)
        self.chips = Chips(base, self.adapters)

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
                own = self.chips.lost(params, np.float32(total), keys, valid)
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
            missing = tuple(
                s for s in config.seeds if session.row(names[s], **given[s]) is None
            )
            if not missing:
                continue
            start = time.perf_counter()
            own, weights = self._stack(method, missing), self._weights(method, missing)
            healing = functools.partial(self._healing, method)
            run = self._places if kind == "places" else healing
            scores, told = run(own, weights, fault)
            seconds = time.perf_counter() - start
            for number, seed in enumerate(missing):
                metrics, series = _metrics(scores, number)
                session.save(
                    names[seed],
                    {"weight": float(weights[number]), **metrics, **told},
                    config=given[seed],
                    series=series,
                    seconds=seconds / len(missing),
                    seed=seed,
                )
            session.log(f"rram_beside: {kind} of {method}, {seconds:.0f} s")

    def _stack(self, method: str, seeds: tuple[int, ...]) -> Own:
        """The adapters of some seeds side by side, by task."""
        own = [self.adapters.of(method, seed) for seed in seeds]
        return jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)

    def _weights(self, method: str, seeds: tuple[int, ...]) -> np.ndarray:
        """The weight of the merge of every seed, chosen on validation off the chip."""
        own = self._stack(method, seeds)
        grid = np.asarray(self.config.weights, np.float32)
        valid = {task: splits["valid"] for task, splits in self.base.tasks.items()}
        scores = np.asarray(self.chips.weighed(self.base.params, own, grid, valid))
        return np.asarray(
            [best(self.config.weights, one) for one in scores], np.float32
        )

    def _places(
        self, own: Own, weights: np.ndarray, fault: Fault
    ) -> tuple[Scores, dict[str, Any]]:
        """Accuracies `[chips or 1, seeds]` by place and task."""
        test = {task: splits["test"] for task, splits in self.base.tasks.items()}
        params, total = self.base.params, np.float32(fault.lrs + fault.hrs)
        off = self.chips.ideal(params, own, weights, test)
        keys = chip_keys("merged-scored", self.config.chips)
        on = self.chips.placed(params, own, weights, total, keys, test)
        return jax.tree.map(np.asarray, {**off, **on}), {}

    def _healing(
        self,
        method: str,
        own: Own,
        weights: np.ndarray,
        fault: Fault,
    ) -> tuple[Scores, dict[str, Any]]:
        """The same of the ways to heal, with the rates that validation chose.

        They also run on chips without faults: what they gain there is no healing.
        """
        config, params = self.config, self.base.params
        grid, total = config.rates, np.float32(fault.lrs + fault.hrs)
        train = {task: splits["train"] for task, splits in self.base.tasks.items()}
        valid, test = (
            {task: splits[name] for task, splits in self.base.tasks.items()}
            for name in ("valid", "test")
        )
        tuning = (plan.TUNING,)
        one = self._stack(method, tuning)
        tried = jax.tree.map(lambda v: jnp.repeat(v, len(grid), axis=0), one)
        weight = np.repeat(self._weights(method, tuning), len(grid))
        keys = chip_keys("merged-tuning", config.tuning_chips)
        rates = dict.fromkeys(HEALING, np.asarray(grid, np.float32))
        found = self.chips.healed(
            params, tried, weight, total, rates, keys, train, valid
        )
        trials = {
            way: np.mean([np.asarray(v).mean(axis=0) for v in tasks.values()], axis=0)
            for way, tasks in found.items()
        }
        chosen = {way: best(grid, scores) for way, scores in trials.items()}
        count = len(weights)
        rates = {way: np.full(count, rate, np.float32) for way, rate in chosen.items()}
        keys = chip_keys("merged-scored", config.chips)
        found, clean = (
            self.chips.healed(params, own, weights, stuck, rates, keys, train, test)
            for stuck in (total, np.float32(0))
        )
        found |= {f"{way}-clean": scores for way, scores in clean.items()}
        return jax.tree.map(np.asarray, found), {"rates": chosen, "trials": trials}


def _metrics(scores: Scores, number: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a record says of one seed: summaries and accuracies over chips."""
    series = {
        f"{place}/{task}": values[:, number]
        for place, tasks in scores.items()
        for task, values in tasks.items()
    }
    return {"places": {n: plan.summary(own) for n, own in series.items()}}, series
