"""Rows of the table of ITT: rates chosen on validation, then every chip of a point."""

import time
from typing import Any

import numpy as np

from benchmarks.chips import nets
from benchmarks.runner import Session
from benchmarks.tables import _rram_itt_plan as plan
from benchmarks.tables._rram_itt_chips import Numbers
from benchmarks.tables._rram_itt_plan import HARD, POINTS, TUNED
from benchmarks.tables._rram_itt_train import Lab, Options

Found = dict[str, Any]
SHARED = (
    "batch", "valid", "tolerance", "freeze", "penalty", "device_steps", "device_rate",
    "staged", "importance", "seed", "synthetic",
)  # fmt: skip


class Work:
    """The nets that are loaded, and what rows need of each other."""

    def __init__(self, config: Any, session: Session) -> None:
        """Loads nothing yet."""
        self.config, self.session = config, session
        self._labs: dict[tuple[str, str], Lab] = {}

    def lab(self, net: str, dataset: str) -> Lab:
        """A net with its data; loaded once."""
        c = self.config
        if (net, dataset) not in self._labs:
            store = self.session.beside("chips")
            kept = {"synthetic": c.synthetic, "log": self.session.log}
            loaded = nets.load(net, dataset, store, **kept)
            names = [name for name in Options._fields if "spare" not in name]
            own = {name: getattr(c, name) for name in names}
            options = Options(spare=self.spare(net), conv_spare=c.spare_conv, **own)
            self._labs[net, dataset] = Lab(
                loaded, options, seed=c.seed, valid=c.valid, test=c.test
            )
        return self._labs[net, dataset]

    def steps(self, net: str) -> int:
        """Training steps of a net."""
        return {"mlp": self.config.steps_mlp, "lenet": self.config.steps_lenet}[net]

    def spare(self, net: str) -> int:
        """Spare rows of a net's crossbars."""
        return {"mlp": self.config.spare_mlp, "lenet": self.config.spare_lenet}[net]

    def spares(self, net: str) -> Found:
        """The same as rows say it; the MLP has no convolution to speak of."""
        conv = {"spare_conv": self.config.spare_conv} if net == "lenet" else {}
        return {"spare": self.spare(net), **conv}

    def given(self, net: str, dataset: str, **more: Any) -> Found:
        """Everything that decides a row of a net."""
        own = {name: getattr(self.config, name) for name in SHARED}
        base = {"net": net, "dataset": dataset, **self.spares(net)}
        return base | {"steps": self.steps(net), **own, **more}

    # Rows of points

    def points(self, net: str, dataset: str) -> None:
        """Every method at every point."""
        c = self.config
        names = c.points if dataset == "mnist" else c.fashion_points
        if net == "lenet":
            names = tuple(name for name in names if name in c.lenet_points)
        todo = [
            (name, method)
            for name in names
            for method in c.methods
            if plan.applies(method, POINTS[name])
        ]
        with self.session.progress(len(todo), f"{net} {dataset} points") as bar:
            for name, method in todo:
                self.row("point", net, dataset, method, name, c.chips)
                bar.update()

    def yields(self, net: str, dataset: str) -> None:
        """Many chips at (10, 10)."""
        for method in self.config.yield_methods:
            self.row("yield", net, dataset, method, HARD, self.config.many)

    def ablations(self, net: str, dataset: str) -> None:
        """ITT with one part less or more, at (10, 10), all at ITT's rate."""
        for method in plan.ablations(net):
            if method[4:] not in self.config.ablated:
                continue
            self.row("ablation", net, dataset, method, HARD, self.config.chips)

    def row(
        self, kind: str, net: str, dataset: str, method: str, name: str, count: int
    ) -> None:
        """One method on the chips of one point."""
        lab, point = self.lab(net, dataset), POINTS[name]
        recipe = plan.recipe(method, net)
        rate = 0.0
        if recipe.trained:
            rate = self.rate(net, dataset, plan.base(method), name)
        given = self.given(
            net, dataset, kind=kind, method=method, point=name, chips=count,
            lrs=point.lrs, hrs=point.hrs, sigma=point.sigma, rate=rate,
            test=self.config.test,
        )  # fmt: skip
        row = f"{kind}-{net}-{dataset}-{method}-{name}"
        if self.session.row(row, **given) is not None:
            return
        begin, before = time.perf_counter(), lab.traces[recipe]
        rows, seconds = self.rows(net, dataset, method, name, "test", count)
        found = lab.heal(
            recipe,
            numbers(name),
            lab.keys("test", count),
            rows,
            lab.given(lab.batches(self.steps(net), self.config.batch), "test"),
            rate,
        )
        metrics = {
            "clean": lab.clean("test"),
            "accuracies": found["accuracy"],
            "rate": rate,
            "compiled": lab.traces[recipe] - before,
        }
        if recipe.assigned:
            metrics["assignment_seconds"] = float(np.mean(seconds))
        if "written" in found:
            metrics["written"] = found["written"]
        curve = {"loss": found["losses"].mean(0)} if "losses" in found else {}
        self.session.save(
            row,
            metrics,
            config=given,
            series=curve,
            seconds=time.perf_counter() - begin,
            seed=self.config.seed,
        )

    # What rows need

    def rate(self, net: str, dataset: str, method: str, point: str) -> float:
        """The learning rate of a method: the best on validation images and chips."""
        at = TUNED[POINTS[point].varied]
        if not plan.applies(method, POINTS[at]):
            at = HARD
        c = self.config
        given = self.given(
            net, dataset, kind="rate", method=method, point=at, trials=c.trials,
            rates=c.rates,
        )  # fmt: skip
        row = f"rate-{net}-{dataset}-{method}-{at}"
        if (record := self.session.row(row, **given)) is not None:
            return float(record.metrics["rate"])
        begin = time.perf_counter()
        tried = {
            f"{rate:g}": self.validated(net, dataset, method, at, rate).tolist()
            for rate in c.rates
        }
        best = max(c.rates, key=lambda rate: float(np.mean(tried[f"{rate:g}"])))
        spent = time.perf_counter() - begin
        self.session.save(
            row, {"rate": best, "tried": tried}, config=given, seconds=spent,
            seed=c.seed,
        )  # fmt: skip
        return float(best)

    def validated(
        self,
        net: str,
        dataset: str,
        method: str,
        point: str,
        rate: float,
        steps: int | None = None,
        *,
        kind: str = "valid",
        count: int = 0,
    ) -> np.ndarray:
        """Validation accuracy on the chips that choices are made on, or on others."""
        lab, count = self.lab(net, dataset), count or self.config.trials
        rows, _ = self.rows(net, dataset, method, point, kind, count)
        batches = lab.batches(steps or self.steps(net), self.config.batch)
        found = lab.heal(
            plan.recipe(method, net),
            numbers(point),
            lab.keys(kind, count),
            rows,
            lab.given(batches, "valid"),
            rate,
        )
        return found["accuracy"]

    def rows(
        self, net: str, dataset: str, method: str, point: str, kind: str, count: int
    ) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The rows that weights sit on, for each chip, and the seconds it took."""
        lab = self.lab(net, dataset)
        if not plan.recipe(method, net).assigned:
            return lab.layout.unmoved(count), np.zeros(count)
        own, many = POINTS[point], self.many(net, dataset, point, kind, count)
        given = {
            "net": net, "dataset": dataset, "lrs": own.lrs, "hrs": own.hrs,
            "sigma": own.sigma, "chips": many, **self.spares(net), "kind": kind,
            "importance": self.config.importance, "seed": self.config.seed,
            "synthetic": self.config.synthetic,
        }  # fmt: skip
        name = f"rows-{net}-{dataset}-{point}-{kind}-{many}"
        kept: Any = self.session.load_arrays(name, config=given)
        if kept is None:
            found = [lab.assign(numbers(point), key) for key in lab.keys(kind, many)]
            placed = {p: np.stack([rows[p] for rows, _ in found]) for p in found[0][0]}
            kept = {"rows": placed, "seconds": np.array([s for _, s in found])}
            self.session.save_arrays(name, kept, config=given)
        placed = {path: rows[:count] for path, rows in kept["rows"].items()}
        return placed, kept["seconds"][:count]

    def many(self, net: str, dataset: str, point: str, kind: str, count: int) -> int:
        """How many chips to assign: those of a yield serve its point as well."""
        c = self.config
        asked = "yield" in c.parts and net in c.yield_nets and dataset == "mnist"
        shared = asked and point == HARD and kind == "test"
        return max(count, c.many) if shared else count


def numbers(point: str) -> Numbers:
    """The numbers of a point."""
    own = POINTS[point]
    return Numbers(own.lrs, own.hrs, own.sigma)
