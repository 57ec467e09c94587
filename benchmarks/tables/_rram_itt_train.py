"""Heals all chips of a point in one jitted call, and scores them."""

import collections
import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.chips import nets
from benchmarks.stats import generator
from benchmarks.tables import _rram_itt_chips as chips
from benchmarks.tables import _rram_itt_lenet
from benchmarks.tables._rram_itt_chips import Layout, Numbers
from benchmarks.tables._rram_itt_plan import Recipe
from lowrank import rram

Tree = Any


class Options(NamedTuple):
    """What the parts of ITT are run with; the paper states none of it.

    Attributes:
        spare: Rows of each crossbar of a dense layer beyond those of the weight.
        conv_spare: The same for convolutions.
        tolerance: A weight is afflicted if it comes out wrong by more than this share
            of its column's largest magnitude.
        freeze: Share of the afflicted weights that end up reduced to zero and frozen.
        penalty: Weight of the penalty on what comes out wrong.
        device_steps: Steps on the device, taken from the same total.
        device_rate: Learning rate of those, which are plain gradient descent.
        staged: Share of the steps before those that go layer by layer.
        importance: Training images that the importance of weights is measured on.
    """

    spare: int
    conv_spare: int
    tolerance: float
    freeze: float
    penalty: float
    device_steps: int
    device_rate: float
    staged: float
    importance: int


class Given(NamedTuple):
    """What a call reads: arguments, not constants, so that nothing is folded in.

    Attributes:
        params: The net's weights.
        order: Importance of each weight, for the order of freezing.
        weight: Importance of each weight's error, for assignment, flips and penalty.
        batches: Images and labels of every step, `[steps, batch, ...]`.
        images: Images to score.
        labels: Their labels.
    """

    params: Tree
    order: Mapping[str, Any]
    weight: Mapping[str, Any]
    batches: tuple[Any, Any]
    images: Any
    labels: Any


