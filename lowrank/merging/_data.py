"""What merges that use data share: statistics by path, and the weighted mean."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import Array, Path, PyTree, as_struct, is_floating, is_operator
from lowrank._select import Select
from lowrank.merging._common import weights_by_path
from lowrank.merging._factors import Matrices, Plain, wide
from lowrank.operators._dispatch import scaled

Shape = tuple[int, ...]
Leaves = Mapping[Path, Matrices | Plain]


def positive_weights(
    who: str, weights: Any, number: int, found: Leaves
) -> dict[Path, list[Any]]:
    """One weight of each tree by path, none negative and not all zero.

    Raises:
        ValueError: As `weights_by_path`; or if concrete weights are negative or sum to
            zero: a weighted mean needs others.
    """
    numbers = weights_by_path(who, weights, number, found)
    bad = [path for path, own in numbers.items() if _no_mean(own)]
    if bad:
        raise ValueError(
            f"{who}: the weights must not be negative, nor all be zero, at "
            f"{_tree.quoted(bad)}. The merge is a mean, weighted by them."
        )
    return numbers


def _no_mean(weights: Sequence[Any]) -> bool:
    """Whether weights are known to be negative or all zero."""
    known = [np.asarray(w) for w in weights if _compat.is_known(w)]
    negative = any(bool((w < 0).any()) for w in known)
    return negative or (len(known) == len(weights) and not any(map(np.any, known)))


def by_path(
    who: str,
    what: str,
    given: Any,
    number: int,
    shapes: Mapping[Path, Shape | None],
    *,
    nonnegative: bool,
) -> dict[Path, tuple[Array, ...]]:
    """The statistics of every tree, for each leaf that has them.

    Args:
        who: Name of the merge, for messages.
        what: Name of one statistic, for messages.
        given: For each tree a mapping from paths to arrays.
        number: How many trees there are.
        shapes: For each adapted leaf the shape of its statistic; None if it takes none.
        nonnegative: Whether every entry must be at least zero; else those of the
            diagonals of the last two axes.

    Returns:
        By path, one float32 (or wider) array of each tree.

    Raises:
        TypeError: If `given` is no list of mappings.
        ValueError: If their number differs from that of the trees; if a leaf has the
            statistic of some trees only, one of another shape, or one that takes none
            or that no tree adapts; or if concrete numbers are not finite or negative.
    """
    if not isinstance(given, list | tuple):
        got = type(given).__name__
        raise TypeError(
            f"{who}: expected a list with a {what} of each tree, got {got}."
        )
    odd = [type(own).__name__ for own in given if not isinstance(own, Mapping)]
    if odd:
        raise TypeError(f"{who}: each {what} must be a dict by path, got {odd[0]}.")
    if len(given) != number:
        raise ValueError(
            f"{who}: expected {number} of {what}, one for each tree, got {len(given)}."
        )
    paths = dict.fromkeys(path for own in given for path in own)
    reasons = {
        path: _misfit([own.get(path) for own in given], path, shapes, nonnegative)
        for path in paths
    }
    bad = [f"'{path}': {why}" for path, why in reasons.items() if why is not None]
    if bad:
        raise ValueError(f"{who}: {what} does not fit at {'; '.join(bad)}.")
    return {p: tuple(wide(jnp.asarray(own[p])) for own in given) for p in paths}


def _misfit(
    arrays: Sequence[Any],
    path: Path,
    shapes: Mapping[Path, Shape | None],
    nonnegative: bool,
) -> str | None:
    """Why the statistics of one leaf cannot be used, or None."""
    if path not in shapes:
        return "no tree adapts it"
    want = shapes[path]
    if want is None:
        return "the leaf is no matrix, so it takes none"
    if missing := [i for i, x in enumerate(arrays) if x is None]:
        return f"given for some trees, missing for {missing}"
    if wrong := [np.shape(x) for x in arrays if np.shape(x) != want]:
        return f"expected shape {want}, got {wrong[0]}"
    known = [np.asarray(x) for x in arrays if _compat.is_known(x)]
    if not all(np.isfinite(x).all() for x in known):
        return "it is not finite"
    signed = [x if nonnegative else np.diagonal(x, 0, -2, -1) for x in known]
    return "it has negative entries" if any((x < 0).any() for x in signed) else None


def mean(leaf: Matrices | Plain, weights: Sequence[Any]) -> Any:
    """The weighted mean of a leaf's changes, `sum w_t Delta_t / sum w_t`."""
    total = sum(weights)
    shares = [w / total for w in weights]
    if isinstance(leaf, Plain):
        return leaf.operator(shares)
    b = [scaled(own, share) for own, share in zip(leaf.b, shares, strict=True)]
    return leaf.operator(jnp.concatenate(leaf.a, -1), jnp.concatenate(b, -2))


def chosen(who: str, tree: PyTree, select: Select | None) -> dict[Path, Any]:
    """Leaves that statistics are taken of: the selected, or else the adapted ones.

    Raises:
        ValueError: If there is none.
    """
    leaves = _tree.leaves(who, tree)
    found = {
        path: leaf
        for path, leaf in leaves.items()
        if is_floating(leaf)
        and (select(path, as_struct(leaf)) if select else is_operator(leaf))
    }
    if not found:
        shown = _tree.quoted(list(leaves)[:5])
        raise ValueError(
            f"{who}: no leaf to look at: none is adapted or selected, among {shown}. "
            "Pass an adapted tree, or select=."
        )
    return found
