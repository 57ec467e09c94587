"""Paths of a parameter tree, keys by path, and leaves changed by path."""

import difflib
import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lowrank import _compat
from lowrank._base import Array, Operator, Path, PyTree, State, is_array, is_operator

_WRAPPER = jax.tree_util.GetAttrKey("value")


def path_string(keypath: tuple[Any, ...]) -> Path:
    """A key path as `a/b/c`, without the wrappers that frameworks put around arrays."""
    keys = list(keypath)
    if len(keys) > 1 and keys[-1] == _WRAPPER:
        keys.pop()
    return "/".join(_key_string(key) for key in keys)


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
    pairs = [(path_string(keypath), leaf) for keypath, leaf in flat]
    names = [path for path, _ in pairs]
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(
            f"{who}: more than one leaf has the path {_quoted(twice)}. Rename the "
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
    return jax.random.fold_in(key, np.uint32(zlib.crc32(path.encode())))


def check_key(who: str, key: Any) -> None:
    """Refuse what is not one random key.

    Raises:
        TypeError: If `key` is neither a typed key nor raw uint32 key data.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        if typed and key.ndim == 0:
            return
        if not typed and key.ndim == 1 and key.dtype == np.uint32:
            return
    got = key if key is None else f"{type(key).__name__} {getattr(key, 'shape', key)}"
    raise TypeError(
        f"{who}: expected one random key, got {got}. Pass jax.random.key(0)."
    )


def check_hashes(who: str, paths: Iterable[Path]) -> None:
    """Refuse paths that would share a key.

    Raises:
        ValueError: If two paths have one crc32.
    """
    seen: dict[int, Path] = {}
    for path in paths:
        other = seen.setdefault(zlib.crc32(path.encode()), path)
        if other != path:
            raise ValueError(
                f"{who}: '{other}' and '{path}' have the same crc32, so they would "
                "draw the same numbers. Rename one of them."
            )


def check_ties(who: str, chosen: Mapping[Path, Any]) -> None:
    """Refuse one array at two selected paths, where that can be seen.

    Raises:
        ValueError: If two selected leaves are the same concrete array.
    """
    places: dict[int, list[Path]] = {}
    for path, leaf in chosen.items():
        if _compat.is_concrete(leaf):
            places.setdefault(id(leaf), []).append(path)
    shared = [paths for paths in places.values() if len(paths) > 1]
    if shared:
        pairs = "; ".join(_quoted(paths) for paths in shared)
        raise ValueError(
            f"{who}: one array sits at several selected paths ({pairs}), so its copies "
            "would drift apart. Select one of them, or tie them in the model."
        )


def check_state(who: str, tree: Mapping[Path, Any], state: State) -> None:
    """Refuse a state that was made for another tree.

    Raises:
        ValueError: If paths of the state are not leaves of the tree.
    """
    for part in state:
        if not isinstance(part, Mapping):
            raise ValueError(
                f"{who}: expected a state of dicts by path, got {type(part).__name__}. "
                "Pass the State that this transform's own init returned."
            )
    wanted = dict.fromkeys([*state.trainable, *state.fixed])
    missing = [path for path in wanted if path not in tree]
    if missing:
        raise ValueError(
            f"{who}: the state has {_quoted(missing)}, which the parameters lack; the "
            f"nearest paths are {_quoted(nearest(missing, tree))}. Pass the tree that "
            "init saw."
        )


def nearest(wanted: Iterable[str], paths: Iterable[Path], count: int = 5) -> list[Path]:
    """The paths most like those that were asked for."""
    paths, found = list(paths), []
    for name in wanted:
        found += difflib.get_close_matches(name, paths, n=count, cutoff=0.0)
    return list(dict.fromkeys(found))[:count]


def _quoted(paths: Iterable[Path]) -> str:
    return ", ".join(f"'{path}'" for path in paths)


def describe(path: Path, leaf: Any) -> str:
    """`'path' of shape (2, 3)`, for messages."""
    shape = leaf.shape if isinstance(leaf, Operator) else tuple(leaf.shape)
    return f"'{path}' of shape {shape}"
