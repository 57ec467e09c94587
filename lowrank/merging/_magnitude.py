"""Magnitude pruning: sum the largest entries of each change."""

from collections.abc import Sequence
from typing import Any

from lowrank._base import PyTree
from lowrank.merging._pieces import check_choice, each, merge, weighted_sum
from lowrank.merging._ties import trim_tensors


def magnitude(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    density: Any,
    conformance: str = "paper",
    scale: Any = 1.0,
) -> PyTree:
    """Add up changes of which the largest entries were kept.

    With `d_t` the change of tree `t` after all but its largest entries were set to
    zero, tensor by tensor, the result stands for `W + scale * sum_t w_t d_t`.

    Args:
        trees: Adapted trees over one base.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        density: Share of the entries of each tensor to keep, in (0, 1], or one for each
            tree. Of `N` entries the `max(1, floor(density * N))` largest stay, of equal
            ones the earlier. May be traced.
        conformance: 'paper', 'peft' or 'peft_svd'; see Notes.
        scale: Factor of the merged change. May be traced.

    Returns:
        One adapted tree over the same base, in float32 or wider. The changes are dense:
        each adapted leaf is a `Delta`; for 'peft' a `LowRank` of the rank of the trees.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the trees cannot be merged, or a weight, the density, the
            conformance or the scale is out of range. All such leaves are named.

    Example:
        >>> w = jnp.zeros((1, 4))
        >>> one = {"w": lrk.Delta(w, jnp.array([[4.0, -3.0, 1.0, 0.0]]))}
        >>> two = {"w": lrk.Delta(w, jnp.array([[2.0, 5.0, 0.0, 1.0]]))}
        >>> merged = lrk.merging.magnitude([one, two], density=0.5)
        >>> lrk.materialize(merged)["w"].tolist()
        [[6.0, 2.0, 0.0, 0.0]]

    Notes:
        'paper' and 'peft_svd' are one function: PEFT's `magnitude_prune_svd` before it
        is truncated. 'peft' is its `magnitude_prune`, which prunes and adds up `A` and
        `B` apart, each times `sqrt(w_t s_t)`: the product has cross terms of different
        trees. It needs one low-rank term of one rank in each tree that adapts a leaf.
        mergekit has no such merge. Each index of the stack axes is a tensor. PEFT keeps
        `int(density * N)` entries, which may be none.

    References:
        Han et al., Learning both weights and connections, 2015, arXiv:1506.02626, on
        pruning by magnitude. PEFT 0.21.2, `add_weighted_adapter`.
    """
    check_choice("magnitude", conformance, ("paper", "peft", "peft_svd"))
    return merge(
        "magnitude",
        trees,
        weights,
        density=density,
        conformance=conformance,
        prune=trim_tensors,
        fuse=each(weighted_sum),
        scale=scale,
    )
