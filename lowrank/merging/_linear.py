"""PEFT's `linear`: factors summed apart, with the cross terms that this makes."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank import _tree
from lowrank._base import Path, PyTree
from lowrank.merging._factors import assemble
from lowrank.merging._terms import Weighted, equal, rooted, weighted
from lowrank.operators import LowRank
from lowrank.operators._dispatch import scaled


def linear(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    shared_a: bool = False,
    conformance: str = "peft",
) -> PyTree:
    """Sum the factors apart, as PEFT's `linear` does: not the sum of the adapters.

    For adapters `W + s_t A_t B_t` of one rank the result stands for `W + A' B'` with
    `A' = sum_t sqrt(w_t s_t) A_t` and `B' = sum_t sqrt(w_t s_t) B_t`. Besides the `T`
    terms `w_t s_t A_t B_t` the product holds `T^2 - T` cross terms
    `sqrt(w_t s_t w_u s_u) A_t B_u`, in which one adapter reads and another writes. Use
    `concat`, `task_arithmetic` or `svd` for the sum itself. Plain deltas are summed.

    With `shared_a` only the `B` are summed, over the one `A` that all trees have:
    `W + A (sum_t w_t s_t B_t)`. That is the sum of the adapters, with no cross terms.

    Args:
        trees: Adapted trees over one base, of one rank at each leaf.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. Where `w_t s_t < 0` the root is that of `-w_t s_t`, and
            `A_t` gets the sign. May be traced.
        shared_a: Whether the trees share one `A` at each leaf, as tasks of LoRI do
            that start from one key. The first tree's is taken; values that are known
            to differ are refused, under `jit` those of arguments are not known.
        conformance: Whose `linear` this is: `"peft"`, the only one that there is.
            PEFT has no `shared_a`.

    Returns:
        One adapted tree over the same base, of the rank of one tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors of a leaf hold different axes, ranks at a leaf differ, `A` are
            known to differ under `shared_a`, or the weights or `conformance` do not
            fit. All such leaves are named.

    Example:
        >>> w = jnp.zeros((4, 3))
        >>> ones = {"w": lrk.LowRank(w, jnp.ones((4, 1)), jnp.ones((1, 3)))}
        >>> merged = lrk.merging.linear([ones, ones])  # the sum would be 2
        >>> merged["w"].rank, float(lrk.materialize(merged)["w"][0, 0])
        (1, 4.0)
        >>> merged = lrk.merging.linear([ones, ones], shared_a=True)
        >>> merged["w"].rank, float(lrk.materialize(merged)["w"][0, 0])
        (1, 2.0)

    Notes:
        Without `shared_a`, trees that share one `A` are no exception: with `T` equal
        weights the result is `T` times the sum, as it is in PEFT. A merge that looked
        at values to tell would give one result under `jit` and another without, so say
        it; `interference` finds a shared `A`, and `task_arithmetic` is right either
        way.

        Several low-rank terms of one tree are put side by side first, as one factor.
        The derivative with respect to a weight grows without bound as the weight goes
        to zero; at zero it is taken as zero.

    References:
        PEFT 0.21.2, `add_weighted_adapter` with `combination_type="linear"`, negative
        weights included; the merge named "linear" in Zhang et al., LoRI, 2025,
        arXiv:2504.07448.
    """
    if conformance != "peft":
        raise ValueError(
            f"linear: expected conformance 'peft', got {conformance!r}. Use "
            "task_arithmetic for the sum without cross terms."
        )
    leaves = weighted("linear", trees, weights)
    ranks = {
        path: [sum(term.rank for term in terms) for terms in leaf.terms]
        for path, leaf in leaves.items()
    }
    bad = [f"'{path}': {own}" for path, own in ranks.items() if len(set(own)) > 1]
    if bad:
        raise ValueError(
            f"linear: the factors can only be summed at one rank; got ranks "
            f"{'; '.join(bad)}. Use task_arithmetic or svd."
        )
    if shared_a:
        _check_shared(leaves)
    merge = _merge_shared if shared_a else _merge
    merged = {path: merge(leaf) for path, leaf in leaves.items()}
    return assemble("linear", trees[0], merged)


def _factor(terms: Sequence[LowRank]) -> Any:
    """The `A` of one tree at one leaf."""
    own = [term.a for term in terms]
    return own[0] if len(own) == 1 else jnp.concatenate(own, axis=-1)


def _check_shared(leaves: Mapping[Path, Weighted]) -> None:
    """Refuse leaves whose trees have `A` that are known to differ.

    Raises:
        ValueError: If there are any; all are named.
    """
    factors = {path: list(map(_factor, leaf.terms)) for path, leaf in leaves.items()}
    bad = [
        path
        for path, own in factors.items()
        if any(equal(own[0], other) is False for other in own[1:])
    ]
    if bad:
        raise ValueError(
            f"linear: shared_a=True sums the B over one A, but the A differ at "
            f"{_tree.quoted(bad)}. Use task_arithmetic for the sum of such adapters."
        )


def _merge_shared(leaf: Weighted) -> Any:
    """One leaf: the first tree's `A`, and the weighted sum of the `B`."""
    if not leaf.terms:
        return leaf.base
    first, depth = leaf.terms[0][0], len(leaf.terms[0][0].stack)
    found = [
        scaled(jnp.concatenate([t.scaled_b() for t in terms], axis=depth), w)
        for w, terms in zip(leaf.weights, leaf.terms, strict=True)
    ]
    b = sum(found[1:], found[0])
    held = {"a_dims": first.a_dims, "b_dims": first.b_dims}
    a = _factor(leaf.terms[0])
    return LowRank(leaf.base, a, b, jnp.ones((), b.dtype), **held)


def _merge(leaf: Weighted) -> Any:
    """One leaf: both factors summed over the trees."""
    if not leaf.terms:
        return leaf.base
    first, every_a, every_b = leaf.terms[0][0], [], []
    for w, terms in zip(leaf.weights, leaf.terms, strict=True):
        a, b = zip(*(rooted(w, term) for term in terms), strict=True)
        every_a.append(jnp.concatenate(a, axis=-1))
        every_b.append(jnp.concatenate(b, axis=len(first.stack)))
    a, b = (sum(own[1:], own[0]) for own in (every_a, every_b))
    held = {"a_dims": first.a_dims, "b_dims": first.b_dims}
    return LowRank(leaf.base, a, b, jnp.ones((), b.dtype), **held)
