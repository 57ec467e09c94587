"""HaLoRA's setting, its rows: a digital LoRA on a base under Gaussian noise."""

import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.chips.points import nearest
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_noise import Loras
from benchmarks.tables._rram_beside_plan import Base, best


def way_name(factor: float) -> str:
    """As rows are named."""
    return f"halora-{factor:g}" if factor else "resampled"


class Halora:
    """The rows of this part: one call trains all ways of a seed."""

    def __init__(self, base: Base) -> None:
        """Compiles nothing yet."""
        self.base, self.config, self.loras = base, base.config, Loras(base)

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
            clean = self.loras.score(trained, 0.0, "valid", 1)[0]
            rate = config.rates.index(best(config.rates, clean))
            own = jax.tree.map(lambda leaf: leaf[rate : rate + 1], trained)
            lost = [
                float(
                    clean[rate]
                    - self.loras.score(own, 2 * s, "valid", config.tuning_chips).mean()
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
                own = self.loras.score(self._tune(group, noise), sigma, "valid", count)
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
            self.loras.train(0.0, (0.0,), (rates["clean"],), seed),
            self.loras.train(sigma, factors, own, seed),
        ]
        trained = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)
        return {
            f"{t:g}": self.loras.score(
                trained, t * sigma, "test", self.config.chips if t else 1
            )
            for t in self.config.times
        }

    def _tune(self, factors: tuple[float, ...], sigma: float) -> Any:
        """Every factor at every rate, on the seed of choices: `[factors * rates]`."""
        rates, count = self.config.rates, len(factors)
        each = np.repeat(factors, len(rates))
        return self.loras.train(sigma, each, np.tile(rates, count), plan.TUNING)
