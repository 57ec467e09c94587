"""Task arithmetic: the scaled sum of adapters, in as few ranks as cost nothing."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, PyTree
from lowrank.merging._common import check_number
from lowrank.merging._factors import assemble
from lowrank.merging._terms import Weighted, equal, weighted
from lowrank.operators import LowRank
from lowrank.operators._dispatch import scaled


def task_arithmetic(
    trees: Sequence[PyTree], weights: Any = None, *, scale: Any = 1.0
) -> PyTree:
    """Add up adapters exactly, those that share an `A` in one rank.

    For adapters `W + s_t A_t B_t` the result stands for
    `W + scale * sum_t w_t s_t A_t B_t`, the value of `concat`. Terms with one and the
    same `A` become a single `A (sum_t w_t s_t B_t)`; the ranks of all others are put
    side by side. Plain deltas are summed.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        scale: The paper's scaling term, a number for all. May be traced.

    Returns:
        One adapted tree over the same base. A leaf that no tree adapts is the base leaf
        of the first tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors of a leaf hold different axes, or `weights` or `scale` do not fit.

    Example:
        >>> w, a = jnp.zeros((4, 3)), jnp.ones((4, 2))
        >>> trees = [{"w": lrk.LowRank(w, a, i * jnp.ones((2, 3)))} for i in (1, 2)]
        >>> merged = lrk.merging.task_arithmetic(trees, scale=0.5)
        >>> merged["w"].rank, float(lrk.materialize(merged)["w"][0, 0])
        (2, 3.0)
        >>> lrk.merging.concat(trees)["w"].rank
        4

    Notes:
        The rank of a leaf is that of its distinct `A`: `r` rather than `T r` where `T`
        trees share one. They are found to be one if they are one array, or if their
        values are known and equal. Under `jit` the values of arguments are not known:
        the ranks are then put side by side, and the value is the same.

    References:
        Ilharco et al., Editing models with task arithmetic, 2022, arXiv:2212.04089:
        section 2, addition of task vectors. Zhang et al., LoRI, 2025, arXiv:2504.07448.
    """
    who = "task_arithmetic"
    check_number(who, "scale", scale)
    leaves = weighted(who, trees, weights, scale)
    merged = {path: _merge(leaf) for path, leaf in leaves.items()}
    return assemble(who, trees[0], merged)


def _merge(leaf: Weighted) -> Any:
    """One leaf: one pair of factors for each distinct `a`, side by side."""
    groups: list[tuple[Array, list[Array]]] = []
    for w, term in leaf.pairs():
        b = scaled(term.scaled_b(), w)
        found = (own for a, own in groups if equal(a, term.a))
        if (group := next(found, None)) is None:
            groups.append((term.a, [b]))
        else:
            group.append(b)
    if not groups:
        return leaf.base
    first = leaf.terms[0][0]
    a = jnp.concatenate([a for a, _ in groups], axis=-1)
    sums = [sum(bs[1:], bs[0]) for _, bs in groups]
    b = jnp.concatenate(sums, axis=len(first.stack))
    held = {"a_dims": first.a_dims, "b_dims": first.b_dims}
    return LowRank(leaf.base, a, b, jnp.ones((), b.dtype), **held)
