"""What a model pattern is, and the small tools that every row of the table uses."""

import dataclasses
import math
import string
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk

RANK = 2
SCALE = 0.7


class Axes(NamedTuple):
    """Which axes of a leaf each factor holds; `one_scale`: a scalar for a stack."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    one_scale: bool = False

    @property
    def stack(self) -> tuple[int, ...]:
        return tuple(d for d in self.a if d in self.b)


IN_OUT = Axes((0,), (1,))
OUT_IN = Axes((1,), (0,))
STACKED = Axes((0, 1), (0, 2))


class Factors(NamedTuple):
    """The numbers of one adapter."""

    a: jax.Array
    b: jax.Array
    scale: jax.Array


@dataclasses.dataclass(frozen=True)
class Pattern:
    """One unmodified model and the leaves of it that become operators.

    `build(seed)` gives `fn, params, args`; `hand(params, factors, *args)` is the same
    model with hand-written low-rank layers. `bound` is the largest allowed ratio of
    compiled FLOPs, lifted over materialised (None: not checked). `dtype` is the
    coarsest type in the model; `forward` asks for forward-mode derivatives;
    `batched` adds the check under `vmap` over three adapters.
    """

    name: str
    build: Callable[[int], tuple[Callable, Any, tuple]]
    adapt: Mapping[str, Axes]
    bound: float | None = 0.65
    hand: Callable | None = None
    dtype: str = "float32"
    forward: bool = False
    batched: bool = False
    returns_operator: bool = False
    nested: bool = False


def normal(seed: int, *shape: int, scale: float | None = None) -> np.ndarray:
    """Uncorrelated numbers of deviation `scale`, by default `1/sqrt(shape[-2])`.

    A hash in NumPy: random numbers of JAX would cost one compilation for each shape.
    """
    if scale is None:
        scale = 1 / math.sqrt(shape[-2])
    count = np.arange(math.prod(shape), dtype=np.float64) + 1e4 * (seed + 1)
    uniform = np.modf(np.abs(np.sin(12.9898 * count) * 43758.5453))[0]
    return (scale * math.sqrt(12) * (uniform - 0.5)).astype(np.float32).reshape(shape)


def integers(seed: int, limit: int, *shape: int) -> np.ndarray:
    """Numbers from 0 to `limit - 1`."""
    spread = limit * (0.5 + normal(seed, *shape, scale=1 / math.sqrt(12)))
    return np.minimum(spread.astype(np.int32), limit - 1)


def fill(seed: int, abstract: Any) -> Any:
    """Numbers in place of every abstract leaf: initialisers would be compiled."""

    def one(i: int, leaf: Any) -> Any:
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            return jax.random.split(jax.random.key(seed), leaf.shape)
        if not jnp.issubdtype(leaf.dtype, jnp.floating):
            return np.zeros(leaf.shape, leaf.dtype)
        if leaf.ndim < 2:
            return 1 + normal(seed + i, *leaf.shape, scale=0.1)
        fan_in = math.prod(leaf.shape[:-1])
        return normal(seed + i, *leaf.shape, scale=fan_in**-0.5)

    leaves, treedef = jax.tree.flatten(abstract)
    return jax.tree.unflatten(treedef, [one(i, v) for i, v in enumerate(leaves)])


def path_name(path: tuple) -> str:
    """`/`-joined path without the wrapper of a Flax variable."""
    names = [
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path
    ]
    return "/".join(names[:-1] if names and names[-1] == "value" else names)


def leaves_by_path(tree: Any) -> dict[str, Any]:
    """All leaves of a tree by their path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {path_name(path): leaf for path, leaf in flat}


