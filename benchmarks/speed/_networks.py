"""The mathematics that every contender runs: a transformer, and one layer.

A network is a loss in which each adapted weight is met as `linear(name, x)`, which
stands for `x W` with the weight of that name. A contender differs from the next one
only in what its `linear` does.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.stats import generator

Tree = Any
Linear = Callable[[str, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of the transformer.

    Attributes:
        layers: Number of blocks.
        width: Size of an activation.
        hidden: Size inside the feed-forward part.
        heads: Attention heads; they divide the width.
        batch: Sequences at a time.
        length: Tokens in a sequence.
        vocabulary: Different tokens.
        rank: Rank of the adapters.
    """

    layers: int = 6
    width: int = 384
    hidden: int = 1536
    heads: int = 6
    batch: int = 8
    length: int = 128
    vocabulary: int = 512
    rank: int = 8


@dataclasses.dataclass(frozen=True)
class Network:
    """A loss, its arrays, and factors for its kernels.

    Attributes:
        loss: `loss(linear, rest, probe, batch)`, a scalar.
        kernels: The adapted weights by name, `[in, out]`.
        factors: Values for `a: [in, r]` and `b: [r, out]` by name, neither zero.
        rest: Arrays that nobody trains.
        probe: What the loss is also differentiated in: the input of a layer. None for
            the transformer, whose first input is a table look-up.
        input: What stands for the probe where the gradient stops at the input.
        batch: Data.
        rank: Rank of the factors.
    """

    loss: Callable[[Linear, Tree, Tree, Tree], jax.Array]
    kernels: dict[str, jax.Array]
    factors: dict[str, dict[str, jax.Array]]
    rest: Tree
    probe: Tree
    input: jax.Array
    batch: Tree
    rank: int


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    """Returns float32 numbers that do not depend on the version of JAX."""
    return jnp.asarray(scale * generator(seed).standard_normal(shape), jnp.float32)


def _factors(
    kernels: dict[str, jax.Array], rank: int
) -> dict[str, dict[str, jax.Array]]:
    """Factors in the range that training gives them; `b` is not left at zero."""
    found = {}
    for i, (name, w) in enumerate(kernels.items()):
        *stack, n, m = w.shape
        found[name] = {
            "a": normal(2 * i + 10_000, *stack, n, rank, scale=n**-0.5),
            "b": normal(2 * i + 10_001, *stack, rank, m, scale=0.1 * m**-0.5),
        }
    return found


def layer_network(size: int, batch: int, length: int, rank: int) -> Network:
    """One layer `tanh(x W)` with `W: [size, size]`, on `x: [batch, length, size]`."""
    kernels = {"kernel": normal(1, size, size, scale=size**-0.5)}
    x = normal(2, batch, length, size)

    def loss(linear: Linear, rest: Tree, probe: Tree, batch: Tree) -> jax.Array:
        del rest
        return jnp.vdot(jnp.tanh(linear("kernel", probe)), batch)

    weights = normal(3, batch, length, size, scale=size**-0.5)
    return Network(loss, kernels, _factors(kernels, rank), {}, x, x, weights, rank)


def _shapes(sizes: Sizes) -> dict[str, tuple[int, int]]:
    """Sizes of the kernels of a block."""
    d, h = sizes.width, sizes.hidden
    square = {name: (d, d) for name in ("query", "key", "value", "out")}
    return square | {"up": (d, h), "down": (h, d)}


def _norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """Root mean square normalisation."""
    size = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
    return x * size * scale.reshape(1, 1, -1)


