"""Heals all chips of a point in one compiled call, many ways at once.

Inside the call chips follow one another: a chip is sampled and programmed once, then
every way of a group is trained beside its frozen weights, on the same batches, and
scored. As all ways of a group meet the same images and the same deployed weights, the
product with those is computed once for all of them.
"""

import functools
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import methods, points
from benchmarks.chips.inputs import Inputs, Options
from benchmarks.chips.methods import Way
from benchmarks.chips.nets import Net, loss
from benchmarks.chips.points import Fault
from benchmarks.chips.steps import stepped
from benchmarks.chips.wiring import itt, wired, written
from lowrank import rram

Rates = Mapping[str, float]
Scores = dict[str, Any]


class Healer:
    """Heals chips of one net.

    Attributes:
        net: The net.
        options: What all ways share.
        traces: How often each program was traced.
    """

    def __init__(self, net: Net, options: Options, *, seed: int = 0) -> None:
        """Puts the data where programs read it."""
        self.net, self.options, self.seed = net, options, seed
        self.traces: dict[Any, int] = {}
        self._calls: dict[Any, Callable[..., Scores]] = {}
        self._params = jax.tree.map(jnp.asarray, net.params)
        splits = {"train": net.train, "valid": net.valid, "test": net.test}
        self._splits = {
            n: (jnp.asarray(x), jnp.asarray(y)) for n, (x, y) in splits.items()
        }

    def keys(self, kind: str, count: int) -> jax.Array:
        """Keys of the chips that are scored, or of those that choices see."""
        own = jax.random.fold_in(jax.random.key(self.seed), zlib.crc32(kind.encode()))
        number = max(count, self.options.capacity)
        return jax.vmap(lambda i: jax.random.fold_in(own, i))(jnp.arange(number))

    @functools.cached_property
    def grams(self) -> dict[str, jax.Array]:
        """Gram matrices of what meets each kernel, of clean unlabelled images."""
        return points.grams(self.net, min(1000, len(self.net.train[1])))

    @functools.cached_property
    def importance(self) -> dict[str, jax.Array]:
        """For ITT: the Fisher diagonal, over its mean by leaf."""
        x, y = (part[:1024] for part in self.net.train)
        size = min(128, len(y))
        pairs = [
            (x[i : i + size], y[i : i + size])
            for i in range(0, len(y) - size + 1, size)
        ]
        found = lrk.merging.fisher_diagonal(
            self.net.apply, self._params, pairs, select=methods.kernels
        )
        return {p: f / jnp.maximum(jnp.mean(f), 1e-30) for p, f in found.items()}

    def run(
        self,
        ways: Sequence[Way],
        fault: Fault,
        *,
        chips: int,
        rates: Rates | None = None,
        labels: int = 0,
        split: str = "test",
        images: int = 0,
        kind: str = "scored",
    ) -> Scores:
        """Heals and scores chips.

        Args:
            ways: Ways of one group.
            fault: The faults.
            chips: How many chips, at most the capacity.
            rates: The learning rate of each trained way, by name.
            labels: How many labelled images each chip may see; 0: all.
            split: What is scored: `valid` for choices, `test` once.
            images: How many images of it; 0: all.
            kind: Which chips: `scored`, or another name for chips that choices see.

        Returns:
            By name of a way, `[chips]` accuracies; for what computes the known error
            also its `spectrum`, and for what is written to the chip how many cells
            change, under `retrain/written`.
        """
        keys = self.keys(kind, chips)
        size = min(self.options.scored, len(self._splits[split][1]))
        whole = len(self._splits[split][1]) // size
        inputs = Inputs(
            self._params,
            self._splits["train"],
            self._splits[split],
            np.int32(min(whole, -(-images // size)) if images else whole),
            np.int32(labels or len(self.net.train[1])),
            np.float32(fault.lrs),
            np.float32(fault.hrs),
            {
                way.name: np.float32((rates or {}).get(way.name, 0.0))
                for way in ways
                if way.trained
            },
            self.grams if any(way.kind in ("svdw", "patchw") for way in ways) else {},
            self.importance if Way("itt") in ways else {},
        )
        if ways[0].group != "full":
            return self._call(ways, fault, inputs, keys, {}, chips)
        found: Scores = {}
        for way in ways:
            itt = way.kind == "itt"
            rows = self._assigned(fault, keys, chips) if itt else {}
            found |= self._call([way], fault, inputs, keys, rows, chips)
        return found

    def _call(
        self,
        ways: Sequence[Way],
        fault: Fault,
        inputs: Inputs,
        keys: jax.Array,
        rows: Mapping[str, Any],
        chips: int,
    ) -> Scores:
        name = (tuple(ways), fault.length, fault.share)
        if name not in self._calls:
            one = functools.partial(self._one, tuple(ways), fault)
            self._calls[name] = jax.jit(functools.partial(self._all, name, one))
        own = {way.name for way in ways}
        inputs = inputs._replace(
            rates={n: rate for n, rate in inputs.rates.items() if n in own}
        )
        found = self._calls[name](inputs, keys, rows, np.int32(chips))
        return jax.tree.map(lambda value: np.asarray(value)[:chips], found)

    def _all(
        self,
        name: Any,
        one: Callable[..., Scores],
        inputs: Inputs,
        keys: jax.Array,
        rows: Any,
        chips: Any,
    ) -> Scores:
        """One chip after another; how many is traced."""
        self.traces[name] = self.traces.get(name, 0) + 1
        shapes = jax.eval_shape(
            one, inputs, keys[0], jax.tree.map(lambda r: r[0], rows)
        )
        empty = jax.tree.map(
            lambda s: jnp.zeros((len(keys), *s.shape), s.dtype), shapes
        )

        def body(i: Any, found: Scores) -> Scores:
            new = one(inputs, keys[i], jax.tree.map(lambda r: r[i], rows))
            return jax.tree.map(lambda all_, own: all_.at[i].set(own), found, new)

        return jax.lax.fori_loop(0, chips, body, empty)

    def _one(
        self, ways: Sequence[Way], fault: Fault, inputs: Inputs, key: Any, rows: Any
    ) -> Scores:
        """One chip: sampled, programmed, healed each way, scored."""
        fault = fault._replace(lrs=inputs.lrs, hrs=inputs.hrs)
        of_chip, of_data, of_ways = jax.random.split(key, 3)
        tx, state = points.chip(self.net, fault, of_chip)
        chosen = self._examples(of_data, inputs)
        if ways[0].group == "full":
            return self._rewritten(ways[0], fault, inputs, tx, state, chosen, rows)
        deployed = tx.apply(inputs.params, state)
        found: Scores = {}
        if ways[0].group == "direct":
            healed = self._computed(ways, inputs, deployed)
            if len(healed) > 1:  # a search for rates needs none
                found["spectrum"] = points.spectrum(self.net, inputs.params, deployed)
        else:
            healed = self._trained(ways, inputs, deployed, chosen, of_ways)
        return found | self._scores(healed, inputs)

    def _examples(self, key: Any, inputs: Inputs) -> jax.Array:
        """`[steps, batch]`: which images each step takes, of those a chip may see."""
        of_draw, of_batches = jax.random.split(key)
        order = jax.random.permutation(of_draw, len(inputs.train[1]))
        shape = (self.options.steps, self.options.batch)
        drawn = jax.random.randint(of_batches, shape, 0, inputs.labels)
        return order[drawn]

    def _computed(self, ways: Sequence[Way], inputs: Inputs, deployed: Any) -> Any:
        """What needs the known error and no training."""
        params, healed = inputs.params, {}
        kinds: dict[str, int] = {}
        for way in ways:
            kinds[way.kind] = max(kinds.get(way.kind, 0), way.size)
        correct = functools.partial(
            rram.svd_correction,
            params,
            deployed,
            axes=self.net.axes,
            select=methods.kernels,
        )
        widest = {}
        if "svd" in kinds:
            widest["svd"] = correct(kinds["svd"])
        if "svdw" in kinds:
            widest["svdw"] = correct(kinds["svdw"], gram=inputs.grams)
        energy = points.energies(inputs.grams)
        for way in ways:
            if way.kind in widest:
                healed[way.name] = methods.truncated(widest[way.kind], way.size)
            elif way.kind == "none":
                healed[way.name] = deployed
            else:
                healed[way.name] = methods.patched(
                    self.net, params, deployed, way, energy
                )
        return healed

    def _trained(
        self, ways: Sequence[Way], inputs: Inputs, deployed: Any, chosen: Any, key: Any
    ) -> dict[str, Any]:
        """Every way trained beside the frozen weights, on the same batches."""
        rank = self.options.mask_rank
        txs = {way.name: methods.transform(way, self.net, rank) for way in ways}
        starts = {}
        for way in ways:  # both kinds of LoRI-S share A, as mask and training do
            shared = "mask" if way.kind in ("lori-s", "lori-f") else way.name
            own = jax.random.fold_in(key, zlib.crc32(shared.encode()))
            starts[way.name] = txs[way.name].init(own, inputs.params)
        masks = self._masks(ways, inputs, deployed, chosen, txs, starts)
        speeds = {
            way.name: inputs.rates[way.name] * methods.unit(way, self.net)
            for way in ways
        }
        trained = stepped(
            self.net, txs, starts, masks, speeds, inputs, deployed, chosen
        )
        return {
            name: txs[name].apply(deployed, starts[name]._replace(trainable=own))
            for name, own in trained.items()
        }

    def _masks(
        self,
        ways: Sequence[Way],
        inputs: Inputs,
        deployed: Any,
        chosen: Any,
        txs: Mapping[str, Any],
        starts: Mapping[str, lrk.State],
    ) -> dict[str, Any]:
        """The masks of all LoRI-S: one calibration for all that need one."""
        masks = {}
        learned = [way for way in ways if way.kind == "lori-s"]
        if learned:
            name = learned[0].name
            early = chosen[: self.options.calibration]
            own = stepped(
                self.net,
                {name: txs[name]},
                {name: starts[name]},
                {},
                {name: self.options.calibration_rate},
                inputs,
                deployed,
                early,
            )
            state = starts[name]._replace(trainable=own[name])
            for way in learned:
                masks[way.name] = methods.calibrated(state, way.size)
        error = {
            path: methods.leaf_at(inputs.params, path) - methods.leaf_at(deployed, path)
            for path in methods.sides(self.net)
        }
        for way in ways:
            if way.kind == "lori-f":
                masks[way.name] = methods.fault_aware(starts[way.name], error, way.size)
        return masks

    def _rewritten(
        self,
        way: Way,
        fault: Fault,
        inputs: Inputs,
        tx: lrk.Transform,
        state: lrk.State,
        chosen: Any,
        rows: Any,
    ) -> Scores:
        """The full weights trained through the map: written to the chip, not kept."""
        x, y = inputs.train

        def own_loss(params: Any, index: Any) -> jax.Array:
            return loss(self.net.apply, params, x[index], y[index])

        fall = optax.cosine_decay_schedule(1.0, len(chosen))
        rate = inputs.rates[way.name]
        optimizer = optax.chain(
            optax.scale_by_adam(),
            optax.scale_by_schedule(lambda count: -rate * fall(count)),
        )
        wanted = inputs.params
        if way.kind == "itt":
            wiring = wired(self.net, fault, inputs, state, rows)
            done = itt(
                self.net, self.options, own_loss, inputs, wiring, chosen, optimizer
            )
            after, healed = wiring.seat(done), wiring.deploy(done)
        else:
            deploy = lambda params: tx.apply(params, state)  # noqa: E731
            done = rram.retrain(own_loss, wanted, deploy, chosen, optimizer).params
            after, healed = done, deploy(done)
        scores = self._scores({way.name: healed}, inputs)
        return scores | {f"{way.name}/written": written(self.net, wanted, after)}

    def _assigned(self, fault: Fault, keys: jax.Array, chips: int) -> dict[str, Any]:
        """Rows of the crossbars for every chip, found on the host."""
        name = ("sample", fault.length, fault.share)
        if name not in self._calls:

            def sample(lrs: Any, hrs: Any, key: Any) -> lrk.State:
                own = fault._replace(lrs=lrs, hrs=hrs)
                return points.chip(self.net, own, jax.random.split(key, 3)[0])[1]

            self._calls[name] = jax.jit(sample)
        found: dict[str, np.ndarray] = {
            path: np.zeros((len(keys), rows), np.int32)
            for path, (rows, _) in methods.sides(self.net).items()
        }
        for i in range(chips):
            state: Any = self._calls[name](
                np.float32(fault.lrs), np.float32(fault.hrs), keys[i]
            )
            own = rram.assign(
                self._params,
                state,
                rram.OneSided(),
                self.importance,
                axes=self.net.axes,
            )
            for path, rows in own.rows.items():
                found[path][i] = np.asarray(rows)
        return found

    def _scores(self, healed: Mapping[str, Any], inputs: Inputs) -> Scores:
        """Accuracies of all ways over the same images, in one loop."""
        apply = lrk.lift(self.net.apply)
        x, y = inputs.scored
        size = min(self.options.scored, len(y))

        def body(i: Any, right: dict[str, Any]) -> dict[str, Any]:
            images = jax.lax.dynamic_slice_in_dim(x, i * size, size)
            labels = jax.lax.dynamic_slice_in_dim(y, i * size, size)
            return {
                name: right[name]
                + jnp.sum(
                    jnp.argmax(apply(tree, images), -1) == labels, dtype=jnp.int32
                )
                for name, tree in healed.items()
            }

        zero = {name: jnp.zeros((), jnp.int32) for name in healed}
        right = jax.lax.fori_loop(0, inputs.parts, body, zero)
        return {name: n / (inputs.parts * size) for name, n in right.items()}
