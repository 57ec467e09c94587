"""Predicates `select(path, leaf) -> bool` that say which leaves a transform touches."""

import re
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax

from lowrank import _check, _tree
from lowrank._base import Path, PyTree, as_struct, is_floating

Select = Callable[[Path, jax.ShapeDtypeStruct], bool]


def is_matrix(path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf is floating and has exactly two axes.

    Args:
        path: The leaf's path; not looked at.
        leaf: Shape and dtype of the leaf.

    Returns:
        True for a floating matrix.

    Example:
        >>> lrk.is_matrix("dense/kernel", jax.ShapeDtypeStruct((4, 3), jnp.float32))
        True
    """
    del path
    return is_floating(leaf) and len(leaf.shape) == 2


class _Matching(NamedTuple):
    """A predicate that can tell its expression when nothing matches."""

    pattern: re.Pattern[str]

    def __call__(self, path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
        del leaf
        return self.pattern.search(path) is not None


def matching(regex: str) -> Select:
    r"""Select the leaves whose path matches a regular expression.

    Args:
        regex: Searched anywhere in the path: anchor with `^` and `$`.

    Returns:
        A predicate.

    Raises:
        ValueError: If the expression does not compile.

    Example:
        >>> select = lrk.matching(r"(query|value)/kernel$")
        >>> select("layer/0/query/kernel", jax.ShapeDtypeStruct((4, 3), jnp.float32))
        True
    """
    try:
        pattern = re.compile(regex)
    except re.error as error:
        reason = f"matching: {regex!r} is no regular expression: {error}."
        raise ValueError(reason) from error

    return _Matching(pattern)


def either(*selects: Select) -> Select:
    """Select what at least one predicate selects.

    Args:
        *selects: Predicates.

    Returns:
        A predicate.

    Example:
        >>> select = lrk.either(lrk.is_matrix, lrk.matching("bias$"))
        >>> select("dense/bias", jax.ShapeDtypeStruct((3,), jnp.float32))
        True
    """
    return lambda path, leaf: any(select(path, leaf) for select in selects)


def both(*selects: Select) -> Select:
    """Select what every predicate selects.

    Args:
        *selects: Predicates.

    Returns:
        A predicate.

    Example:
        >>> select = lrk.both(lrk.is_matrix, lrk.matching("query"))
        >>> select("key/kernel", jax.ShapeDtypeStruct((4, 3), jnp.float32))
        False
    """
    return lambda path, leaf: all(select(path, leaf) for select in selects)


def neither(*selects: Select) -> Select:
    """Select what no predicate selects.

    Args:
        *selects: Predicates; with one of them this is its negation.

    Returns:
        A predicate.

    Example:
        >>> select = lrk.neither(lrk.matching("pooler"))
        >>> select("pooler/dense/kernel", jax.ShapeDtypeStruct((4, 3), jnp.float32))
        False
    """
    return lambda path, leaf: not any(select(path, leaf) for select in selects)


class _Masked(NamedTuple):
    """A predicate that knows all its paths, so that all that lack can be named."""

    flags: dict[Path, bool]

    def __call__(self, path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
        del leaf
        self.cover([path])
        return self.flags[path]

    def cover(self, paths: Iterable[Path]) -> None:
        """Refuse paths that the tree of bools lacks."""
        missing = [path for path in paths if path not in self.flags]
        if missing:
            raise ValueError(
                f"masked: the tree of bools has no {_tree.quoted(missing)}. Make it "
                "from the parameters with jax.tree.map."
            )


def masked(tree: PyTree) -> Select:
    """Select by a pytree of booleans of the same structure as the parameters.

    Args:
        tree: Like the parameters, with a Python bool in place of each leaf.

    Returns:
        A predicate that raises `ValueError` for a path that the tree lacks.

    Raises:
        ValueError: If a leaf is not a bool.

    Example:
        >>> select = lrk.masked({"w": True, "b": False})
        >>> select("b", jax.ShapeDtypeStruct((3,), jnp.float32))
        False
    """
    flags = dict(_tree.flatten("masked", tree)[0])
    wrong = [path for path, flag in flags.items() if not isinstance(flag, bool)]
    if wrong:
        raise ValueError(f"masked: expected a bool at {wrong}. Use True or False.")

    return _Masked(flags)


def check_select(who: str, select: Any) -> None:
    """Refuse what is no predicate, in the factory.

    Raises:
        TypeError: If `select` cannot be called.
    """
    if not callable(select):
        raise TypeError(
            f"{who}: select must be a function of path and leaf, got {select!r}. Pass "
            f"lrk.matching({str(select)!r})."
        )


def selected(who: str, params: PyTree, select: Select) -> dict[Path, Any]:
    """The leaves that a predicate selects, checked; called once, in `init`.

    Raises:
        ValueError: If nothing is selected, paths share a hash, or one array sits at two
            selected paths.
    """
    tree = _tree.leaves(who, params)
    if isinstance(select, _Masked):
        select.cover(tree)
    chosen = {p: leaf for p, leaf in tree.items() if select(p, as_struct(leaf))}
    if not tree:
        raise ValueError(f"{who}: the tree holds no arrays. Pass the parameters.")
    if not chosen:
        some = list(tree)[:8]
        if isinstance(select, _Matching):
            some = _tree.nearest([select.pattern.pattern], tree, count=8)
        near = ", ".join(_tree.describe(path, tree[path]) for path in some)
        raise ValueError(
            f"{who}: the selection matches none of {len(tree)} leaves; the nearest are "
            f"{near}. Check select=; lrk.select_paths shows what a transform touches."
        )
    _check.check_hashes(who, chosen)
    _check.check_ties(who, chosen)
    return chosen
