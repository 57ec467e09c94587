"""Chips under a fine-tuned encoder, healed by one way at one rate, and scored."""

import functools
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks import stats
from benchmarks.study.encoder import kernels
from benchmarks.study.train import Job, batches, nll
from benchmarks.tables import _rram_healing_text_ways as ways
from benchmarks.tables._rram_healing_text_chips import (
    NO_NOISE,
    TUNING,
    Chips,
    Head,
    Held,
    programmed,
)
from benchmarks.tables._rram_healing_text_ways import WAYS, Way
from lowrank import rram


class Net(Chips):
    """The ways to heal the chips of one task's net."""

    def heal(
        self, name: str, held: Held, rate: float, split: str = "test"
    ) -> tuple[float, float, float]:
        """Heals a chip by one way, and scores it.

        Args:
            name: The way.
            held: The chip.
            rate: Peak learning rate, where it has one.
            split: Texts to score on.

        Returns:
            Accuracy and loss on these texts, and the seconds that healing took.
        """
        begin = time.perf_counter()
        adapted, head = self.healed(name, held, rate)
        jax.block_until_ready(adapted)
        seconds = time.perf_counter() - begin
        logits, labels = self.logits(adapted, head, split), self.labels(split)
        right = stats.accuracy(logits.argmax(axis=1), labels)
        return right, nll(logits, labels), seconds

    def healed(self, name: str, held: Held, rate: float) -> tuple[Any, Head]:
        """The tree over the chip, corrected by one way, and its head."""
        way, analog = WAYS[name], held.analog
        if way.kind == "none":
            return analog, self.start[1]
        if way.kind == "head":
            return analog, held.head
        if way.kind == "svd":
            grams = self.grams if way.weighted else None
            return self._svd(way)(self.start[0], analog, grams), self.start[1]
        if way.kind == "patch":
            return self._patch(self.start[0], analog), self.start[1]
        if way.kind == "retrain":
            return self._retrained(way, held, rate)
        state, head = self._trained(name, held, rate)
        return self._transform(way)[0].apply(analog, state), head

    def _retrained(self, way: Way, held: Held, rate: float) -> tuple[Any, Head]:
        """The matrices trained through the chip's map and written to it again."""
        tx, deploy = self._through
        for_chip, _ = jax.random.split(self._key(held.number))
        chip = self._sampled(jnp.float32(held.stuck), for_chip)
        base = self.start[0]
        if way.mapped:
            base = deploy(base, chip)
        state = tx.init(for_chip, base)._replace(fixed=chip)
        keep = jax.tree.map(jnp.ones_like, state.trainable)
        job = self._job(state, keep, held, rate)
        self.trainer.cut = self.cut._replace(params=base)
        found = self.trainer.train(way.kind, tx, job)
        wanted = _shifted(base, found.trainable)
        analog, _ = self._hold(jnp.float32(held.stuck), wanted, self._key(held.number))
        return analog, (found.heads[0][0], found.heads[1][0])

    @functools.cached_property
    def _sampled(self) -> Any:
        """The jitted call that samples a chip alone, the one that `hold` programs."""

        def run(rate: Any, key: Any) -> Any:
            return self._cells(rate).init(key, self.start[0]).fixed

        return jax.jit(run)

    @functools.cached_property
    def _through(self) -> tuple[lrk.Transform, Any]:
        """Full weights seen through a chip's map; and programming by the map."""
        cells = self._cells(0.0)  # rates act in `init` alone
        whole = lrk.full(select=self._on_chip)

        def seen(params: Any, chip: Any) -> Any:
            return programmed(cells.apply(params, lrk.State({}, chip), key=NO_NOISE))

        def apply(params: Any, state: lrk.State, *, key: Any = None) -> Any:
            del key
            return seen(_shifted(params, state.trainable), state.fixed)

        def deploy(params: Any, chip: Any) -> Any:
            return rram.compensated(
                params, lambda own: seen(own, chip), select=self._on_chip
            )

        return lrk.Transform(whole.init, apply), jax.jit(deploy)

    @functools.cached_property
    def grams(self) -> dict[str, Any]:
        """Gram matrices of what the weights of the whole net meet, by path."""
        own = self.singles.suite.splits["train"]
        used = slice(len(self.labels("train")))
        hidden, mask = own.hidden[self.number][used], own.mask[self.number][used]

        def run(params: Any, hidden: Any, mask: Any) -> Any:
            return lrk.merging.gram(
                self.cut.pool, params, hidden, mask, select=kernels(self.cut)
            )

        return jax.jit(run)(self.start[0], hidden, mask)

    def _svd(self, way: Way) -> Any:
        """The jitted correction of a rank."""
        own = ways.rank_of(way, self.config.rank)
        if own not in self._svds:
            run = functools.partial(rram.svd_correction, rank=own, select=self._on_chip)
            self._svds[own] = jax.jit(
                lambda params, chip, gram: run(params, chip, gram=gram)
            )
        return self._svds[own]

    @functools.cached_property
    def _patch(self) -> Any:
        """The jitted patch."""
        count = ways.patch_count(self.cut, self.config.rank)
        return jax.jit(functools.partial(rram.patch, count=count, select=self._on_chip))

    def _transform(self, way: Way) -> tuple[lrk.Transform, Any]:
        """The transform of a way and its jitted init; one for each program."""
        name, c = self._program(way), self.config
        if name not in self._transforms:
            tx = ways.transform(way, self.cut, self._widest(way), c.density)
            self._transforms[name] = (tx, jax.jit(tx.init))
        return self._transforms[name]

    def _widest(self, way: Way) -> int:
        """The rank of a way's program: smaller ranks have columns of zeros in it."""
        rank = self.config.rank
        return max(rank, ways.rank_of(way, rank)) if way.kind == "lora" else rank

    def _program(self, way: Way) -> str:
        """The name of the program that trains a way."""
        return f"{way.kind}-{self._widest(way)}"

    def _trained(self, name: str, held: Held, rate: float) -> tuple[lrk.State, Head]:
        """A trained state and its head; LoRI-D's mask is kept for LoRI-S."""
        way, c = WAYS[name], self.config
        tx, init = self._transform(way)
        key = jax.random.fold_in(jax.random.key(c.seeds[0] + 1), held.number)
        fresh = init(key, self.cut.params)
        mask = self._mask(way, held, fresh)
        state, keep = ways.start(way, fresh, mask, c.rank)
        job = self._job(state, keep, held, rate)
        self.trainer.cut = self.cut._replace(params=held.plain)
        found = self.trainer.train(self._program(way), tx, job)
        if name == "lori-d":
            kept = ways.calibrated_mask(found.trainable, c.density)
            self._masks["calibrated", held.number] = kept
        last = (found.heads[0][0], found.heads[1][0])
        return state._replace(trainable=found.trainable), last

    def _job(self, state: lrk.State, keep: Any, held: Held, rate: float) -> Job:
        """What is trained on a chip, from the head fitted there."""
        kernel, bias = held.head
        c = self.config
        return Job(
            state,
            (kernel[None], bias[None]),
            keep,
            np.full(c.heal_steps, self.number),
            np.zeros(c.heal_steps, int),
            batches(len(self.labels("train")), c.heal_steps, c.batch, held.number),
            np.float32(rate),
        )

    def _mask(self, way: Way, held: Held, fresh: lrk.State) -> Any:
        """The mask of LoRI-S on this chip, or None."""
        if not way.mask:
            return None
        key = (way.mask, held.number)
        if key not in self._masks:
            if way.mask == "calibrated":
                self._trained("lori-d", held, self.rate_of("lori-d"))
            else:
                error = _error(self.start[0], held.plain, fresh.trainable)
                found = ways.fault_mask(fresh, error, self.config.density)
                self._masks[key] = found
        return self._masks[key]

    # Choices, made on validation texts and chips of their own.

    @functools.cached_property
    def choice(self) -> dict[str, Any]:
        """The stuck rate: of those tried, the one that loses about 20 points.

        Rates are tried from the lowest until the loss passes the middle of the range
        that is aimed at. With one key a higher rate only adds faults.
        """
        c = self.config
        given = {**self.given(), "aim": list(c.aim)}
        found = self.session.load_arrays(f"rate-{self.label}", config=given)
        if found is None:
            params, head = self.start
            whole, middle = self.score(params, head, "valid"), sum(c.aim) / 2
            lost = []
            for rate in sorted(c.stuck):
                marks = [
                    self.score(self._analog(rate, TUNING + i), head, "valid")
                    for i in range(c.tuning)
                ]
                lost.append(whole - float(np.mean(marks)))
                if lost[-1] >= middle:
                    break
            best = int(np.argmin([abs(x - middle) for x in lost]))
            found = {
                "rate": np.array(sorted(c.stuck)[best]),
                "tried": np.array(sorted(c.stuck)[: len(lost)]),
                "lost": np.array(lost),
            }
            self.session.save_arrays(f"rate-{self.label}", found, config=given)
        return found

    @functools.cached_property
    def _tuning(self) -> list[Held]:
        """The chips that learning rates are chosen on."""
        stuck = float(self.choice["rate"])
        return [self.hold(stuck, TUNING + i) for i in range(self.config.tuning)]

    def rates(self, name: str) -> dict[str, float]:
        """Mean validation loss by learning rate, on the chips for choices."""
        grid = self.rates_of(name)
        given = {**self.given(), "way": name, "stuck": float(self.choice["rate"])}
        given |= self.more(name)
        row = f"tune-{self.label}-{name}"
        found = self.session.load_arrays(row, config=given)
        if found is None:
            losses = [
                [self.heal(name, held, rate, "valid")[1] for held in self._tuning]
                for rate in grid
            ]
            found = {"rates": np.array(grid), "losses": np.mean(losses, axis=1)}
            self.session.save_arrays(row, found, config=given)
        losses = np.where(np.isfinite(found["losses"]), found["losses"], 1e30)
        return {f"{r:g}": float(x) for r, x in zip(found["rates"], losses, strict=True)}

    def rates_of(self, name: str) -> tuple[float, ...]:
        """The learning rates that a way has to choose from."""
        c, kind = self.config, WAYS[name].kind
        return c.retrain_rates if kind == "retrain" else c.heal_rates[kind]

    def more(self, name: str) -> dict[str, Any]:
        """What decides a way's rows beside what decides those of all."""
        own = WAYS[name].kind == "retrain"
        return {"retrain_rates": self.config.retrain_rates} if own else {}

    def rate_of(self, name: str) -> float:
        """The learning rate of a way."""
        marks = self.rates(name)
        return float(min(marks, key=marks.__getitem__))

    def given(self) -> dict[str, Any]:
        """What decides the start and every chip."""
        c = self.config
        names = (
            "tile", "bits", "read", "lrs", "stuck", "aim", "tuning", "heal_steps",
            "labelled", "texts", "density",
        )  # fmt: skip
        own = {name: getattr(c, name) for name in names}
        return self.singles.given(
            **own, rates_of=dict(c.heal_rates), task=self.name, seed=c.seeds[0]
        )


def _shifted(params: Any, trainable: Any) -> Any:
    """Weights with the trained differences added, as arrays."""
    whole = dict(trainable)

    def leaf(keys: Any, x: Any) -> Any:
        path = jax.tree_util.keystr(keys, simple=True, separator="/")
        return x + whole[path]["d"] if path in whole else x

    return jax.tree_util.tree_map_with_path(leaf, params)


def _error(wanted: Any, held: Any, paths: Mapping[str, Any]) -> dict[str, Any]:
    """The known error of each matrix, by path."""

    def leaf(tree: Any, path: str) -> Any:
        for name in path.split("/"):
            tree = tree[name]
        return tree

    return {path: leaf(wanted, path) - leaf(held, path) for path in paths}
