"""Runs the rows of the table of healing: one call for a group of ways at a point."""

import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.chips import nets, points
from benchmarks.chips.healing import Healer, Options
from benchmarks.chips.methods import Way, cost
from benchmarks.chips.points import Fault
from benchmarks.runner import Session
from benchmarks.tables import _rram_healing_plan as plan

DATASET = "mnist"
CLEAN_CHIPS = 5
SEARCH_CHIPS = 6


class Work:
    """One net: its healer, its fault points, its rows."""

    def __init__(self, config: plan.Options, session: Session, net: str) -> None:
        """Loads nothing yet."""
        self.config, self.session, self.name = config, session, net

    @functools.cached_property
    def healer(self) -> Healer:
        """The net with its data and compiled programs."""
        session, config = self.session, self.config
        net = nets.load(
            self.name,
            DATASET,
            session.beside("chips"),
            synthetic=config.synthetic,
            log=session.log,
        )
        return Healer(net, self.options)

    @property
    def options(self) -> Options:
        """What all ways share."""
        config, mlp = self.config, self.name == "mlp"
        steps = config.steps if mlp else config.lenet_steps
        return Options(
            steps=steps,
            batch=config.batch,
            calibration=max(2, steps // 4),
            scored=1000 if mlp else 250,  # patches of an image are large
            capacity=max(self.chips, 3 * config.tuning_chips, SEARCH_CHIPS),
        )

    @property
    def chips(self) -> int:
        """How many chips are scored."""
        mlp = self.name == "mlp"
        return self.config.chips if mlp else self.config.lenet_chips

    def chips_of(self, kind: str, group: str) -> int:
        """How many chips a row has."""
        if kind == "clean":
            return min(CLEAN_CHIPS, self.chips)
        if kind in ("labels", "dimension"):
            return min(self.config.few_chips, self.chips)
        wide = group == "subspace" and self.name == "mlp"
        return min(self.config.wide_chips, self.chips) if wide else self.chips

    @functools.cached_property
    def clean(self) -> dict[str, float]:
        """Accuracy of the net as trained, off any chip."""
        net = self.healer.net
        scored = jax.jit(lambda params, x, y: nets.accuracy(net.apply, params, x, y))
        pairs = {"valid": net.valid, "test": net.test}
        return {name: float(scored(net.params, x, y)) for name, (x, y) in pairs.items()}

    def shared(self) -> dict[str, Any]:
        """What every row's config says."""
        config = self.config
        return {
            "net": self.name,
            "dataset": DATASET,
            "synthetic": config.synthetic,
            "valid": config.valid,
            "totals": config.totals,
            "target": config.target,
        }

    def fault(self, point: str) -> Fault:
        """The faults of a point: found once, by what they cost on validation."""
        if point == "clean":
            return Fault()
        polarity = point.split("-")[0]
        given = {**self.shared(), "kind": "point", "polarity": polarity}
        row = f"point-{self.name}-{polarity}"
        record = self.session.row(row, **given)
        if record is None:
            record = self._search(row, given, polarity)
        total = record.metrics["total"]
        if point == polarity:
            return Fault.of(polarity, total)
        length = plan.CLUSTER if "clusters" in point else 0.0
        return Fault.of(polarity, min(total * plan.SHIFT[point], 1.0), length=length)

    def _search(self, row: str, given: dict[str, Any], polarity: str) -> Any:
        """Tries total rates, on chips that are never scored."""
        start, totals, losses = time.perf_counter(), [], []
        for total in self.config.totals:
            scores = self.healer.run(
                [Way("none")],
                Fault.of(polarity, total),
                chips=SEARCH_CHIPS,
                split="valid",
                images=self.config.valid,
                kind="search",
            )
            totals.append(total)
            losses.append(self.clean["valid"] - float(scores["none"].mean()))
            if losses[-1] > 2 * points.HIGHEST:
                break
        total, inside = points.nearest(totals, losses, self.config.target)
        fault = Fault.of(polarity, total)
        metrics = {
            "total": total,
            "lost": losses[totals.index(total)],
            "in_band": inside,
            **fault.given(),
        }
        return self.session.save(
            row,
            metrics,
            config=given,
            series={"total": totals, "lost": losses},
            seconds=time.perf_counter() - start,
            seed=0,
        )

    def rows(
        self, kind: str, point: str, groups: Sequence[Sequence[Way]], labels: int = 0
    ) -> None:
        """Runs what is missing of a point: every group in one call, after its rates."""
        fault = self.fault(point)
        for group in groups:
            configs = {
                way: self.given(kind, point, fault, way, labels) for way in group
            }
            names = {way: self.row_name(kind, point, way, labels) for way in group}
            missing = [
                way
                for way in group
                if self.session.row(names[way], **configs[way]) is None
            ]
            if not missing:
                continue
            start = time.perf_counter()
            rates, trials = self._tuned(missing, fault, labels)
            scores = self.healer.run(
                missing,
                fault,
                chips=configs[missing[0]]["chips"],
                rates=rates,
                labels=labels,
            )
            seconds = (time.perf_counter() - start) / len(missing)
            for way in missing:
                metrics, series = self._metrics(way, scores, rates, trials)
                self.session.save(
                    names[way],
                    metrics,
                    config=configs[way],
                    series=series,
                    seconds=seconds,
                    seed=0,
                )
            self.session.log(
                f"rram_healing: {self.name} {kind} {point} {group[0].group} "
                f"{len(missing)} rows, {seconds * len(missing):.0f} s"
            )

    def row_name(self, kind: str, point: str, way: Way, labels: int) -> str:
        """The name of a row."""
        tail = f"-n{labels}" if labels else ""
        return f"{kind}-{self.name}-{point}-{way.name}{tail}"

    def given(
        self, kind: str, point: str, fault: Fault, way: Way, labels: int
    ) -> dict[str, Any]:
        """Everything that decides a row."""
        own = self.options
        return {
            **self.shared(),
            **fault.given(),
            "kind": kind,
            "point": point,
            "way": way.name,
            "labels": labels,
            "chips": self.chips_of(kind, way.group),
            "steps": own.steps,
            "batch": own.batch,
            "calibration": own.calibration,
            "mask_rank": own.mask_rank,
            "rates": self.config.rates_of(way.group),
            "tuning_chips": self.config.tuning_chips,
        }

    def _tuned(
        self, ways: Sequence[Way], fault: Fault, labels: int
    ) -> tuple[dict[str, float], dict[str, list[float]]]:
        """The rate of each way that is best on validation, on chips of its own."""
        trained = [way for way in ways if way.trained]
        trials: dict[str, list[float]] = {way.name: [] for way in trained}
        grid = self.config.rates_of(ways[0].group)
        for rate in grid if trained else ():
            scores = self.healer.run(
                ways,
                fault,
                chips=self.config.tuning_chips,
                rates={way.name: rate for way in trained},
                labels=labels,
                split="valid",
                images=self.config.valid,
                kind="tuning",
            )
            for way in trained:
                trials[way.name].append(float(scores[way.name].mean()))
        rates = {name: float(grid[int(np.argmax(own))]) for name, own in trials.items()}
        return rates, trials

    def _metrics(
        self, way: Way, scores: dict[str, Any], rates: Any, trials: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """What a record says of one way."""
        own = np.asarray(scores[way.name], float)
        metrics: dict[str, Any] = {
            "mean": own.mean(),
            "low": np.quantile(own, 0.05),
            "worst": own.min(),
            "clean": self.clean["test"],
            "cost": cost(way, self.healer.net, self.options.mask_rank)._asdict(),
        }
        series = {"accuracy": own}
        if way.trained:
            metrics |= {"rate": rates[way.name], "trials": trials[way.name]}
        if way.group == "full":
            metrics["written"] = float(np.mean(scores[f"{way.name}/written"]))
        if way.kind == "none" and "spectrum" in scores:
            metrics["spectrum"] = {
                name: float(np.mean(value))
                for name, value in scores["spectrum"].items()
            }
            series |= scores["spectrum"]
        return metrics, series
