"""Fisher-weighted averaging: the mean that asks each model how sure it is."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, Path, PyTree
from lowrank.merging._data import by_path, mean, positive_weights
from lowrank.merging._factors import Matrices, Plain, assemble, factored
from lowrank.operators import Delta
from lowrank.operators._dispatch import scaled


def fisher(
    trees: Sequence[PyTree],
    fishers: Sequence[Mapping[Path, Array]],
    weights: Any = None,
    *,
    eps: float = 1e-6,
) -> PyTree:
    """Average every weight in proportion to its Fisher information.

    `theta = sum_t w_t F_t theta_t / sum_t w_t F_t`, entry by entry of the dense
    weights. Over one base, `theta_t = theta_0 + Delta_t`, the base drops out and the
    changes are averaged so. Factors are not averaged themselves: `(A R)(R^-1 B)` is
    one change for every `R`, so that their entries mean nothing across tasks.

    Args:
        trees: Adapted trees over one base.
        fishers: For each tree a diagonal Fisher information by path, of the shape of
            the leaf, as `fisher_diagonal` gives it. A leaf has those of all trees or
            of none.
        weights: For each tree a number, or a mapping from every adapted path to one;
            not negative; None for ones. Only their ratios count. May be traced.
        eps: Floor, above 0: a leaf's Fisher information, divided by its mean over the
            entries of all trees, gets this added; entries that no task is sure about
            get the weighted mean.

    Returns:
        One adapted tree over the same base. The change of a leaf is dense, a `Delta`:
        an entrywise mean of low-rank changes has no low rank. A leaf without Fisher
        information gets the mean of the changes, weighted by `weights`, and stays
        factored.

    Raises:
        TypeError: If `trees` is no list, or `fishers` no list of mappings.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            weights or Fisher informations do not fit, or `eps` is not above 0. All such
            leaves are named.

    Example:
        >>> w = jnp.zeros(2)
        >>> one, two = ({"w": lrk.Delta(w, jnp.full(2, d))} for d in (1.0, 3.0))
        >>> sure = [{"w": jnp.array([9.0, 0.0])}, {"w": jnp.array([1.0, 0.0])}]
        >>> merged = lrk.merging.fisher([one, two], sure)
        >>> [round(x, 3) for x in lrk.materialize(merged)["w"].tolist()]
        [1.2, 2.0]

    Notes:
        The paper chooses `w_t` by a search on held-out data; nothing here does. It
        floors each Fisher information at an absolute number; here the floor follows
        the scale of the leaf, so that multiplying all informations changes nothing.

    References:
        Matena and Raffel, Merging models with Fisher-weighted averaging, 2022,
        arXiv:2111.09832: the weighted average with a diagonal Fisher information.
    """
    if not eps > 0:
        raise ValueError(f"fisher: eps must be above 0, got {eps}.")
    found = factored("fisher", trees)
    shapes = {path: tuple(leaf.base.shape) for path, leaf in found.items()}
    what = "Fisher information"
    given = by_path("fisher", what, fishers, len(trees), shapes, nonnegative=True)
    numbers = positive_weights("fisher", weights, len(trees), found)
    merged = {
        path: Delta(leaf.base, averaged(_changes(leaf), given[path], own, eps))
        if path in given
        else mean(leaf, own)
        for (path, leaf), own in zip(found.items(), numbers.values(), strict=True)
    }
    return assemble("fisher", trees[0], merged)


def _changes(leaf: Matrices | Plain) -> list[Array]:
    """What each tree adds to a leaf, dense."""
    if isinstance(leaf, Matrices):
        pairs = zip(leaf.a, leaf.b, strict=True)
        return [leaf.layout.unmatrix(a @ b) for a, b in pairs]
    shape = tuple(leaf.base.shape)
    return [jnp.zeros(shape) if d is None else d for d in leaf.d]


def averaged(
    changes: Sequence[Array],
    fishers: Sequence[Array],
    weights: Sequence[Any],
    eps: float,
) -> Array:
    """`sum w (F + eps) Delta / sum w (F + eps)`, with `F` over its mean."""
    level = sum(jnp.mean(f) for f in fishers) / len(fishers)
    level = jnp.where(level > 0, level, 1.0)
    shares = [scaled(f / level + eps, w) for f, w in zip(fishers, weights, strict=True)]
    parts = [f * d for f, d in zip(shares, changes, strict=True)]
    return sum(parts[1:], parts[0]) / sum(shares[1:], shares[0])
