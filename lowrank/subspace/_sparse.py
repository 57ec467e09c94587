"""The sparse random projection: each trained number moves a few weights."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from lowrank import _tree
from lowrank._base import Path
from lowrank.subspace._projection import Fixed, Projection, Sizes


def entries(size: int) -> int:
    """How many entries of a leaf each column has: density `1 / sqrt(size)`."""
    return max(1, round(math.sqrt(size)))


def rows(key: Array, size: int, d: int) -> Int[Array, "d k"]:
    """Rows of the entries of each column, one in each of `k` nearly equal parts.

    The parts start at a random row, so that every row is as likely as any other.
    """
    count = entries(size)
    edges = np.arange(count + 1) * size // count
    low = jnp.asarray([*edges[:-1], 0], jnp.int32)
    high = jnp.asarray([*edges[1:], size], jnp.int32)

    def column(j: Array) -> Array:
        mine = jax.random.fold_in(key, j)
        drawn = jax.random.randint(mine, low.shape, low, high)
        return (drawn[:-1] + drawn[-1]) % size

    return jax.vmap(column)(jnp.arange(d))


def signs(key: Array, size: int, d: int) -> Int[Array, "d k"]:
    """A random sign for each entry."""

    def column(j: Array) -> Array:
        mine = jax.random.fold_in(key, j)
        return jax.random.rademacher(mine, (entries(size),), jnp.int8)

    return jax.vmap(column)(jnp.arange(d))


def values(sizes: Sizes) -> dict[Path, float]:
    """Magnitude of the entries of each leaf: `size^(1/4)`, with columns of norm one.

    `1 / sqrt(density)`, so that a leaf has its share of the norm: that of its size.
    """
    squares = {path: math.sqrt(size) for path, size in sizes.items()}
    norm = sum(entries(n) * squares[path] for path, n in sizes.items())
    return {path: math.sqrt(square / norm) for path, square in squares.items()}


def sparse() -> Projection:
    """A sparse random projection: in each leaf a share `1 / sqrt(size)` of entries.

    A column of `P` has `round(sqrt(size))` entries in each leaf, at random rows and of
    random sign. They are all of one magnitude in a leaf, proportional to
    `size^(1/4)`, and such that columns have norm one over the whole network. Two
    columns have an inner product of about `1 / sqrt(D)`.

    Returns:
        A projection for `random`, nested. Fixed, for each leaf: `row: [d, k]`, int32,
        and `sign: [d, k]`, int8. That is `5 d sqrt(size)` bytes: less than the weights
        while `d` is below `sqrt(size)`, and more than they for large `d`.

    Example:
        >>> params = {"w": jnp.ones((4, 4))}
        >>> tx = lrk.subspace.random(3, lrk.subspace.sparse())
        >>> tx.init(jax.random.key(0), params).fixed["w"]["row"].shape
        (3, 4)

    Notes:
        The authors take scikit-learn's draw, where the number of entries of a column is
        binomial, so that a small leaf may have none, and where rows are any. Here the
        number is fixed at its mean, at least one, so that shapes are known, and each
        entry has a part of the leaf to itself, so that no two meet.

    References:
        Li et al., 2018, arXiv:1804.08838, section S7; Li, Hastie and Church, Very
        sparse random projections, 2006: density `1 / sqrt(D)`.
    """

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        fixed = {}
        for path, size in sizes.items():
            for_rows, for_signs = jax.random.split(_tree.leaf_key(key, path))
            row, sign = rows(for_rows, size, d), signs(for_signs, size, d)
            fixed[path] = {"row": row, "sign": sign}
        return fixed

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        out = {}
        for path, value in values(sizes).items():
            own = fixed[path]
            terms = own["sign"].astype(z.dtype) * (value * z)[:, None]
            empty = jnp.zeros(sizes[path], z.dtype)
            out[path] = empty.at[own["row"]].add(terms, mode="drop")
        return out

    return Projection(("row", "sign"), draw, apply, nested=True)
