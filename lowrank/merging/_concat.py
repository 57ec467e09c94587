"""The exact weighted sum of adapters, by concatenating their ranks."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, PyTree
from lowrank._parts import Parts, adapted
from lowrank.merging._common import weights_by_path
from lowrank.merging._factors import assemble
from lowrank.operators import Delta, LowRank
from lowrank.operators._dispatch import scaled


def concat(trees: Sequence[PyTree], weights: Any = None) -> PyTree:
    """Add up adapters exactly: the ranks add up too.

    For adapters `W + s_t A_t B_t` the result stands for `W + sum_t w_t s_t A_t B_t`,
    with `A = [A_1 ... A_T]` and `B = [w_1 s_1 B_1; ...; w_T s_T B_T]`. Plain deltas
    are summed.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.

    Returns:
        One adapted tree over the same base. A leaf that no tree adapts is the base leaf
        of the first tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors of a leaf hold different axes, or the weights do not fit. All such
            leaves are named.

    Example:
        >>> w = jnp.zeros((4, 3))
        >>> ones = {"w": lrk.LowRank(w, jnp.ones((4, 1)), jnp.ones((1, 3)))}
        >>> merged = lrk.merging.concat([ones, ones], [0.5, 1.0])
        >>> merged["w"].rank, float(lrk.materialize(merged)["w"][0, 0])
        (2, 1.5)

    References:
        PEFT's `add_weighted_adapter` with `combination_type="cat"` (exact, as here);
        the merge named "concat" in Zhang et al., LoRI, 2025, arXiv:2504.07448.
    """
    found = adapted("concat", trees)
    numbers = weights_by_path("concat", weights, len(trees), found)
    merged = {path: _merge(leaf, numbers[path]) for path, leaf in found.items()}
    return assemble("concat", trees[0], merged)


def _merge(leaf: Parts, weights: Sequence[Any]) -> Any:
    """One leaf: the base, plus the summed deltas, plus the concatenated factors."""
    pairs = [
        (w, t) for w, terms in zip(weights, leaf.terms, strict=True) for t in terms
    ]
    merged = leaf.base
    plain = [(w, t) for w, t in pairs if isinstance(t, Delta)]
    if plain:
        merged = Delta(merged, _sum([scaled(t.d, w) for w, t in plain]))
    factors = [(w, t) for w, t in pairs if isinstance(t, LowRank)]
    if not factors:
        return merged
    first = factors[0][1]
    a = jnp.concatenate([t.a for _, t in factors], axis=-1)
    b = jnp.concatenate(
        [scaled(t.scaled_b(), w) for w, t in factors], axis=len(first.stack)
    )
    held = {"a_dims": first.a_dims, "b_dims": first.b_dims}
    return LowRank(merged, a, b, jnp.ones((), b.dtype), **held)


def _sum(arrays: Sequence[Array]) -> Array:
    return sum(arrays[1:], arrays[0])
