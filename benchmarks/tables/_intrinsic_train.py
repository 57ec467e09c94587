"""Training for the table of intrinsic dimension: one run is one compiled call."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lowrank as lrk
from benchmarks.chips.nets import lenet_apply
from benchmarks.data.images import mnist
from benchmarks.tables._intrinsic_plan import NETS
from lowrank.models import MLP, LeNet5, functional

Data = dict[str, Any]
SCORED = 1000  # images of a product when a net is scored


class Protocol(NamedTuple):
    """How a net is trained.

    Attributes:
        epochs: Rounds of all training images, each in an order of its own; the last
            images of a round that fill no batch are left out of it.
        batch: Images of a step.
        b2: Adam's second decay.
        l2: Factor of the sum of squares of all kernels of theta, no biases.
        every: Epochs between two scores on test images.
    """

    epochs: int
    batch: int
    b2: float
    l2: float
    every: int


class Model(NamedTuple):
    """A net: its function, and a tree with the shapes of its parameters."""

    apply: Callable[[Any, Any], jax.Array]
    params: dict[str, Any]


@functools.cache
def model(net: str, twin: bool) -> Model:
    """A net by name; the smaller twin is for made-up images."""
    own, rngs = NETS[net], nnx.Rngs(0)
    if not own.sizes:
        _, params = functional(LeNet5(rngs=rngs))
        return Model(lambda p, x: lenet_apply(p, x.reshape(-1, 28, 28, 1)), params)
    return Model(*functional(MLP(own.twin if twin else own.sizes, rngs=rngs)))


def start(key: jax.Array, params: Any) -> Any:
    """He-normal kernels and biases of zero, from one key."""
    draw = jax.nn.initializers.he_normal()
    leaves, treedef = jax.tree.flatten(params)
    fresh = [
        draw(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        if leaf.ndim > 1
        else jnp.zeros_like(leaf)
        for i, leaf in enumerate(leaves)
    ]
    return jax.tree.unflatten(treedef, fresh)


def load(synthetic: bool, train: int, test: int) -> Data:
    """The first training and test images: bytes `[n, 784]` and classes."""
    found = mnist(synthetic=synthetic)
    data = {}
    for name, split, count in (("x", found.train, train), ("tx", found.test, test)):
        own = split.take(slice(count))
        data[name] = jnp.asarray(own.x.reshape(len(own), -1))
        data[name.replace("x", "y")] = jnp.asarray(own.y, jnp.int32)
    return data


def shuffled_pixels(data: Data, seed: int) -> Data:
    """The same images with their pixels in one other order."""
    order = jax.random.permutation(jax.random.key(seed), data["x"].shape[1])
    return data | {name: data[name][:, order] for name in ("x", "tx")}


def random_labels(data: Data, count: int, seed: int) -> Data:
    """The first images with classes drawn at random; they are also what is scored."""
    y = jax.random.randint(jax.random.key(seed), (count,), 0, 10, jnp.int32)
    x = data["x"][:count]
    return {"x": x, "y": y, "tx": x, "ty": y}


def pixels(x: Any) -> jax.Array:
    """Bytes as numbers in [0, 1]."""
    return x.astype(jnp.float32) / 255


def accuracy(
    apply: Callable[[Any, Any], jax.Array], params: Any, x: Any, y: Any
) -> Any:
    """The share of images whose largest logit is their label's."""
    size = min(SCORED, len(y))
    count = -(-len(y) // size) * size
    # The first images again fill the last product up, and are not counted.
    at = np.arange(count) % len(y)
    rows = (at.reshape(-1, size), (np.arange(count) < len(y)).reshape(-1, size))

    def right(own: tuple[Any, Any]) -> jax.Array:
        guesses = jnp.argmax(apply(params, pixels(x[own[0]])), axis=-1)
        return jnp.sum((guesses == y[own[0]]) & own[1], dtype=jnp.int32)

    return jnp.sum(jax.lax.map(right, jax.tree.map(jnp.asarray, rows))) / len(y)


def trainer(net: Model, protocol: Protocol) -> Callable[..., Any]:
    """A function to give to `lrk.subspace.trial`: all epochs in one loop."""

    def train(place: Any, first: Any, rate: Any, key: jax.Array, data: Data) -> Any:
        tx = optax.adam(rate, b2=protocol.b2)
        count, size = len(data["y"]), min(protocol.batch, len(data["y"]))
        steps = count // size

        def loss(trained: Any, rows: Any) -> Any:
            params = lrk.materialize(place(trained))
            logits = net.apply(params, pixels(data["x"][rows]))
            own = optax.softmax_cross_entropy_with_integer_labels(
                logits, data["y"][rows]
            ).mean()
            kernels = [x for x in jax.tree.leaves(params) if x.ndim > 1]
            return own + protocol.l2 * sum(jnp.sum(jnp.square(x)) for x in kernels), own

        def step(carry: Any, rows: Any) -> Any:
            trained, memory = carry
            grads, own = jax.grad(loss, has_aux=True)(trained, rows)
            updates, memory = tx.update(grads, memory, trained)
            return (optax.apply_updates(trained, updates), memory), own

        def epoch(carry: Any, number: Any) -> Any:
            order = jax.random.permutation(jax.random.fold_in(key, number), count)
            carry, losses = jax.lax.scan(
                step, carry, order[: steps * size].reshape(steps, size)
            )
            due = (number + 1) % protocol.every == 0
            due |= number == protocol.epochs - 1
            score = jax.lax.cond(
                due,
                lambda z: scored(net, place, z, data["tx"], data["ty"]),
                lambda _: jnp.float32(jnp.nan),
                carry[0],
            )
            return carry, (losses.mean(), score)

        memory = tx.init(first)
        (trained, _), (losses, tests) = jax.lax.scan(
            epoch, (first, memory), jnp.arange(protocol.epochs)
        )
        fitted = scored(net, place, trained, data["x"], data["y"])
        return {"loss": losses, "test": tests, "train": fitted}, trained

    return train


def scored(net: Model, place: Any, trained: Any, x: Any, y: Any) -> Any:
    """Accuracy of trained numbers."""
    return accuracy(net.apply, lrk.materialize(place(trained)), x, y)


def quantised_scorer(net: Model) -> Callable[..., Any]:
    """A function for `trial` that trains nothing: it scores the rows of `data["z"]`."""

    def score(place: Any, first: Any, rate: Any, key: jax.Array, data: Data) -> Any:
        del first, rate, key

        def one(z: jax.Array) -> Any:
            trained = {"subspace": {"z": z}}
            pairs = (("train", "x", "y"), ("test", "tx", "ty"))
            return {
                name: scored(net, place, trained, data[x], data[y])
                for name, x, y in pairs
            }

        return jax.lax.map(one, data["z"])

    return score


def direct(train: Callable[..., Any]) -> Callable[..., Any]:
    """The same function of `(params, d, rate, key, data)` that trains all weights."""

    def run(params: Any, d: Any, rate: Any, key: jax.Array, data: Data) -> Any:
        del d
        first, _, order = jax.random.split(key, 3)  # as `trial` does
        found, _ = train(lambda p: p, start(first, params), rate, order, data)
        return found, {"subspace": {"z": jnp.zeros(1)}}

    return run


def program(
    net: Model, protocol: Protocol, projection: str | None, largest: int
) -> Any:
    """The jitted `run(params, d, rate, seed, data)`; no projection: all weights."""
    train = trainer(net, protocol)
    run = direct(train)
    if projection is not None:
        run = subspace_run(train, projection, largest)
    return jax.jit(
        lambda params, d, rate, seed, data: run(
            params, d, rate, jax.random.key(seed), data
        )
    )


def subspace_run(
    train: Callable[..., Any], projection: str, largest: int
) -> Callable[..., Any]:
    """A run in a subspace of at most `largest` dimensions."""
    own = getattr(lrk.subspace, projection)()
    run = lrk.subspace.trial(train, own, largest, start=start)
    if own.nested:
        return run

    def fixed(params: Any, d: Any, rate: Any, key: jax.Array, data: Data) -> Any:
        del d  # a program of its own for each
        return run(params, largest, rate, key, data)

    return fixed


# The toy problem

TOY = {"entries": 1000, "blocks": 10}


def toy(place: Any, first: Any, rate: Any, key: jax.Array, data: Any) -> Any:
    """`exp(-loss)` at the optimum: blocks of entries must sum to 1, 2, ...

    The loss is a sum of squares of functions that are linear in `z`, so one step of
    Gauss and Newton, with the least of all solutions, ends at its smallest value.
    """
    del rate, key

    def gaps(z: jax.Array) -> jax.Array:
        theta = lrk.materialize(place({"subspace": {"z": z}}))["theta"]
        return theta.reshape(TOY["blocks"], -1).sum(axis=1) - data

    z = first["subspace"]["z"]
    solved = z - jnp.linalg.pinv(jax.jacobian(gaps)(z)) @ gaps(z)
    return jnp.exp(-jnp.sum(jnp.square(gaps(solved))))


def toy_sweep(ds: Any, seeds: Any, log: Any = None) -> Any:
    """The sweep of the toy problem, with the dense projection."""
    params = {"theta": jnp.zeros(TOY["entries"])}
    wanted = jnp.arange(1.0, TOY["blocks"] + 1)
    return lrk.subspace.sweep(
        toy, params, lrk.subspace.dense(), ds, rates=[1.0], seeds=seeds, data=wanted,
        log=log,
    )  # fmt: skip


def vector(trained: Mapping[str, Any], d: int) -> np.ndarray:
    """The trained numbers in use."""
    return np.asarray(trained["subspace"]["z"])[:d]
