"""HaLoRA's setting: a digital LoRA on a frozen base under Gaussian noise."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, nets
from benchmarks.chips.methods import leaf_at
from benchmarks.chips.points import nearest
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_plan import Base, best, chip_keys
from lowrank import rram

TILE = 64
G_MIN, G_MAX = 90.0, 100.0
"""Far from zero, so that no conductance is cut there and the noise stays Gaussian; only
the spread relative to the range between them counts."""
TASK = "fashion"


def way_name(factor: float) -> str:
    """As rows are named."""
    return f"halora-{factor:g}" if factor else "resampled"


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


class Halora:
    """The rows of this part: one call trains all ways of a seed."""

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config = base, base.config
        net = base.net
        rank = self.config.rank
        self.tx = lrk.chain(
            methods.low_rank(lrk.lora, rank, net),
            lrk.full(select=lrk.matching("bias$")),
        )
        self._train, self._score = jax.jit(self._trained), jax.jit(self._scored)
        self.splits = base.tasks[TASK]

    def given(self) -> dict[str, Any]:
        """What every row of this part says."""
        names = ("rank", "steps", "resample", "times", "sigmas", "noise_target")
        own = {name: getattr(self.config, name) for name in names}
        return {**self.base.shared(), "part": "halora", **own}

    def sigma(self, point: str) -> float:
        """The noise of training: the paper's, or what validation chose."""
        if point == "paper":
            return self.config.paper_sigma
        config, session = self.config, self.base.session
        given = {**self.given(), "kind": "noise"}
        record = session.row("noise", **given)
        if record is None:
            start = time.perf_counter()
            trained = self._tune((0.0,), 0.0)
            clean = self.score(trained, 0.0, "valid", 1)[0]
            rate = config.rates.index(best(config.rates, clean))
            own = jax.tree.map(lambda leaf: leaf[rate : rate + 1], trained)
            lost = [
                float(
                    clean[rate]
                    - self.score(own, 2 * s, "valid", config.tuning_chips).mean()
                )
                for s in config.sigmas
            ]
            sigma, inside = nearest(config.sigmas, lost, config.noise_target)
            record = session.save(
                "noise",
                {
                    "sigma": sigma,
                    "lost": lost[config.sigmas.index(sigma)],
                    "in_band": inside,
                    "rate": config.rates[rate],
                    "clean": float(clean[rate]),
                },
                config=given,
                series={"sigma": config.sigmas, "lost": lost},
                seconds=time.perf_counter() - start,
                seed=plan.TUNING,
            )
        return float(record.metrics["sigma"])

    def rows(self, point: str) -> None:
        """Runs what is missing at a noise, seed by seed."""
        config, session = self.config, self.base.session
        sigma = self.sigma(point)
        factors = (0.0, *config.factors)
        ways = ("clean", *map(way_name, factors))
        shared = {**self.given(), "point": point, "sigma": sigma}
        shared |= {"factors": config.factors}
        rates = self.rates(point, shared, factors)
        for seed in config.seeds:
            given = {
                way: {**shared, "kind": "halora", "way": way, "seed": seed}
                for way in ways
            }
            names = {way: f"halora-{point}-{way}-s{seed}" for way in ways}
            known = [session.row(names[way], **given[way]) for way in ways]
            if all(record is not None for record in known):
                continue
            start = time.perf_counter()
            found = self._seed(sigma, factors, rates, seed)
            seconds = (time.perf_counter() - start) / len(ways)
            for number, way in enumerate(ways):
                own = {time_: scores[:, number] for time_, scores in found.items()}
                session.save(
                    names[way],
                    {
                        "rate": rates[way],
                        **{name: plan.summary(one) for name, one in own.items()},
                    },
                    config=given[way],
                    series=own,
                    seconds=seconds,
                    seed=seed,
                )
            session.log(
                f"rram_beside: {point} seed {seed}, {seconds * len(ways):.0f} s"
            )

    def rates(
        self, point: str, shared: dict[str, Any], factors: tuple[float, ...]
    ) -> dict[str, float]:
        """The rate of each way that is best on validation at the training noise."""
        config, session = self.config, self.base.session
        given = {**shared, "kind": "rates"}
        row = f"rates-{point}"
        record = session.row(row, **given)
        if record is None:
            start, count = time.perf_counter(), config.tuning_chips
            sigma, trials = shared["sigma"], {}
            for group, noise in (((0.0,), 0.0), (factors, sigma)):
                own = self.score(self._tune(group, noise), sigma, "valid", count)
                parts = own.mean(axis=0).reshape(len(group), len(config.rates))
                for factor, scores in zip(group, parts, strict=True):
                    way = way_name(factor) if noise else "clean"
                    trials[way] = scores.tolist()
            rates = {way: best(config.rates, own) for way, own in trials.items()}
            record = session.save(
                row,
                {"rates": rates, "trials": trials},
                config=given,
                seconds=time.perf_counter() - start,
                seed=plan.TUNING,
            )
        return dict(record.metrics["rates"])

    def _seed(
        self,
        sigma: float,
        factors: tuple[float, ...],
        rates: dict[str, float],
        seed: int,
    ) -> dict[str, np.ndarray]:
        """Accuracies `[chips, ways]` of one seed, by noise of the test."""
        own = [rates[way_name(factor)] for factor in factors]
        parts = [
            self.train(0.0, (0.0,), (rates["clean"],), seed),
            self.train(sigma, factors, own, seed),
        ]
        trained = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return {
            f"{t:g}": self.score(
                trained, t * sigma, "test", self.config.chips if t else 1
            )
            for t in self.config.times
        }

    def _tune(self, factors: tuple[float, ...], sigma: float) -> Any:
        """Every factor at every rate, on the seed of choices: `[factors * rates]`."""
        rates, count = self.config.rates, len(factors)
        each = np.repeat(factors, len(rates))
        return self.train(sigma, each, np.tile(rates, count), plan.TUNING)

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
