"""What every merge does first: take the terms off one shared base."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._adapted import split
from lowrank._base import Array, Operator, Path, PyTree, is_operator


class Parts(NamedTuple):
    """One leaf of all trees: the base kept once, and each tree's additive terms."""

    base: Any
    terms: tuple[tuple[Operator, ...], ...]


def parts(who: str, trees: Sequence[PyTree]) -> dict[Path, Parts]:
    """Take apart adapted trees over one base.

    Args:
        who: Name of the merge, for messages.
        trees: Adapted trees of one structure.

    Returns:
        For each leaf, its base and the terms of every tree, outermost first.

    Raises:
        ValueError: If there is no tree, or paths, shapes, dtypes or (where they can be
            compared) values of the bases differ; every such path is named.
    """
    if not trees:
        raise ValueError(f"{who}: expected at least one adapted tree, got none.")
    leaves = [_tree.leaves(who, tree) for tree in trees]
    first = leaves[0]
    bad = [
        f"'{path}': not in every tree"
        for path in dict.fromkeys(p for tree in leaves for p in tree)
        if any(path not in tree for tree in leaves)
    ]
    found: dict[Path, Parts] = {}
    for path in first:
        if any(path not in tree for tree in leaves):
            continue
        pairs = [split(tree[path]) for tree in leaves]
        bases = [base for base, _ in pairs]
        if (reason := _differ(bases)) is not None:
            bad.append(f"'{path}': {reason}")
        found[path] = Parts(bases[0], tuple(terms for _, terms in pairs))
    if bad:
        raise ValueError(
            f"{who}: the trees are not adapted from one base: {'; '.join(bad)}. Apply "
            "each transform to the same parameters."
        )
    return found


def _differ(bases: Sequence[Any]) -> str | None:
    """Why the bases of one leaf cannot be one, or None."""
    first = bases[0]
    for other in bases[1:]:
        if other is first:
            continue
        if is_operator(first) or is_operator(other):
            return "the bases are different operators"
        if first.shape != other.shape or first.dtype != other.dtype:
            return f"base {_text(first)} against {_text(other)}"
        both = _compat.is_concrete(first) and _compat.is_concrete(other)
        if both and not bool(jnp.array_equal(first, other)):
            return "the bases differ in value"
    return None


def _text(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def check_weights(who: str, weights: Any, number: int) -> list[Any]:
    """One weight for each tree; ones where none are given.

    Raises:
        ValueError: If their number is wrong, or a concrete one is not finite.
    """
    if weights is None:
        return [1.0] * number
    listed: list[Array | float] = list(weights)
    if len(listed) != number:
        raise ValueError(f"{who}: expected {number} weights, got {len(listed)}.")
    numbers = [w for w in listed if not hasattr(w, "aval") or _compat.is_concrete(w)]
    if not all(np.isfinite(np.asarray(w)).all() for w in numbers):
        raise ValueError(f"{who}: the weights must be finite, got {listed}.")
    return listed