class Lab:
    """A net with its data, and one compiled call for each recipe."""

    def __init__(
        self, net: nets.Net, options: Options, *, seed: int, valid: int, test: int
    ) -> None:
        """Measures the importance of every weight, once."""
        net = net._replace(params=jax.tree.map(jnp.asarray, net.params))
        if net.name.startswith("lenet"):
            net = net._replace(apply=_rram_itt_lenet.apply)
        self.net, self.options, self.seed = net, options, seed
        self.layout: Layout = chips.layout(
            net.params, net.axes, options.spare, options.conv_spare
        )
        self.splits = {
            "valid": tuple(x[:valid] for x in net.valid),
            "test": tuple(x[:test] for x in net.test),
        }
        self._order, self._weight = self._importance()
        self._calls: dict[Recipe, Callable[..., Any]] = {}
        self.traces: collections.Counter[Recipe] = collections.Counter()
        self._draw = jax.jit(functools.partial(chips.sampled, self.layout))
        self._score = jax.jit(functools.partial(nets.accuracy, net.apply))

    def clean(self, split: str) -> float:
        """Accuracy of the net as it is, on no chip."""
        return float(self._score(self.net.params, *self.splits[split]))

    def keys(self, kind: str, count: int) -> jax.Array:
        """Keys of chips: of those that are reported, that choices see, of budgets."""
        start = jax.random.key(self.seed)
        own = jax.random.fold_in(start, {"test": 1, "valid": 2, "budget": 3}[kind])
        return jax.vmap(lambda i: jax.random.fold_in(own, i))(jnp.arange(count))

    def batches(self, steps: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
        """The same batches for all chips and methods, in the order of the seed."""
        x, y = self.net.train
        draws, rounds = generator(self.seed), -(-steps * batch // len(y))
        order = np.concatenate([draws.permutation(len(y)) for _ in range(rounds)])
        taken = order[: steps * batch].reshape(steps, batch)
        return x[taken], y[taken]

    def given(self, batches: tuple[Any, Any], split: str) -> Given:
        """What a call reads, with the images of one split to score."""
        scored = self.splits[split]
        return Given(self.net.params, self._order, self._weight, batches, *scored)

    def assign(self, numbers: Numbers, key: jax.Array) -> tuple[dict[str, Any], float]:
        """Assigns the rows of one chip on the host; also returns the seconds of it."""
        chip = jax.block_until_ready(self._draw(numbers, key))
        found = rram.assign(
            self.layout.matrices(self.net.params),
            chip,
            chips.SCHEME,
            self.layout.matrices(self._weight),
            spare=self.layout.spare,
        )
        return {p: np.asarray(r) for p, r in found.rows.items()}, found.seconds

    def heal(
        self,
        recipe: Recipe,
        numbers: Numbers,
        keys: jax.Array,
        rows: Mapping[str, Any],
        given: Given,
        rate: float,
    ) -> dict[str, np.ndarray]:
        """Heals and scores chips, one after another in one compiled call.

        Returns:
            By name, arrays with an entry for each chip: `accuracy`, and for trained
            recipes `losses` `[chips, steps]` and cells `written` on the device.
        """
        if recipe not in self._calls:
            self._calls[recipe] = jax.jit(functools.partial(self._all, recipe))
        traced = Numbers(*(np.float32(n) for n in numbers))
        found = self._calls[recipe](traced, keys, rows, given, np.float32(rate))
        return {name: np.asarray(value) for name, value in found.items()}

    def _all(
        self,
        recipe: Recipe,
        numbers: Numbers,
        keys: jax.Array,
        rows: Mapping[str, Any],
        given: Given,
        rate: Any,
    ) -> dict[str, jax.Array]:
        self.traces[recipe] += 1
        one = functools.partial(self._one, recipe, numbers, given, rate)
        return jax.lax.map(lambda chip: one(*chip), (keys, rows))

    def _one(
        self,
        recipe: Recipe,
        numbers: Numbers,
        given: Given,
        rate: Any,
        key: jax.Array,
        rows: Mapping[str, Any],
    ) -> dict[str, jax.Array]:
        """One chip: sampled, seated, healed, scored."""
        chip = self.chip(recipe, numbers, given, key, rows)
        deploy = self.deployment(recipe, numbers, chip)
        found: dict[str, jax.Array] = {}
        params = self.programmed(recipe, deploy, given)
        if recipe.trained:
            params, found = self._trained(recipe, numbers, chip, given, params, rate)
        score = nets.accuracy(
            self.net.apply, deploy(params), given.images, given.labels
        )
        return {"accuracy": score, **found}

    def programmed(
        self, recipe: Recipe, deploy: Callable[[Tree], Tree], given: Given
    ) -> Tree:
        """What is programmed before anything is trained."""
        if not recipe.mapped:
            return given.params
        own = {"select": chips.on_chip, "axes": self.layout.axes}
        return rram.compensated(given.params, deploy, **own)

    def chip(
        self,
        recipe: Recipe,
        numbers: Numbers,
        given: Given,
        key: jax.Array,
        rows: Mapping[str, Any],
    ) -> lrk.State:
        """A chip, seated under the net; columns turned where that errs less."""
        chip = chips.seated(chips.sampled(self.layout, numbers, key), rows)
        if not recipe.flipped:
            return chip
        signs = rram.choose_flips(
            given.params, chip, chips.SCHEME, given.weight, axes=self.layout.axes
        )
        still = {p: jnp.arange(rows) for p, (rows, _) in self.layout.shapes.items()}
        return chips.seated(chip, still, signs)

    def deployment(
        self, recipe: Recipe, numbers: Numbers, chip: lrk.State
    ) -> Callable[[Tree], Tree]:
        """What weights become on a chip, as a function of the weights."""
        tx, axes = self.layout.transform(numbers), self.layout.axes

        def deploy(params: Tree) -> Tree:
            if not recipe.pruned:
                return tx.apply(params, chip)
            wanted = rram.fault_pruned(params, chip, axes=axes)
            return rram.fault_pruned(tx.apply(wanted, chip), chip, axes=axes)

        return deploy

    def loss(self, params: Tree, batch: tuple[Any, Any]) -> jax.Array:
        """Mean cross-entropy of a batch."""
        logits = self.net.apply(params, batch[0])
        own = optax.softmax_cross_entropy_with_integer_labels(logits, batch[1])
        return own.mean()

    def _trained(
        self,
        recipe: Recipe,
        numbers: Numbers,
        chip: lrk.State,
        given: Given,
        params: Tree,
        rate: Any,
    ) -> tuple[Tree, dict[str, jax.Array]]:
        """The weights retrained through the map, then a few steps on the device."""
        steps = len(given.batches[0])
        late = min(self.options.device_steps, steps // 2) if recipe.on_device else 0
        early = jax.tree.map(lambda x: x[: steps - late], given.batches)
        deploy, start = self.deployment(recipe, numbers, chip), params
        losses = []
        first = self._staged(len(early[1])) if recipe.staged else 0
        if first:
            params, own = rram.retrain(
                self.loss,
                params,
                deploy,
                jax.tree.map(lambda x: x[:first], early),
                optax.adam(rate),
                stages=self.layout.stages,
            )
            losses.append(own)
        count = steps - late - first
        more = self.parts(recipe, deploy, chip, given, start, count)
        params, own = rram.retrain(
            self.loss,
            params,
            deploy,
            jax.tree.map(lambda x: x[first:], early),
            optax.adam(optax.cosine_decay_schedule(rate, count)),
            **more,
        )
        losses.append(own)
        written = jnp.zeros((), jnp.int32)
        if late:
            done = rram.on_device(
                self.loss,
                params,
                self.layout.transform(numbers),
                chip,
                jax.tree.map(lambda x: x[steps - late :], given.batches),
                optax.sgd(self.options.device_rate),
                cells=rram.programmed(chips.device(numbers), axes=self.layout.axes),
                mask=_free(more, count),
            )
            params, written = done.params, done.writes.sum()
            losses.append(done.losses)
        return params, {"losses": jnp.concatenate(losses), "written": written}

    def _staged(self, steps: int) -> int:
        """How many of the steps go layer by layer: each layer has one at least."""
        layers = len(self.layout.stages)
        return min(max(int(self.options.staged * steps), layers + 1), steps - 1)

    def parts(
        self,
        recipe: Recipe,
        deploy: Callable[[Tree], Tree],
        chip: lrk.State,
        given: Given,
        start: Tree,
        steps: int,
    ) -> dict[str, Any]:
        """The parts of a method that act in retraining, as arguments of `retrain`."""
        own = {"select": chips.on_chip, "axes": self.layout.axes}
        more: dict[str, Any] = {}
        if recipe.pruned:
            more["mask"] = rram.fault_free(given.params, chip, axes=self.layout.axes)
        if recipe.freezing:
            deployed, bound = deploy(start), self.options.tolerance
            bad = rram.afflicted(given.params, deployed, tolerance=bound, **own)
            count = sum(jnp.sum(x, dtype=jnp.float32) for x in bad.values())
            more["order"] = rram.freeze_order(given.order, bad)
            more["per_step"] = self.options.freeze * count / steps
            more["target"] = rram.reduced(given.params, deploy, **own)
        if recipe.penalised:
            more |= {"penalty": self.options.penalty, "importance": given.weight}
        return more

    def _importance(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Magnitude times gradient; and the Fisher diagonal, over its mean by leaf.

        The first orders weights for freezing. The second weighs a weight's error, in
        the assignment, the flips and the penalty: `|w g|` would hold an error at a
        weight of zero to be free.
        """
        x, y = (part[: self.options.importance] for part in self.net.train)
        slope = jax.jit(jax.grad(self.loss))(self.net.params, (x, y))
        order = rram.importance(self.net.params, slope, select=chips.on_chip)
        size = min(128, len(y))
        whole = len(y) // size * size
        pairs = [(x[i : i + size], y[i : i + size]) for i in range(0, whole, size)]
        found = lrk.merging.fisher_diagonal(
            self.net.apply, self.net.params, pairs, select=chips.on_chip
        )
        weight = {p: f / jnp.maximum(jnp.mean(f), 1e-30) for p, f in found.items()}
        return dict(order), weight


def _free(more: Mapping[str, Any], steps: int) -> dict[str, Any] | None:
    """What frozen weights leave to be trained on the device; None: everything."""
    if "order" not in more:
        return None
    held = rram.frozen(more["order"], steps * more["per_step"])
    return {path: ~hold for path, hold in held.items()}
