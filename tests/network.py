"""The tree of parameters and the model that the laws run on."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lowrank as lrk

WIDTH, LAYERS, TOKENS = 32, 3, 48
STACKED = {"layers/kernel": lrk.Axes((0,), (1,), (2,))}
KERNELS = lrk.matching(r"kernel$")
BIASES = lrk.matching(r"bias$")


def floating(path: str, leaf: jax.ShapeDtypeStruct) -> bool:
    """Selects every leaf that could be trained."""
    del path
    return jnp.issubdtype(leaf.dtype, jnp.floating)


def numbers(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    """Numbers in (-scale, scale) without a pattern: a matrix of them has full rank."""
    count = np.arange(math.prod(shape), dtype=np.float64) + 1e4 * (seed + 1)
    hashed = np.modf(np.abs(np.sin(12.9898 * count) * 43758.5453))[0]
    return (scale * (2 * hashed - 1)).astype(np.float32).reshape(shape)


@functools.cache
def arrays() -> dict[str, jax.Array]:
    unit = (3 / WIDTH) ** 0.5
    return {
        "first": jnp.asarray(numbers(1, WIDTH, WIDTH, scale=unit)),
        "bias": jnp.asarray(numbers(2, WIDTH)),
        "second": jnp.asarray(numbers(3, WIDTH, WIDTH, scale=unit)),
        "layers": jnp.asarray(numbers(4, LAYERS, WIDTH, WIDTH, scale=unit)),
        "half": jnp.asarray(numbers(5, WIDTH, WIDTH, scale=unit), jnp.bfloat16),
        "scale": jnp.asarray(1 + numbers(6, WIDTH, scale=0.2)),
        "order": jnp.arange(WIDTH)[::-1],
        "x": jnp.asarray(numbers(7, TOKENS, WIDTH)),
    }


def tree() -> dict[str, Any]:
    """Two equal kernels, a bias, a bf16 kernel, a stack of layers, an integer leaf."""
    own = arrays()
    return {
        "first": {"kernel": own["first"], "bias": own["bias"]},
        "second": {"kernel": own["second"]},
        "layers": {"kernel": own["layers"]},
        "half": {"kernel": own["half"]},
        "norm": {"scale": own["scale"]},
        "order": own["order"],
    }


def with_images() -> dict[str, Any]:
    """The same tree with two equal kernels HWIO besides."""
    own = {name: numbers(7 + i, 2, 2, 8, 8) for i, name in enumerate(("up", "down"))}
    return tree() | {"image": {name: jnp.asarray(w) / 4 for name, w in own.items()}}


def model(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    """A network that uses every leaf; the bf16 branch leaves the others exact.

    Rows that a transform added beside the first two kernels join the hidden states.
    Where there are kernels of images, some tokens are read as such.
    """
    h = jnp.tanh(x @ params["first"]["kernel"] + params["first"]["bias"][None])
    h = _joined(h, params["first"])
    h = jnp.tanh(h @ params["second"]["kernel"]) * params["norm"]["scale"][None]
    h = _joined(h, params["second"])
    h, _ = lax.scan(lambda h, w: (jnp.tanh(h @ w), None), h, params["layers"]["kernel"])
    half = x.astype(jnp.bfloat16) @ params["half"]["kernel"]
    out = {"half": half, "main": h[:, params["order"]]}
    return out | {"image": _seen(params["image"], x)} if "image" in params else out


def _seen(kernels: Any, x: jax.Array) -> jax.Array:
    h = jnp.tanh(_convolved(x[:6].reshape(6, 2, 2, 8), kernels["up"]))
    return _convolved(h, kernels["down"])


def _convolved(x: jax.Array, kernel: Any) -> jax.Array:
    layout = ("NHWC", "HWIO", "NHWC")
    return lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=layout)


def _joined(h: jax.Array, layer: Any) -> jax.Array:
    rows = layer.get("prefix")
    return h if rows is None else h + jnp.tanh(rows).mean(0)[None]


def loss(out: dict[str, jax.Array]) -> jax.Array:
    """Quadratic, with another weight for every output."""
    total = jnp.zeros(())
    for leaf in out.values():
        flat = leaf.astype(jnp.float32).reshape(-1)
        total += jnp.sum(flat * (flat + np.linspace(-1, 2, flat.size, dtype="f4")))
    return total


def filled(tx: lrk.Transform, params: Any, seed: int = 9) -> lrk.State:
    """A state whose trainable leaves are plain numbers: nothing is drawn."""
    shapes = jax.eval_shape(tx.init, jax.random.key(0), params).trainable
    leaves, treedef = jax.tree.flatten(shapes)
    new = [jnp.asarray(numbers(seed + i, *x.shape)) for i, x in enumerate(leaves)]
    fixed = jax.jit(lambda params: tx.init(jax.random.key(0), params).fixed)(params)
    return lrk.State(jax.tree.unflatten(treedef, new), fixed)


def layer_products(w: Any, x: jax.Array, i: jax.Array) -> tuple[jax.Array, ...]:
    """Products of `x: [n, k]` with layers of `w: [l, k, a, b]`, reached in four ways.

    A scan over all, one batched product of all, layer 1, and layer `i`.
    """

    def one(w: Any) -> jax.Array:
        return jnp.einsum("nk,kab->nab", x, w)

    scanned = lax.scan(lambda c, w: (c, one(w)), 0, w)[1]
    return scanned, jnp.einsum("nk,lkab->lnab", x, w), one(w[1]), one(w[i])
