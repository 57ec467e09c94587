"""Ways to train few numbers of a net: one compiled loop serves all their sizes.

A way is a transform at its largest size, and what it keeps of it at a smaller one: the
first `d` numbers of a subspace, the first `r` columns of an adapter. Smaller sizes are
gradients multiplied by 0, so that what differs between runs is arrays only: weights,
size, rate, seed. A nested projection has the subspace of `d` numbers within that of the
largest, and a `z` whose gradient is zero stays at zero.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.study.methods import SCALE
from benchmarks.study.train import OPTIMIZER, batches, schedule
from lowrank.subspace import Projection

TUNING_SEED = 1000  # of the runs that choose a learning rate
SUBSPACE, HEAD = "subspace", "head"
Select = Callable[[str, Any], bool]
Params = Mapping[str, Any]


class Way(NamedTuple):
    """A way to train a net.

    Attributes:
        title: What tables call it.
        make: `make(largest)`: the transform at the largest size.
        keep: `keep(trainable, size)`: 1 where a number of that size is trained, else 0,
            in the form of the trainable; the size may be traced.
        full: Whether its rates are those of all weights.
    """

    title: str
    make: Callable[[int], lrk.Transform]
    keep: Callable[[Any, Any], Any]
    full: bool = False


class Problem(NamedTuple):
    """What is learnt.

    Attributes:
        loss: `loss(params, data, rows)`: the mean loss of some examples.
        data: Arrays that the loss reads.
        number: How many training examples there are.
    """

    loss: Callable[[Any, Any, Any], jax.Array]
    data: Any
    number: int


def subspace_rates(moves: Sequence[float], total: int, size: int) -> tuple[float, ...]:
    """Learning rates at which a step moves weights as far for every size.

    Adam moves each of `d` numbers by about the rate; columns have norm 1, so that the
    `D` weights move by `rate sqrt(d / D)` each, as a root mean square.
    """
    return tuple(move * (total / size) ** 0.5 for move in moves)


class Plan(NamedTuple):
    """How long a run is: steps, examples of a step."""

    steps: int
    batch: int


def every(trainable: Any, size: Any) -> Any:
    """Keeps all numbers."""
    del size
    return jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), trainable)


def _first(number: int, kept: Any) -> jax.Array:
    return (jnp.arange(number) < kept).astype(jnp.float32)


def _subspace(trainable: Any, size: Any) -> Any:
    """The first numbers of `z`; scales of groups count, and are all trained."""
    own = trainable[SUBSPACE]
    scales = {name: jnp.ones_like(x) for name, x in own.items() if name != "z"}
    rest = size - sum(x.size for x in scales.values())
    return {SUBSPACE: {"z": _first(own["z"].shape[0], rest), **scales}}


def _columns(trainable: Any, size: Any) -> Any:
    """The first columns of an adapter, and all that a chain trains beside it."""
    parts = trainable if isinstance(trainable, tuple) else (trainable,)
    factors = {
        path: {
            "a": jnp.ones_like(own["a"]) * _first(own["a"].shape[-1], size)[None],
            "b": jnp.ones_like(own["b"]) * _first(own["b"].shape[-2], size)[:, None],
        }
        for path, own in parts[0].items()
    }
    found = (factors, *(every(part, size) for part in parts[1:]))
    return found if isinstance(trainable, tuple) else factors


def everything(path: str, leaf: Any) -> bool:
    """Selects every leaf."""
    del path, leaf
    return True


def did(projection: Projection, select: Select = everything) -> Way:
    """DID: a random subspace of all weights, or of those that are selected."""

    def make(largest: int) -> lrk.Transform:
        return lrk.subspace.random(largest, projection, select=select)

    return Way("DID", make, _subspace)


def said(projection: Projection, groups: Callable[[str], str]) -> Way:
    """SAID: the same with a trained scale for each group of leaves."""

    def make(largest: int) -> lrk.Transform:
        return lrk.subspace.structured(largest, projection, groups=groups)

    return Way("SAID", make, _subspace)


def lora(select: Select, head: Select | None) -> Way:
    """LoRA of the selected kernels, and all of the head if there is one."""

    def make(largest: int) -> lrk.Transform:
        own = lrk.lora(largest, alpha=SCALE * largest, select=select)
        return own if head is None else lrk.chain(own, lrk.full(select=head))

    return Way("LoRA", make, _columns)


def part(title: str, select: Select) -> Way:
    """Some leaves, all of whose numbers are trained."""
    return Way(title, lambda _: lrk.full(select=select), every, full=True)


class Runner:
    """Compiles a way once and trains it with any weights, size, rate and seed."""

    def __init__(self, ways: Mapping[str, Way], largest: Mapping[str, int]) -> None:
        """Takes the ways by name, and the largest size of each."""
        self.ways, self.largest = ways, largest
        self._programs: dict[Any, Any] = {}

    def train(
        self,
        name: str,
        problem: Problem,
        plan: Plan,
        params: Params,
        *,
        size: int,
        rate: float,
        seed: int,
        head: float | None = None,
    ) -> tuple[Params, np.ndarray]:
        """One run.

        Args:
            name: The way.
            problem: What is learnt; its loss is one of few functions.
            plan: How long.
            params: The weights that the run starts from.
            size: How many numbers, or ranks; at most the way's largest.
            rate: Peak learning rate.
            seed: Of the projection or factors, and of the order of examples.
            head: Peak learning rate of the head, where it trains as a whole; None:
                that of all else.

        Returns:
            Plain weights, and the loss of each step.
        """
        key = (name, problem.loss)
        if key not in self._programs:
            self._programs[key] = jax.jit(self._program(name, problem.loss))
        order = batches(problem.number, plan.steps, plan.batch, seed)
        given = {
            "data": problem.data,
            "order": jnp.asarray(order),
            "shares": jnp.asarray(schedule(plan.steps), jnp.float32),
            "size": jnp.int32(size),
            "head": jnp.float32(rate if head is None else head),
        }
        moved, losses = self._programs[key](
            params, np.float32(rate), np.uint32(seed), given
        )
        return moved, np.asarray(losses)

    def trained(self, name: str, params: Params, size: int) -> int:
        """How many numbers a size trains."""
        own = self.ways[name]
        tx = own.make(self.largest[name])
        shapes = jax.eval_shape(tx.init, jax.random.key(0), params).trainable
        kept = jax.jit(lambda: own.keep(_zeros(shapes), size))()
        return sum(int(np.sum(np.asarray(x) != 0)) for x in jax.tree.leaves(kept))

    def _program(self, name: str, loss: Any) -> Any:
        """`run(params, rate, seed, given)`, by `lrk.subspace.trial`."""
        own, largest = self.ways[name], self.largest[name]
        tx = own.make(largest)
        once = lrk.subspace.trial(_trainer(loss, own), lambda _: tx, largest)

        def run(params: Any, rate: Any, seed: Any, given: Any) -> Any:
            return once(params, largest, rate, jax.random.key(seed), given)

        return run


def _zeros(shapes: Any) -> Any:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)


def _of_head(path: Sequence[Any]) -> bool:
    """Whether a trained array is a leaf of the head itself."""
    names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
    return str(names[0]).startswith(f"{HEAD}/")


def _trainer(loss: Any, way: Way) -> Callable[..., Any]:
    """What `trial` is given: all steps in one loop, and the weights at its end."""

    def train(place: Any, first: Any, rate: Any, key: Any, given: Any) -> Any:
        del key  # the order of examples is given
        kept = way.keep(first, given["size"])

        def mean(trained: Any, rows: Any) -> jax.Array:
            return lrk.lift(loss)(place(trained), given["data"], rows)

        def step(carry: Any, now: Any) -> Any:
            trained, memory = carry
            rows, share = now
            value, slope = jax.value_and_grad(mean)(trained, rows)
            slope = jax.tree.map(lambda g, k: g * k, slope, kept)
            update, memory = OPTIMIZER.update(slope, memory)

            def moved(path: Any, x: Any, u: Any) -> jax.Array:
                own = given["head"] if _of_head(path) else rate
                return x - own * share * u

            trained = jax.tree_util.tree_map_with_path(moved, trained, update)
            return (trained, memory), value

        memory = OPTIMIZER.init(first)
        now = (given["order"], given["shares"])
        (trained, _), losses = jax.lax.scan(step, (first, memory), now)
        return lrk.materialize(place(trained)), losses

    return train


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over examples, in nats."""
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()
