"""Rows of the table of intrinsic dimension: each is one run, and one record."""

import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.tables import _intrinsic_plan as plan
from benchmarks.tables import _intrinsic_train as training
from benchmarks.tables._intrinsic_plan import (
    DIRECT,
    NETS,
    SHARE,
    label_part,
    label_share,
)

Found = dict[str, Any]
KEPT = ("batch", "b2", "l2", "rate", "synthetic")


class Work:
    """Data and programs that rows share."""

    def __init__(self, config: Any, session: Session) -> None:
        """Loads nothing yet."""
        self.config, self.session = config, session
        self._data: dict[str, training.Data] = {}
        self._programs: dict[Any, Any] = {}
        self._told: set[Any] = set()

    # Parts

    def main(self, net: str) -> None:
        """The curve of a net, and direct training."""
        self.rows("main", net, (DIRECT, *self.dims(net)), self.seeds(net))

    def pixels(self, net: str) -> None:
        """The same with the pixels of all images in another order."""
        own = {"fc": self.config.ds_pixels_fc, "lenet": self.config.ds_pixels_lenet}
        self.rows("pixels", net, (DIRECT, *self.asked(own[net])))

    def dense(self) -> None:
        """The dense projection at a few dimensions, and the curve's at as many epochs.

        Fewer epochs than those of the curve, if it was asked for, need both.
        """
        c = self.config
        for d in c.ds_dense:
            self.rows("dense", "fc", (d,), c.seeds_dense, "dense", c.epochs_dense)
            if c.epochs_dense != c.epochs:
                self.rows("beside", "fc", (d,), c.seeds_dense, None, c.epochs_dense)

    def labels(self) -> None:
        """Random labels for some images, all of which are learnt by heart."""
        c = self.config
        for fraction in c.fractions:
            count = round(fraction * c.label_images)
            epochs = max(1, c.label_steps // max(1, count // min(c.batch, count)))
            self.rows(
                label_part(fraction), "fc", self.asked(c.ds_labels), epochs=epochs
            )

    def epochs(self) -> None:
        """The same with as many epochs for every share, as the authors train."""
        c = self.config
        for fraction in c.fractions:
            part = label_part(fraction, "epochs")
            self.rows(part, "fc", self.asked(c.ds_labels), epochs=c.label_epochs)

    def search(self, net: str) -> None:
        """Bisection between tested dimensions, for both baselines."""
        own = self.score(net, DIRECT)
        low, high = self.config.search_fc if net == "fc" else self.config.search_lenet
        for name, baseline in (("local", own), ("overall", 1.0)):
            found = lrk.subspace.bisect(
                lambda d: self.score(net, d), low, high, SHARE * baseline,
                ratio=self.config.ratio,
            )  # fmt: skip
            self.session.log(
                f"{net}, {name}: d90 is between {found.below} and {found.reached}"
            )

    def toy(self) -> None:
        """The toy problem, by one call of `lrk.subspace.sweep`."""
        c = self.config
        given = {"part": "toy", "ds": c.ds_toy, "seeds": c.seeds_toy, **training.TOY}
        if self.session.row("toy", **given) is not None:
            return
        found = training.toy_sweep(c.ds_toy, c.seeds_toy, self.session.log)
        scores = found.scores[:, 0].tolist()
        self.session.save(
            "toy", {"scores": scores}, config=given, seconds=found.seconds,
            seed=c.seeds_toy[0],
        )  # fmt: skip

    def bound(self, net: str) -> None:
        """The bound of every subspace of the main part that was run here."""
        c = self.config
        for d in self.dims(net):
            for seed in c.seeds:
                self.bound_row(net, d, seed)

    # Rows

    def dims(self, net: str) -> tuple[int, ...]:
        """The dimensions of a net's curve."""
        return self.asked(self.config.ds_fc if net == "fc" else self.config.ds_lenet)

    def seeds(self, net: str) -> tuple[int, ...]:
        """The seeds of a net's curve: d90 reads those that all its dimensions have."""
        return self.config.seeds_fc if net == "fc" else self.config.seeds

    def asked(self, ds: Sequence[int]) -> tuple[int, ...]:
        """Those of some dimensions that this run was asked for; none named: all."""
        return tuple(d for d in ds if not self.config.ds or d in self.config.ds)

    def score(self, net: str, d: int) -> float:
        """Mean accuracy over seeds at a dimension."""
        return float(np.mean([self.row("main", net, d, s) for s in self.seeds(net)]))

    def rows(
        self,
        part: str,
        net: str,
        ds: Sequence[int],
        seeds: Sequence[int] | None = None,
        projection: str | None = None,
        epochs: int | None = None,
    ) -> None:
        """Rows of some dimensions, seeds outermost: early rows span the curve."""
        todo = [(d, s) for s in seeds or self.config.seeds for d in ds]
        with self.session.progress(len(todo), f"{part} {net}") as bar:
            for d, seed in todo:
                self.row(part, net, d, seed, projection, epochs, len(todo) - bar.n)
                bar.update()

    def row(
        self,
        part: str,
        net: str,
        d: int,
        seed: int,
        projection: str | None = None,
        epochs: int | None = None,
        left: int = 1,
    ) -> float:
        """One run; its final accuracy on test images, or on what is learnt by heart."""
        given = self.given(part, net, d, seed, projection, epochs)
        name = plan.row_name(part, net, d, seed)
        if (record := self.session.row(name, **given)) is not None:
            return float(record.metrics["test"])
        run, args = self.prepared(given)
        self.forecast(given, left)
        begin = time.perf_counter()
        found, trained = jax.block_until_ready(run(*args))
        seconds = time.perf_counter() - begin
        tests = np.asarray(found["test"], np.float64)
        shown = np.flatnonzero(np.isfinite(tests))
        metrics = {
            "test": tests[-1],
            "train": found["train"],
            "step_ms": 1e3 * seconds / (given["epochs"] * self.steps(part)),
        }
        series = {"loss": found["loss"], "epoch": shown + 1, "test": tests[shown]}
        kept = {"z": training.vector(trained, d)} if d else None
        self.session.save(
            name, metrics, config=given, arrays=kept, series=series, seconds=seconds,
            seed=seed,
        )  # fmt: skip
        return float(tests[-1])

    def given(
        self,
        part: str,
        net: str,
        d: int,
        seed: int,
        projection: str | None = None,
        epochs: int | None = None,
    ) -> Found:
        """Everything that decides a row."""
        c, data = self.config, self.data(part)
        own: Found = {"part": part, "net": net, "d": d, "seed": seed}
        if d != DIRECT:
            own["projection"] = projection or c.projection
            own["largest"] = plan.largest(own["projection"], d)
        whole = c.epochs_lenet if net == "lenet" else c.epochs
        own |= {"epochs": epochs or whole, "train": len(data["y"])}
        own |= {"test": len(data["ty"]), **{name: getattr(c, name) for name in KEPT}}
        if label_share(part) is not None:
            own["rate"] = c.label_rate
        return own

    def bound_row(self, net: str, d: int, seed: int) -> None:
        """Quantises one trained vector to several levels, scores and bounds each."""
        c, main = self.config, self.given("main", net, d, seed)
        name = plan.row_name("main", net, d, seed)
        more = {"part": "bound", "levels": c.levels, "delta": c.delta}
        given = main | more | {"choices": c.choices}
        row = plan.row_name("bound", net, d, seed)
        if self.session.row(row, **given) is not None:
            return
        kept: Any = self.session.load_arrays(name, config=main)
        if kept is None:
            self.session.log(f"{row}: left out, as {name} was not run")
            return
        begin = time.perf_counter()
        packed = [lrk.subspace.quantise(kept["z"], n) for n in c.levels]
        found = self.quantised(main, [own.values for own in packed])
        errors = 1 - np.asarray(found["train"], np.float64)
        bounds = [
            lrk.subspace.compression_bound(
                float(error), main["train"], own.bits, delta=c.delta, choices=c.choices
            )
            for error, own in zip(errors, packed, strict=True)
        ]
        series = {
            "levels": c.levels,
            "bits": [own.bits for own in packed],
            "train_error": errors,
            "test_error": 1 - np.asarray(found["test"], np.float64),
            "bound": [own.bound for own in bounds],
            "square_root": [own.square_root for own in bounds],
        }
        best = int(np.argmin(series["bound"]))
        metrics = {key: float(values[best]) for key, values in series.items()}
        self.session.save(
            row, metrics, config=given, series=series,
            seconds=time.perf_counter() - begin, seed=seed,
        )  # fmt: skip

    # What rows need

    def data(self, part: str) -> training.Data:
        """The images of a part, on the device."""
        c, share = self.config, label_share(part)
        if "main" not in self._data:
            self._data["main"] = training.load(c.synthetic, c.train, c.test)
        if part not in self._data:
            own = self._data["main"]
            if part == "pixels":
                own = training.shuffled_pixels(own, c.shuffle_seed)
            elif share is not None:
                count = round(share * c.label_images)
                own = training.random_labels(own, count, c.shuffle_seed)
            self._data[part] = own
        return self._data[part]

    def steps(self, part: str) -> int:
        """Steps of an epoch."""
        count = len(self.data(part)["y"])
        return count // min(self.config.batch, count)

    def prepared(self, given: Found, epochs: int | None = None) -> tuple[Any, Any]:
        """The program of a row and its arguments, compiled once."""
        c = self.config
        epochs = epochs or given["epochs"]
        every = max(1, epochs // c.scores)
        protocol = training.Protocol(epochs, c.batch, c.b2, c.l2, every)
        projection, largest = given.get("projection"), given.get("largest", 0)
        net = training.model(given["net"], c.synthetic)
        key = (given["net"], protocol, projection, largest, given["train"])
        args = (net.params, np.int32(given["d"]), np.float32(given["rate"]))
        args = (*args, np.uint32(given["seed"]), self.data(given["part"]))
        if key not in self._programs:
            run = training.program(net, protocol, projection, largest)
            self._programs[key] = run.lower(*args).compile()
        return self._programs[key], args

    def forecast(self, given: Found, left: int) -> None:
        """Says once for each kind of row how long it will take, from one epoch."""
        kind = (given["part"], given["net"], given.get("projection"))
        if kind in self._told or given["epochs"] < 10:
            return
        self._told.add(kind)
        run, args = self.prepared(given, epochs=1)
        jax.block_until_ready(run(*args))
        begin = time.perf_counter()
        jax.block_until_ready(run(*args))
        hours = (time.perf_counter() - begin) * given["epochs"] / 3600
        self.session.log(
            f"{given['part']} {NETS[given['net']].title}: a run of {given['epochs']} "
            f"epochs is expected to take {60 * hours:.1f} min, {left} of them "
            f"{left * hours:.2f} h"
        )

    def quantised(self, given: Found, vectors: Sequence[np.ndarray]) -> Any:
        """Accuracy with each of some vectors instead of the trained one."""
        net = training.model(given["net"], self.config.synthetic)
        kind = ("quantised", given["net"], given["projection"], given["largest"])
        if kind not in self._programs:
            score = training.quantised_scorer(net)
            own = training.subspace_run(score, given["projection"], given["largest"])
            self._programs[kind] = jax.jit(
                lambda params, d, seed, data: own(
                    params, d, 0.0, jax.random.key(seed), data
                )
            )
        full = np.zeros((len(vectors), given["largest"]), np.float32)
        full[:, : given["d"]] = np.stack(vectors)
        data = self.data("main") | {"z": jnp.asarray(full)}
        return self._programs[kind](
            net.params, np.int32(given["d"]), np.uint32(given["seed"]), data
        )
