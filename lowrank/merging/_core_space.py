"""Core Space: any merge, on small lossless cores."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import PyTree
from lowrank.merging._common import weights_by_path
from lowrank.merging._coordinates import (
    Frame,
    check_merge,
    columns,
    merge_cores,
    rows,
)
from lowrank.merging._factors import Matrices, factored
from lowrank.merging._iso import isotropic_factors


def reference(own: Matrices) -> Frame:
    """Orthonormal bases of what all `A` read and of what all `B` write."""
    return Frame(
        columns(jnp.concatenate(own.a, axis=-1)), rows(jnp.concatenate(own.b, axis=-2))
    )


def core_space(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    merge: Callable[..., PyTree],
    isotropic: bool = False,
) -> PyTree:
    """Core Space: merge adapters in the small space that they span, with any merge.

    With `U` the left singular vectors of `[A_1 ... A_T]` and `V^T` the right ones of
    `[s_1 B_1; ...; s_T B_T]`, each change is `D_t = U M_t V^T` without loss. Its core
    `M_t = U^T A_t s_t B_t V` is `R x R`, with `R = sum_t r_t`. Another merge makes one
    core `M` of the cores, and the result is `U M V^T`.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. Handed to `merge`.
        merge: Called as `merge(core_trees, weights)`: a merge of this library, with
            `functools.partial` for its options. A core tree maps each adapted path to
            its core over a base of zeros; leaves that are no matrices take part as
            they are.
        isotropic: Whether to give the directions of each merged core one singular
            value, their mean, as `iso` does.

    Returns:
        One adapted tree over the same base, of rank `R` at most. A linear merge gives
        what it gives without this, to rounding, as do `tsv` and `iso`, which do not
        depend on the basis; elementwise merges such as `ties` do depend on it. Nothing
        of the size of a weight is formed.

    Raises:
        TypeError: If `trees` is no list, or `merge` is not callable.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors hold different axes, the weights do not fit, or `merge` returns
            anything but an adapted tree over the bases of the core trees.

    Example:
        >>> w, a, b = jnp.zeros((4, 3)), jnp.eye(4, 1), jnp.ones((1, 3))
        >>> trees = [{"w": lrk.LowRank(w, a, b)}, {"w": lrk.LowRank(w, -2 * a, b)}]
        >>> merged = lrk.merging.core_space(trees, [3.0, 1.0], merge=lrk.merging.concat)
        >>> lrk.materialize(merged)["w"][0].round(4).tolist()
        [1.0, 1.0, 1.0]

    Notes:
        The scale of an adapter is multiplied into its `B`; the authors' adapters have
        scale one.

    References:
        Panariello et al., Accurate and Efficient Low-Rank Model Merging in Core Space,
        2025, arXiv:2509.17786: reference bases, aligned cores, isotropisation.
    """
    check_merge("core_space", merge)
    found = factored("core_space", trees)
    weights_by_path("core_space", weights, len(trees), found)
    frames = {p: reference(x) for p, x in found.items() if isinstance(x, Matrices)}

    def inner(cores: list[PyTree]) -> PyTree:
        return merge(cores, weights)

    finish = isotropic_factors if isotropic else None
    return merge_cores("core_space", trees, found, frames, inner, finish)
