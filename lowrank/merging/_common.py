"""What every merge does first: take the terms off one shared base."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._adapted import split
from lowrank._base import Operator, Path, PyTree, is_operator
from lowrank.operators import LowRank


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
            f"{who}: cannot merge {', '.join(odd)}: what is trained there is no "
            "additive term. Merge low-rank terms and plain deltas."
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


def check_weights(who: str, weights: Any, number: int) -> list[Any]:
    """One weight for each tree; ones where none are given.

    A weight is a number, or a mapping from paths to numbers.

    Raises:
        ValueError: If their number is wrong, one is no real scalar, or a concrete one
            is not finite.
    """
    if weights is None:
        return [1.0] * number
    try:
        listed: list[Any] = list(weights)
    except TypeError:
        raise ValueError(
            f"{who}: expected {number} weights, one number for each tree, got "
            f"{weights!r}."
        ) from None
    flat = [x for w in listed for x in (w.values() if isinstance(w, Mapping) else [w])]
    if len(listed) != number or any(np.shape(w) != () for w in flat):
        shapes = [np.shape(w) for w in flat]
        raise ValueError(
            f"{who}: expected {number} weights, one number for each tree, got "
            f"{len(listed)} of shapes {shapes}."
        )
    if odd := [w for w in flat if not _is_number(w)]:
        raise ValueError(f"{who}: expected numbers as weights, got {odd}.")
    numbers = [w for w in flat if _compat.is_known(w)]
    if not all(np.isfinite(np.asarray(w)).all() for w in numbers):
        raise ValueError(f"{who}: the weights must be finite, got {listed}.")
    return listed


def _is_number(value: Any) -> bool:
    """Whether a value is a real number, traced or not."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    real = (jnp.floating, jnp.integer, np.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in real)


def check_number(who: str, name: str, value: Any) -> None:
    """Refuse what is no finite number; a traced one only by its shape.

    Raises:
        ValueError: If it is not.
    """
    fits = np.shape(value) == () and _is_number(value)
    if not fits or (_compat.is_known(value) and not np.isfinite(np.asarray(value))):
        raise ValueError(f"{who}: {name} must be a finite number, got {value!r}.")


def weights_by_path(
    who: str, weights: Any, number: int, paths: Iterable[Path]
) -> dict[Path, list[Any]]:
    """For each adapted leaf, one weight of each tree.

    Args:
        who: Name of the merge, for messages.
        weights: None for ones; or for each tree a number, or a mapping from each
            adapted path to a number.
        number: How many trees there are.
        paths: The leaves that any tree adapts.

    Raises:
        ValueError: As `check_weights`; or if a mapping lacks an adapted path, or has a
            path that no tree adapts. All are named.
    """
    listed, known = check_weights(who, weights, number), list(paths)
    maps = [w for w in listed if isinstance(w, Mapping)]
    missing = [f"'{p}'" for p in known if any(p not in w for w in maps)]
    extra = dict.fromkeys(f"'{p}'" for w in maps for p in w if p not in known)
    if missing or extra:
        raise ValueError(
            f"{who}: weights by path must name the adapted leaves: missing "
            f"{', '.join(missing) or 'none'}; not adapted {', '.join(extra) or 'none'}."
        )
    return {p: [w[p] if isinstance(w, Mapping) else w for w in listed] for p in known}
