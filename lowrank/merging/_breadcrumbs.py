"""Model Breadcrumbs: drop the largest and the smallest entries of each change."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._base import Array, PyTree
from lowrank.merging._common import check_number
from lowrank.merging._dare import weighing
from lowrank.merging._pieces import check_choice, check_only, each, merge
from lowrank.merging._ties import count, for_each_tree, ranks


def middle(x: Array, density: Any, top: Array) -> Array:
    """Of each `[..., N]` drop the `top` largest entries, keep those that come next."""
    kept = for_each_tree(count(density, x.shape[-1]), x)
    place = ranks(x)
    return jnp.where((place >= top) & (place < top + kept), x, 0)


def middle_of_rows(x: Array, density: Any, gamma: Any) -> Array:
    """As the authors: each row of `[T, S, m, n]` by itself."""
    return middle(x, density, count(gamma, x.shape[-1], least=0))


def middle_of_tensors(x: Array, density: Any, gamma: Any) -> Array:
    """As mergekit: each tensor, and never so many dropped that fewer are left."""
    flat = x.reshape(*x.shape[:2], -1)
    size = flat.shape[-1]
    room = size - for_each_tree(count(density, size), flat)
    top = jnp.minimum(count(gamma, size, least=0), room)
    return middle(flat, density, top).reshape(x.shape)


def breadcrumbs(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    density: Any,
    gamma: Any = 0.01,
    elect: bool = False,
    conformance: str = "paper",
    normalize: bool | None = None,
    scale: Any = 1.0,
) -> PyTree:
    """Model Breadcrumbs: add up changes without their largest and smallest entries.

    Of `n` entries the `floor(gamma * n)` largest by magnitude are outliers and dropped;
    the `floor(density * n)` that come next stay, the rest is dropped. With `d_t` what
    stays of the change of tree `t`, the result stands for `W + scale * sum_t w_t d_t`.

    Args:
        trees: Adapted trees over one base.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        density: Share of the entries that stays, in (0, 1], or one for each tree; at
            least one entry does. May be traced.
        gamma: Share of the entries dropped as outliers, in [0, 1). May be traced.
        elect: For 'mergekit' alone, whether to elect signs (`breadcrumbs_ties`).
        conformance: Whose Breadcrumbs: 'paper' or 'mergekit'; see Notes.
        normalize: For 'mergekit' alone, its option of this name: whether to divide by
            the weights; None for False.
        scale: Factor of the merged change, the paper's alpha. May be traced.

    Returns:
        One adapted tree over the same base, in float32 or wider. The changes are dense:
        each adapted leaf is a `Delta`.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the trees cannot be merged, or a weight, the density, `gamma`,
            the conformance, `elect`, `normalize` or the scale is out of range. All
            such leaves are named.

    Example:
        >>> w = jnp.zeros((4, 1))
        >>> one = {"w": lrk.Delta(w, jnp.array([[8.0], [3.0], [-2.0], [1.0]]))}
        >>> merged = lrk.merging.breadcrumbs([one], density=0.5, gamma=0.25)
        >>> lrk.materialize(merged)["w"].ravel().tolist()
        [0.0, 3.0, -2.0, 0.0]

    Notes:
        'paper' is the authors' code: the entries are those of a row, which is what one
        output reads (the paper says a layer). 'mergekit': those of a tensor; where
        `gamma + density` exceeds 1 fewer outliers are dropped, so that the density
        holds, where the authors keep fewer. PEFT has no such merge. Each index of the
        stack axes is a tensor.

    References:
        Davari and Belilovsky, Model Breadcrumbs, 2023, arXiv:2312.06795: section 3.
        mergekit 0.1.5, `breadcrumbs`, `breadcrumbs_ties`.
    """
    acts = {"paper": middle_of_rows, "mergekit": middle_of_tensors}
    check_choice("breadcrumbs", conformance, acts)
    check_only("breadcrumbs", "normalize", normalize, conformance, ("mergekit",))
    check_only("breadcrumbs", "elect", elect or None, conformance, ("mergekit",))
    _check_gamma(gamma)
    act = acts[conformance]

    def prune(x: Array, density: Any) -> Array:
        return act(x, density, gamma)

    return merge(
        "breadcrumbs",
        trees,
        weights,
        density=density,
        conformance=conformance,
        prune=prune,
        fuse=each(weighing(elect, bool(normalize))),
        scale=scale,
    )


def _check_gamma(gamma: Any) -> None:
    """Refuse a share outside [0, 1), where it is known.

    Raises:
        ValueError: If it is.
    """
    check_number("breadcrumbs", "gamma", gamma)
    if _compat.is_known(gamma) and not 0 <= np.asarray(gamma) < 1:
        raise ValueError(f"breadcrumbs: gamma must lie in [0, 1), got {gamma}.")
