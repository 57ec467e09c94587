"""LoRA-LEGO: rank-one units of all adapters, clustered into a new adapter."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank import _tree
from lowrank._base import Array, Path, PyTree
from lowrank.merging._common import check_number
from lowrank.merging._factors import Layout, Matrices, assemble
from lowrank.merging._pieces import check_key
from lowrank.merging._svd import check_rank
from lowrank.merging._terms import Weighted, rooted, weighted


def lego(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    rank: int,
    key: Array,
    iterations: int = 20,
    scale: Any = None,
) -> PyTree:
    """LoRA-LEGO: cluster the rank-one units of adapters, keep one for each cluster.

    An adapter of rank `r` is a sum of `r` units `a_i b_i`. At each leaf the units of
    all trees, each as one vector `(a_i, b_i)` of `n + m` numbers with
    `sqrt(w_t s_t)` multiplied in on both sides, go into `k` clusters by k-means. A
    cluster `C` gives one unit: its mean `c`, brought to the mean length of its members,
    `c * mean_i |u_i| / |c|` (against the decay of norms in a mean); and the new adapter
    of rank `k` is multiplied by `sqrt(r / k)` (against the growth of its variance).
    Plain deltas are summed.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. Where `w_t s_t < 0`, `a_i` gets the sign. May be traced.
        rank: Number of clusters `k`, at least 1. With as many as there are units, or
            more, each unit is its own cluster.
        key: A random key for the start of k-means; each leaf has its own draw.
        iterations: Steps of Lloyd's algorithm, at least 1.
        scale: What the new adapter is multiplied by, instead of `sqrt(r / k)`, where
            `r` is the mean rank of the trees that adapt the leaf. May be traced.

    Returns:
        One adapted tree over the same base, of rank `k`, in float32 or wider. With
        `scale=1.0` and as many clusters as units it is the exact weighted sum.

    Raises:
        TypeError: If `trees` is no list, `rank` or `iterations` no int, or `key` no
            random key.
        ValueError: If `rank < 1` or `iterations < 1`, the bases differ, a term is
            neither low-rank nor a plain delta, factors of a leaf hold different axes,
            or the weights or `scale` do not fit.

    Example:
        >>> params, tx = {"w": jnp.ones((6, 5))}, lrk.lora(2)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> trees = [tx.apply(params, tx.init(key, params)) for key in keys]
        >>> merged = lrk.merging.lego(trees, rank=3, key=jax.random.key(2))
        >>> merged["w"].rank
        3

    Notes:
        The order of units within an adapter, or of the trees, does not matter: k-means
        starts by k-means++ on the units in an order of their own. A cluster that ends
        up empty adds nothing. Gradients are those of the means, the clusters held.

        The units, the clustering and that there are two such reweightings follow the
        paper's abstract and summary. The two formulas are our reading of it, and were
        compared neither with the paper's equations nor with the authors' code. For
        equal scales and weights one, units differ from the plain rows of the factors by
        one number for all, which changes no cluster. Weights, unequal scales and
        unequal ranks are ours.

        What a unit is depends on how an adapter is factored: `(2 a_i)(b_i / 2)` is
        another point to k-means, and so is `(-a_i)(-b_i)`.

    References:
        Zhao et al., Merging LoRAs like Playing LEGO, ICLR 2025, arXiv:2409.16167.
        Arthur and Vassilvitskii, k-means++, 2007: section 2.2.
    """
    check_rank("lego", rank)
    if not isinstance(iterations, int):
        raise TypeError(f"lego: expected an int as iterations, got {iterations!r}.")
    if iterations < 1:
        raise ValueError(f"lego: iterations must be at least 1, got {iterations}.")
    check_key("lego", key)
    if scale is not None:
        check_number("lego", "scale", scale)
    leaves = weighted("lego", trees, weights)
    merged: dict[Path, Any] = {}
    for path, leaf in leaves.items():
        mine = _tree.leaf_key(jnp.asarray(key), path)
        merged[path] = _merge(leaf, mine, rank, iterations, scale)
    return assemble("lego", trees[0], merged)


def k_means(key: Array, x: Array, number: int, iterations: int) -> Array:
    """Cluster the rows of `[N, d]`: Lloyd's algorithm from a k-means++ start.

    Returns:
        For each row its cluster, `[N]`, in `range(number)`. It depends on the key and
        on the set of rows, not on their order.
    """
    for_order, for_start = jax.random.split(key)
    order = jnp.argsort(x @ jax.random.normal(for_order, x.shape[-1:], x.dtype))
    rows = x[order]

    def pick(nearest: Array, key: Array) -> tuple[Array, Array]:
        odds = jnp.where(jnp.isinf(nearest), 0, jnp.log(nearest))
        row = rows[jax.random.categorical(key, odds)]
        far = jnp.sum(jnp.square(rows - row[None]), axis=-1)
        return jnp.minimum(nearest, far), row

    def step(_: Any, centres: Array) -> Array:
        count, means = _means(rows, _nearest(rows, centres), number)
        return jnp.where(count[:, None] > 0, means, centres)

    unknown = jnp.full(x.shape[:1], jnp.inf, x.dtype)
    _, centres = lax.scan(pick, unknown, jax.random.split(for_start, number))
    centres = lax.fori_loop(0, iterations, step, centres)
    return _nearest(x, centres)


def centroids(x: Array, clusters: Array, number: int) -> Array:
    """For each cluster the mean of its rows at their mean length, `[number, d]`."""
    _, means = _means(x, clusters, number)
    _, lengths = _means(_length(x), clusters, number)
    own = _length(means)
    return means * jnp.where(own == 0, 0, lengths / jnp.where(own == 0, 1, own))


def _nearest(x: Array, centres: Array) -> Array:
    """The nearest centre of each row; rows times centres, never their differences."""
    far = jnp.sum(jnp.square(centres), axis=-1)[None] - 2 * x @ centres.T
    return jnp.argmin(far, axis=-1)


def _means(x: Array, clusters: Array, number: int) -> tuple[Array, Array]:
    """How many rows each cluster has, and their mean; zero without any."""
    member = jax.nn.one_hot(clusters, number, axis=0, dtype=x.dtype)
    count = jnp.sum(member, axis=-1)
    return count, member @ x / jnp.maximum(count, 1)[:, None]


def _length(x: Array) -> Array:
    """Length of each row, `[N, 1]`, with a derivative of zero at zero."""
    square = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    null = square == 0
    return jnp.where(null, 0, jnp.sqrt(jnp.where(null, 1, square)))


def _units(layout: Layout, leaf: Weighted) -> Array:
    """The units of all trees at one leaf, `[*stack, R, n + m]`."""
    stack, found = layout.sizes(layout.stack), []
    for w, term in leaf.pairs():
        a, b = rooted(w, term)
        a = jnp.matrix_transpose(a.reshape(*stack, -1, term.rank))
        b = b.reshape(*stack, term.rank, -1)
        unit = jnp.concatenate([a, b], axis=-1)
        found.append(unit.astype(jnp.promote_types(unit.dtype, jnp.float32)))
    return jnp.concatenate(found, axis=-2)


@functools.partial(jax.jit, static_argnames=("number", "iterations"))
def _cluster(key: Array, units: Array, *, number: int, iterations: int) -> Array:
    """Units of clusters, `[S, number, d]`, of units `[S, R, d]`."""

    def one(key: Array, x: Array) -> Array:
        found = k_means(key, lax.stop_gradient(x), number, iterations)
        return centroids(x, found, number)

    return jax.vmap(one)(jax.random.split(key, units.shape[0]), units)


def _merge(leaf: Weighted, key: Array, rank: int, iterations: int, scale: Any) -> Any:
    """One leaf: the units of all trees, clustered; each stack index by itself."""
    if not leaf.terms:
        return leaf.base
    first = leaf.terms[0][0]
    layout = Layout(tuple(leaf.base.shape), first.a_dims, first.b_dims)
    units = _units(layout, leaf)
    *stack, total, width = units.shape
    number = min(rank, total)
    if number < total:
        flat = units.reshape(-1, total, width)
        flat = _cluster(key, flat, number=number, iterations=iterations)
        units = flat.reshape(*stack, number, width)
    if scale is None:
        scale = (total / len(leaf.terms) / number) ** 0.5
    inputs = math.prod(layout.sizes(layout.inputs))
    a = jnp.matrix_transpose(units[..., :inputs])
    b = units[..., inputs:] * jnp.asarray(scale, units.dtype)
    return Matrices(leaf.base, (), (), layout).operator(a, b)
