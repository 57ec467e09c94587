"""DELLA: drop small entries of each change more often than large ones."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._base import Array, PyTree
from lowrank.merging._common import check_number
from lowrank.merging._dare import same_norm, weighing
from lowrank.merging._pieces import (
    check_choice,
    check_density,
    check_key,
    each,
    merge,
)
from lowrank.merging._ties import for_each_tree, ranks


def keep_probability(x: Array, density: Any, epsilon: Any) -> Array:
    """From `density - epsilon` for the smallest entry of a row to `density + epsilon`.

    Linear in the rank by magnitude along the last axis; one where the density is 1.
    """
    size = x.shape[-1]
    place = (size - 1 - ranks(x)).astype(x.dtype) / max(size - 1, 1)
    slope = jnp.asarray(epsilon, x.dtype) * (2 * place - 1 if size > 1 else 0 * place)
    middle = jnp.asarray(for_each_tree(density, x), x.dtype)
    return jnp.where(middle >= 1, 1, middle + slope)


def della(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    density: Any,
    key: Array,
    epsilon: Any = 0.15,
    elect: bool = True,
    conformance: str = "paper",
    normalize: bool | None = None,
    scale: Any = 1.0,
) -> PyTree:
    """DELLA: drop entries at random, small ones more often; elect signs; average.

    An entry of the change `d_t` whose rank by magnitude among the `n` entries of its
    row is `k` (0 the smallest) stays with probability `p = density + epsilon * (2 k /
    (n - 1) - 1)` and is then divided by `p`. Of what is left the sign of each entry is
    elected by the weighted sum (zero elects plus), and `sum w_t d_t / sum w_t` over
    the trees that agree, times `scale`, is added to `W`. A row is what one output
    reads.

    Args:
        trees: Adapted trees over one base.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        density: Mean probability that an entry stays, in (0, 1], or one for each tree;
            1 drops nothing. May be traced.
        key: Random key. What is dropped of one tree at one leaf depends on the key, the
            path and the place of the tree in the list alone.
        epsilon: Half the range of the probabilities, at least 0: `density - epsilon`
            and `density + epsilon` must lie in (0, 1). The paper's is twice as large.
        elect: Whether to elect signs; else the terms are summed (`della_linear`).
        conformance: Whose DELLA: 'paper' or 'mergekit'; see Notes.
        normalize: Whether to divide by the weights; None for the value of `elect`, as
            in mergekit.
        scale: Factor of the merged change, the paper's lambda. May be traced.

    Returns:
        One adapted tree over the same base, in float32 or wider. The changes are dense:
        each adapted leaf is a `Delta`.

    Raises:
        TypeError: If `trees` is no list, or `key` is no key.
        ValueError: If the trees cannot be merged, or a weight, the density, `epsilon`,
            the conformance or the scale is out of range. All such leaves are named.

    Example:
        >>> w = jnp.zeros((64, 1))
        >>> one = {"w": lrk.Delta(w, jnp.arange(64.0).reshape(64, 1))}
        >>> merged = lrk.merging.della(
        ...     [one], density=0.5, epsilon=0.4, key=jax.random.key(0)
        ... )
        >>> kept = lrk.materialize(merged)["w"] != 0
        >>> bool(kept[32:].sum() > kept[:32].sum())
        True

    Notes:
        'paper' is the authors' code: it divides by `p`, so the mean over draws of each
        pruned change is that change. 'mergekit' scales so that the magnitudes of each
        tensor sum as before; a tensor of more than two axes it ranks along the second
        alone. A row of one entry stays with probability `density` here; both codes
        divide by zero. The election and the division are the same in both. PEFT has no
        such merge. The authors' variants by layer or by value are left out.

    References:
        Deep et al., DELLA-Merging, 2024, arXiv:2406.11617: section 3. mergekit 0.1.5,
        `della`, `della_linear`.
    """
    check_key("della", key)
    check_choice("della", conformance, ("paper", "mergekit"))
    _check_range(density, epsilon)

    def drop(x: Array, density: Any, u: Array) -> Array:
        p = keep_probability(x, density, epsilon)
        kept = jnp.where(u < p, x, 0)
        return same_norm(x, kept) if conformance == "mergekit" else kept / p

    divide = elect if normalize is None else normalize
    return merge(
        "della",
        trees,
        weights,
        density=density,
        conformance=conformance,
        prune=drop,
        fuse=each(weighing(elect, divide)),
        scale=scale,
        key=key,
    )


def _check_range(density: Any, epsilon: Any) -> None:
    """Refuse probabilities outside (0, 1), where they are known.

    Raises:
        ValueError: If there are any.
    """
    check_number("della", "epsilon", epsilon)
    density = check_density("della", density, max(np.size(density), 1))
    if not (_compat.is_known(density) and _compat.is_known(epsilon)):
        return
    low, high = (np.asarray(density) + s * np.asarray(epsilon) for s in (-1, 1))
    inside = (low > 0) & (high < 1) | (np.asarray(density) == 1)
    if np.asarray(epsilon) < 0 or not np.all(inside):
        raise ValueError(
            "della: density - epsilon and density + epsilon must lie in (0, 1), with "
            f"epsilon at least 0, got density={density}, epsilon={epsilon}."
        )