def replace_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """The same tree with other leaves at some paths."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree)
    names = [path_name(path) for path, _ in flat]
    missing = set(new) - set(names)
    if missing:
        raise KeyError(f"no leaf at {sorted(missing)} among {names}")
    leaves = [new.get(n, leaf) for n, (_, leaf) in zip(names, flat, strict=True)]
    return jax.tree.unflatten(treedef, leaves)


def random_factors(
    seed: int, params: Any, adapt: Mapping[str, Axes]
) -> dict[str, Factors]:
    """Random factors of rank 2 for every adapted leaf: nothing is zero."""
    leaves = leaves_by_path(params)
    out = {}
    for i, (path, axes) in enumerate(adapt.items()):
        shape, stack = leaves[path].shape, len(axes.stack)
        a_shape = (*(shape[d] for d in axes.a), RANK)
        b_shape = [shape[d] for d in axes.b]
        b_shape.insert(stack, RANK)
        fan_in, fan_out = math.prod(a_shape[stack:-1]), math.prod(b_shape[stack + 1 :])
        scale = np.float32(SCALE)
        if stack and not axes.one_scale:
            sizes = [shape[d] for d in axes.stack]
            steps = np.linspace(0.5, 0.9, math.prod(sizes), dtype=np.float32)
            scale = steps.reshape(sizes)
        out[path] = Factors(
            normal(seed + 2 * i, *a_shape, scale=fan_in**-0.5),
            normal(seed + 2 * i + 1, *b_shape, scale=fan_out**-0.5),
            scale,
        )
    return out


def _is_default(axes: Axes, ndim: int) -> bool:
    stack, n_in = len(axes.stack), len(axes.a)
    a, b = range(n_in), (*range(stack), *range(n_in, ndim))
    return tuple(a) == axes.a and b == axes.b


def low_rank(w: Any, f: Factors, axes: Axes) -> Any:
    """The operator; the axes are named only where they cannot be inferred."""
    if _is_default(axes, len(axes.a) + len(axes.b) - len(axes.stack)):
        return lrk.LowRank(w, f.a, f.b, f.scale)
    return lrk.LowRank(w, f.a, f.b, f.scale, a_dims=axes.a, b_dims=axes.b)


def adapted(pattern: Pattern, params: Any, factors: Mapping[str, Factors]) -> Any:
    """`params` with operators at the adapted paths."""
    leaves = leaves_by_path(params)
    new = {}
    for path, axes in pattern.adapt.items():
        new[path] = low_rank(leaves[path], factors[path], axes)
        if pattern.nested:
            new[path] = low_rank(new[path], _second(factors[path]), axes)
    return replace_leaves(params, new)


def _second(f: Factors) -> Factors:
    """A second adapter made from the first one's numbers."""
    return Factors(jnp.flip(f.a, 0), jnp.sin(f.b), 0.5 * f.scale)


def dense_delta(f: Factors, axes: Axes) -> jax.Array:
    """`scale * a·b` in the layout of the weight, by one einsum: the oracle."""
    n = len(axes.a) + len(axes.b) - len(axes.stack)
    letters, stack = string.ascii_lowercase[:n], len(axes.stack)
    a = "".join(letters[d] for d in axes.a) + "z"
    b = [letters[d] for d in axes.b]
    b.insert(stack, "z")
    s = "".join(letters[d] for d in axes.stack)[: jnp.ndim(f.scale)]
    return jnp.einsum(f"{a},{''.join(b)},{s}->{letters}", f.a, f.b, f.scale)


def dense(pattern: Pattern, params: Any, factors: Mapping[str, Factors]) -> Any:
    """`params` with `w + scale * a·b` formed at the adapted paths."""
    leaves = leaves_by_path(params)
    new = {}
    for path, axes in pattern.adapt.items():
        new[path] = leaves[path] + dense_delta(factors[path], axes)
        if pattern.nested:
            new[path] = new[path] + dense_delta(_second(factors[path]), axes)
    return replace_leaves(params, new)


def skinny(x: jax.Array, f: Factors, n_in: int = 1) -> jax.Array:
    """`scale * x·a·b` on two axes, over the last `n_in` axes of `x`."""
    rows, out = x.shape[: x.ndim - n_in], f.b.shape[1:]
    flat = x.reshape(math.prod(rows), -1)
    a, b = f.a.reshape(flat.shape[1], -1), f.b.reshape(f.b.shape[0], -1)
    return ((flat @ (a * f.scale)) @ b).reshape(*rows, *out)
