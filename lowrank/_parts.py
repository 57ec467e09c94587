"""Adapted trees over one base, taken apart: the base once, and each tree's terms."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank import _compat, _tree
from lowrank._adapted import split
from lowrank._base import Operator, Path, PyTree, is_operator
from lowrank.operators import Delta, LowRank


class Parts(NamedTuple):
    """One leaf of all trees: the base kept once, and each tree's additive terms."""

    base: Any
    terms: tuple[tuple[Operator, ...], ...]


def parts(who: str, trees: Sequence[PyTree], doing: str = "merge") -> dict[Path, Parts]:
    """Take apart adapted trees over one base.

    Args:
        who: Name of the function, for messages.
        trees: Adapted trees of one structure.
        doing: What is done with them, for messages.

    Returns:
        For each leaf, its base and the terms of every tree, outermost first.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If there is no tree; if paths, shapes, dtypes or (where they can be
            compared) values of the bases differ; or if what is trained at a leaf is no
            additive term. Every such path is named.
    """
    if not isinstance(trees, list | tuple):
        got = type(trees).__name__
        raise TypeError(f"{who}: expected a list of adapted trees, got {got}.")
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
    odd = []
    for path in first:
        if any(path not in tree for tree in leaves):
            continue
        pairs = [split(tree[path]) for tree in leaves]
        bases, terms = zip(*pairs, strict=True)
        if not any(terms):
            odd += _trained(path, bases)
        if (reason := _differ(bases)) is not None:
            bad.append(f"'{path}': {reason}")
        found[path] = Parts(bases[0], terms)
    if odd:
        raise ValueError(
            f"{who}: cannot {doing} {', '.join(odd)}: what is trained there is no "
            f"additive term. {doing.capitalize()} low-rank terms and plain deltas."
        )
    if bad:
        raise ValueError(
            f"{who}: the trees are not adapted from one base: {'; '.join(bad)}. Apply "
            "each transform to the same parameters."
        )
    return found


def _trained(path: Path, bases: Sequence[Any]) -> list[str]:
    """A leaf that holds trained parts, such as DoRA's, with its kind."""
    kinds = [type(x).__name__ for x in bases if is_operator(x) and x.trained]
    return [f"'{path}' ({kinds[0]})"] if kinds else []


def _differ(bases: Sequence[Any]) -> str | None:
    """Why the bases of one leaf cannot be one, or None."""
    reasons = (_unequal(bases[0], other) for other in bases[1:])
    return next((reason for reason in reasons if reason is not None), None)


def _unequal(one: Any, two: Any) -> str | None:
    """Why two bases are not the same, or None; values where both are known."""
    if one is two:
        return None
    if is_operator(one) or is_operator(two):
        (parts_one, tree_one), (parts_two, tree_two) = map(jax.tree.flatten, (one, two))
        if tree_one != tree_two:
            return "the bases are different operators"
        reasons = map(_unequal, parts_one, parts_two)
        return next((reason for reason in reasons if reason is not None), None)
    if one.shape != two.shape or one.dtype != two.dtype:
        return f"base {_text(one)} against {_text(two)}"
    both = _compat.is_known(one) and _compat.is_known(two)
    with jax.ensure_compile_time_eval():  # what is known stays known under jit
        same = not both or bool(jnp.array_equal(one, two))
    return None if same else "the bases differ in value"


def _text(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"


def check_axes(who: str, found: Mapping[Path, Parts]) -> None:
    """Refuse leaves whose factors hold different axes: they do not line up.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in found.items():
        terms = [t for own in leaf.terms for t in own if isinstance(t, LowRank)]
        dims = sorted({(t.a_dims, t.b_dims) for t in terms})
        bad += [f"'{path}': {dims}"] if len(dims) > 1 else []
    if bad:
        raise ValueError(
            f"{who}: the factors hold different axes at {'; '.join(bad)}. Make the "
            "adapters with one axes=."
        )


def adapted(
    who: str, trees: Sequence[PyTree], doing: str = "merge"
) -> dict[Path, Parts]:
    """The leaves that a tree adapts, by low-rank terms and plain deltas alone.

    Returns:
        By path, in the order of the tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            or factors of one leaf hold different axes; all such leaves are named.
    """
    found = parts(who, trees, doing)
    check_terms(who, found, doing)
    check_axes(who, found)
    return {path: own for path, own in found.items() if any(own.terms)}


def check_terms(who: str, found: Mapping[Path, Parts], doing: str = "merge") -> None:
    """Refuse terms that are neither low-rank nor plain deltas.

    Raises:
        ValueError: If there are any; all are named.
    """
    odd = [
        f"'{path}' ({type(term).__name__})"
        for path, leaf in found.items()
        for terms in leaf.terms
        for term in terms
        if type(term) not in (LowRank, Delta)
    ]
    if odd:
        raise ValueError(
            f"{who}: cannot {doing} {', '.join(dict.fromkeys(odd))}. "
            f"{doing.capitalize()} low-rank terms and plain deltas; evaluate dropout "
            "states under dropout=0."
        )
