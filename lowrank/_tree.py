"""Paths of a parameter tree, keys by path, and leaves changed by path."""

import difflib
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from lowrank._base import Array, Operator, Path, PyTree, is_array, is_operator

_WRAPPER = jax.tree_util.GetAttrKey("value")


def path_strings(keypaths: Sequence[tuple[Any, ...]]) -> list[Path]:
    """Key paths as `a/b/c`, without the wrappers that frameworks put around arrays.

    A wrapper is an attribute `value` that is its owner's only leaf.
    """
    return [join(keys) for keys in unwrapped(keypaths)]


def unwrapped(keypaths: Sequence[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Key paths without wrappers."""
    paths = [tuple(keys) for keys in keypaths]
    owners = Counter(keys[:-1] for keys in paths)
    return [keys[: len(keys) - _wrapped(keys, owners)] for keys in paths]


def _wrapped(keys: tuple[Any, ...], owners: Mapping[tuple[Any, ...], int]) -> bool:
    """Whether the last key is a wrapper's."""
    return len(keys) > 1 and keys[-1] == _WRAPPER and owners[keys[:-1]] == 1


def join(keys: Iterable[Any]) -> Path:
    """Keys as `a/b/c`."""
    return "/".join(map(_key_string, keys))


def _key_string(key: Any) -> str:
    for name in ("key", "name", "idx"):
        if hasattr(key, name):
            return str(getattr(key, name))
    return str(key)


def flatten(who: str, tree: PyTree) -> tuple[list[tuple[Path, Any]], Any]:
    """Leaves with their paths, operators as leaves, and the tree definition.

    Raises:
        ValueError: If two leaves have one path.
    """
    flat, treedef = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_operator)
    names = path_strings([keypath for keypath, _ in flat])
    pairs = [(name, leaf) for name, (_, leaf) in zip(names, flat, strict=True)]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{who}: more than one leaf has the path {quoted(twice)}. Rename the "
            "keys, so that each leaf has a path of its own."
        )
    return pairs, treedef


def leaves(who: str, tree: PyTree) -> dict[Path, Any]:
    """Array and operator leaves of a tree by path."""
    pairs, _ = flatten(who, tree)
    return {path: leaf for path, leaf in pairs if is_array(leaf)}


def replace(who: str, tree: PyTree, new: Mapping[Path, Any]) -> PyTree:
    """The same tree with some leaves replaced; the others are the same objects."""
    pairs, treedef = flatten(who, tree)
    return jax.tree.unflatten(treedef, [new.get(path, leaf) for path, leaf in pairs])


def map_operators(who: str, tree: PyTree, fn: Callable[[Path, Any], Any]) -> PyTree:
    """`fn(path, leaf)` for every leaf, operators as leaves."""
    pairs, treedef = flatten(who, tree)
    return jax.tree.unflatten(treedef, [fn(path, leaf) for path, leaf in pairs])


def leaf_key(key: Array, path: Path) -> Array:
    """The key of one leaf: depends on the path alone, not on the other leaves."""
    return jax.random.fold_in(key, path_code(path))


def path_code(path: Path) -> np.uint32:
    """The number that a path is folded into a key as."""
    return np.uint32(zlib.crc32(path.encode()))


def abstractly(run: Callable[..., Any], *trees: PyTree) -> Any:
    """Run on abstract arrays; leaves that are no arrays stay what they are."""
    leaves, treedef = jax.tree.flatten(trees)
    traced = [i for i, x in enumerate(leaves) if is_array(x)]

    def inner(arrays: list[Any]) -> Any:
        own = list(leaves)
        for i, array in zip(traced, arrays, strict=True):
            own[i] = array
        return run(*jax.tree.unflatten(treedef, own))

    return jax.eval_shape(inner, [leaves[i] for i in traced])


def nearest(wanted: Iterable[str], paths: Iterable[Path], count: int = 5) -> list[Path]:
    """The paths most like those that were asked for."""
    paths, found = list(paths), []
    for name in wanted:
        found += difflib.get_close_matches(name, paths, n=count, cutoff=0.0)
    return list(dict.fromkeys(found))[:count]


def quoted(paths: Iterable[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)


def describe(path: Path, leaf: Any) -> str:
    """`'path' of shape (2, 3)`, for messages."""
    shape = leaf.shape if isinstance(leaf, Operator) else tuple(leaf.shape)
    return f"'{path}' of shape {shape}"