def _attention(q: jax.Array, k: jax.Array, v: jax.Array, heads: int) -> jax.Array:
    """Attention of every token to every token of its sequence."""
    b, s, d = q.shape
    q, k, v = (x.reshape(b, s, heads, d // heads) for x in (q, k, v))
    scores = jnp.einsum("bqhc,bkhc->bhqk", q, k) * (d // heads) ** -0.5
    mixed = jnp.einsum("bhqk,bkhc->bqhc", jax.nn.softmax(scores, axis=-1), v)
    return mixed.reshape(b, s, d)


def _block(linear: Linear, norms: Tree, x: jax.Array, heads: int) -> jax.Array:
    """One block: attention, then the feed-forward part."""
    h = _norm(x, norms["attention"])
    q, k, v = (linear(name, h) for name in ("query", "key", "value"))
    x = x + linear("out", _attention(q, k, v, heads))
    h = linear("up", _norm(x, norms["hidden"]))
    return x + linear("down", jax.nn.gelu(h))


def _rest(sizes: Sizes) -> Tree:
    """Embeddings, norms and the output layer: never adapted."""
    d = sizes.width
    return {
        "embedding": normal(4, sizes.vocabulary, d),
        "position": normal(5, 1, sizes.length, d),
        "norms": {
            name: jnp.ones((sizes.layers, d), jnp.float32)
            for name in ("attention", "hidden")
        },
        "head": normal(6, d, sizes.vocabulary, scale=d**-0.5),
    }


def _batch(sizes: Sizes) -> Tree:
    """Tokens and the classes to predict for each of them."""
    draw = generator(7)
    shape = (sizes.batch, sizes.length)
    return {
        name: jnp.asarray(draw.integers(sizes.vocabulary, size=shape), jnp.int32)
        for name in ("tokens", "labels")
    }


def _embed(rest: Tree, probe: Tree, batch: Tree) -> jax.Array:
    x = rest["embedding"][batch["tokens"]] + rest["position"]
    return x if probe is None else x + probe


def _cross_entropy(x: jax.Array, rest: Tree, batch: Tree) -> jax.Array:
    """Mean cross entropy of the predictions."""
    x = _norm(x, jnp.ones(x.shape[-1], x.dtype))
    log = jax.nn.log_softmax(x @ rest["head"], axis=-1)
    return -jnp.mean(jnp.take_along_axis(log, batch["labels"][..., None], axis=-1))


def transformer(sizes: Sizes) -> Network:
    """A transformer whose blocks are written one after another.

    Kernels are named `block0.query` and so on.
    """
    names = [
        (f"block{i}.{name}", shape)
        for i in range(sizes.layers)
        for name, shape in _shapes(sizes).items()
    ]
    kernels = {
        name: normal(100 + i, *shape, scale=shape[0] ** -0.5)
        for i, (name, shape) in enumerate(names)
    }

    def loss(linear: Linear, rest: Tree, probe: Tree, batch: Tree) -> jax.Array:
        x = _embed(rest, probe, batch)
        for i in range(sizes.layers):

            def own(name: str, h: jax.Array, i: int = i) -> jax.Array:
                return linear(f"block{i}.{name}", h)

            norms = {name: scale[i] for name, scale in rest["norms"].items()}
            x = _block(own, norms, x, sizes.heads)
        return _cross_entropy(x, rest, batch)

    factors, offset = _factors(kernels, sizes.rank), _offset(sizes)
    rest, batch = _rest(sizes), _batch(sizes)
    return Network(loss, kernels, factors, rest, None, offset, batch, sizes.rank)


def _offset(sizes: Sizes) -> jax.Array:
    """Zeros to add to the embedded tokens."""
    return jnp.zeros((sizes.batch, sizes.length, sizes.width), jnp.float32)


@dataclasses.dataclass(frozen=True)
class Scanned:
    """The transformer with its blocks in one scan, each recomputed going backward.

    Attributes:
        loss: `loss(linear, weights, rest, batch)`, where `linear(weight, x)` is told
            the slice of each entry of `weights` that belongs to its layer.
        kernels: Adapted weights by name, `[layers, in, out]`.
        factors: Values for the factors by name, each with the layers in front.
        rest: Arrays that nobody trains.
        batch: Data.
        rank: Rank of the factors.
    """

    loss: Callable[[Callable[[Tree, jax.Array], jax.Array], Tree, Tree, Tree], Any]
    kernels: dict[str, jax.Array]
    factors: dict[str, dict[str, jax.Array]]
    rest: Tree
    batch: Tree
    rank: int


def scanned_transformer(sizes: Sizes) -> Scanned:
    """The transformer as one `jax.checkpoint` block under `lax.scan`."""
    kernels = {
        name: normal(100 + i, sizes.layers, *shape, scale=shape[0] ** -0.5)
        for i, (name, shape) in enumerate(_shapes(sizes).items())
    }

    def loss(
        linear: Callable[[Tree, jax.Array], jax.Array],
        weights: Tree,
        rest: Tree,
        batch: Tree,
    ) -> jax.Array:
        @jax.checkpoint
        def block(x: jax.Array, own: Tree) -> tuple[jax.Array, None]:
            mine, norms = own

            def call(name: str, h: jax.Array) -> jax.Array:
                return linear(mine[name], h)

            return _block(call, norms, x, sizes.heads), None

        x = _embed(rest, None, batch)
        x, _ = jax.lax.scan(block, x, (weights, rest["norms"]))
        return _cross_entropy(x, rest, batch)

    factors = _factors(kernels, sizes.rank)
    return Scanned(loss, kernels, factors, _rest(sizes), _batch(sizes), sizes.rank)
