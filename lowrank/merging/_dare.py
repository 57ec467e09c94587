"""DARE: drop entries of each change at random, and rescale what is left."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, PyTree
from lowrank.merging._pieces import (
    Fuse,
    Merged,
    Pieces,
    check_choice,
    check_density,
    check_key,
    check_only,
    each,
    merge,
    weighted_mean,
    weighted_sum,
)
from lowrank.merging._ties import (
    by_count,
    by_sum,
    by_weight,
    for_each_tree,
    whole_model,
)

SMALL = 1e-7  # mergekit rescales no tensor whose norm is below this


def drop(x: Array, density: Any, u: Array) -> Array:
    """Keep the entries of `[T, ...]` whose uniform draw is below the density."""
    return jnp.where(u < _number(density, x), x, 0)


def drop_by_density(x: Array, density: Any, u: Array) -> Array:
    """`drop`, over the density: the mean over draws is `x`."""
    return drop(x, density, u) / _number(density, x)


def drop_by_norm(x: Array, density: Any, u: Array) -> Array:
    """`drop`, with the sum of magnitudes of each tensor `[T, S, m, n]` restored."""
    return same_norm(x, drop(x, density, u))


def same_norm(x: Array, kept: Array) -> Array:
    """`kept`, so scaled that the magnitudes of each `[T, S, m, n]` sum as those of `x`.

    Left alone where either sum is next to nothing.
    """
    before, after = (jnp.sum(jnp.abs(v), (-2, -1), keepdims=True) for v in (x, kept))
    tiny = (before < SMALL) | (after < SMALL)
    return kept * jnp.where(tiny, 1, before / jnp.where(tiny, 1, after))


def _number(density: Any, x: Array) -> Array:
    return jnp.asarray(for_each_tree(density, x), x.dtype)


def weighing(elect: bool, normalize: bool) -> Callable[[Array, Array], Array]:
    """How mergekit fuses: with an election of signs or not, divided or not."""
    if elect:
        return by_weight if normalize else by_sum
    return weighted_mean if normalize else weighted_sum


def dare(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    density: Any,
    key: Array,
    elect: bool = False,
    trim: Any = None,
    conformance: str = "paper",
    normalize: bool | None = None,
    scale: Any = 1.0,
) -> PyTree:
    """DARE: drop entries of each change at random, rescale the rest, then merge.

    With `m_t` zeros and ones of mean `density`, drawn for each entry of the change
    `d_t`, the result stands for `W + scale * sum_t w_t m_t d_t / density`: the mean
    over draws is the plain weighted sum. With `elect` the signs of the entries are
    elected and those that agree are averaged, as in `ties`.

    Args:
        trees: Adapted trees over one base.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        density: Probability that an entry stays, in (0, 1], or one for each tree; the
            paper's p is `1 - density`. May be traced.
        key: Random key. What is dropped of one tree at one leaf depends on the key, the
            path and the place of the tree in the list alone.
        elect: Whether to merge by TIES what is left, in place of the sum.
        trim: For `elect` with 'paper' alone, the share that TIES keeps of each change
            after the drop, in (0, 1]; None for 0.2, as in the authors' code.
        conformance: Whose DARE: 'paper', 'peft', 'peft_svd' or 'mergekit'; see Notes.
        normalize: For 'mergekit' alone, its option of this name; None for False.
        scale: Factor of the merged change. May be traced.

    Returns:
        One adapted tree over the same base, in float32 or wider. The changes are dense:
        each adapted leaf is a `Delta`; for 'peft' a `LowRank` of the rank of the trees.

    Raises:
        TypeError: If `trees` is no list, or `key` is no key.
        ValueError: If the trees cannot be merged, or a weight, the density, `trim`, the
            conformance, `normalize` or the scale is out of range. All such leaves are
            named.

    Example:
        >>> w = jnp.zeros((2, 2))
        >>> one = {"w": lrk.Delta(w, jnp.ones((2, 2)))}
        >>> merged = lrk.merging.dare([one], density=0.5, key=jax.random.key(1))
        >>> sorted(set(lrk.materialize(merged)["w"].ravel().tolist()))
        [0.0, 2.0]

    Notes:
        'paper': as above; with `elect` what is left goes through `ties` of 'paper',
        trimming included.
        'peft_svd': PEFT's `dare_linear_svd` or, with `elect`, `dare_ties_svd` before
        they are truncated: no trimming, and the election of `ties` with 'peft_svd'.
        'peft': PEFT's `dare_linear` or `dare_ties`, the same for `A` and `B` apart,
        each times `sqrt(w_t s_t)`: the product has cross terms of different trees, so
        its mean is not the weighted sum. Needs one low-rank term of one rank in each
        tree that adapts a leaf.
        'mergekit': `dare_linear` or `dare_ties`. What is left is scaled so that the
        magnitudes of each tensor sum as before, in place of `1 / density`; no trimming;
        with `elect` the election of `ties` with 'mergekit', undivided unless
        `normalize`. Without `elect`, `normalize` divides by the sum of the weights.
        All draw other random numbers than we do; given one mask the results agree.

    References:
        Yu et al., Language Models are Super Mario, 2023, arXiv:2311.03099: section 3.2.
        PEFT 0.21.2, `add_weighted_adapter`. mergekit 0.1.5, `dare_linear`, `dare_ties`.
    """
    check_key("dare", key)
    number = check_density("dare", 0.2 if trim is None else trim, 1, "trim")
    weigh = weighing(elect, bool(normalize))
    fuses: dict[str, Fuse] = {
        "paper": _trimmed(number) if elect else each(weighted_sum),
        "peft": each(by_count if elect else weighted_sum),
        "peft_svd": each(by_count if elect else weighted_sum),
        "mergekit": each(weigh),
    }
    check_choice("dare", conformance, fuses)
    check_only("dare", "normalize", normalize, conformance, ("mergekit",))
    check_only("dare", "trim", trim, conformance, ("paper",))
    if trim is not None and not elect:
        raise ValueError("dare: trim is a part of the election. Pass elect=True too.")
    return merge(
        "dare",
        trees,
        weights,
        density=density,
        conformance=conformance,
        prune=drop_by_norm if conformance == "mergekit" else drop_by_density,
        fuse=fuses[conformance],
        scale=scale,
        key=key,
    )


def _trimmed(density: Any) -> Fuse:
    """TIES of the whole model, at a density of its own."""

    def act(pieces: Pieces, dropped: Any) -> Merged:
        del dropped
        return whole_model(pieces, density)

    return act
