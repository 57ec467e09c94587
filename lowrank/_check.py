"""Refusals of keys, paths and states, before anything is computed."""

import zlib
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import Operator, Path, State, is_array

Shape = tuple[int | None, ...]


def check_key(
    who: str, key: Any, call: str = "init(jax.random.key(0), params)"
) -> None:
    """Refuse what is not one random key.

    Args:
        who: Name of the function, for messages.
        key: The key.
        call: The right call, for messages.

    Raises:
        TypeError: If `key` is neither a typed key nor raw uint32 key data.
    """
    if isinstance(key, (jax.Array, np.ndarray)):
        typed = jax.dtypes.issubdtype(key.dtype, jax.dtypes.prng_key)
        if typed and key.ndim == 0:
            return
        if not typed and key.ndim == 1 and key.dtype == np.uint32:
            return
    shape = f" of shape {tuple(key.shape)}" if is_array(key) else ""
    raise TypeError(
        f"{who}: expected one random key, got {type(key).__name__}{shape}. Call {call}."
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
        pairs = "; ".join(_tree.quoted(paths) for paths in shared)
        raise ValueError(
            f"{who}: one array sits at several selected paths ({pairs}), so its copies "
            "would drift apart. Select one of them, or tie them in the model."
        )


def check_state(
    who: str,
    tree: Mapping[Path, Any],
    state: State,
    *,
    trainable: tuple[str, ...] = (),
    fixed: tuple[str, ...] = (),
) -> None:
    """Refuse a state that was made for another tree or by another transform.

    Args:
        who: Name of the transform, for messages.
        tree: Leaves of the parameters.
        state: The state.
        trainable: Names that each trainable leaf must have.
        fixed: Names that each fixed leaf must have; none if there is nothing fixed.

    Raises:
        TypeError: If it is no `State`.
        ValueError: If there is a path that the tree lacks, or a leaf without one of the
            names; all are listed.
    """
    if not isinstance(state, State):
        raise TypeError(
            f"{who}: expected a State, got {type(state).__name__}. Pass what this "
            "transform's own init returned, not one of its halves."
        )
    for part in state:
        if not isinstance(part, Mapping):
            raise ValueError(
                f"{who}: expected a state of dicts by path, got {type(part).__name__}. "
                "Pass the State that this transform's own init returned."
            )
    paths = dict.fromkeys([*state.trainable, *state.fixed])
    missing = [path for path in paths if path not in tree]
    if missing:
        near = _tree.quoted(_tree.nearest(missing, tree))
        raise ValueError(
            f"{who}: the state has {_tree.quoted(missing)}, which the parameters lack; "
            f"the nearest paths are {near}. Pass the tree that init saw."
        )
    halves = ((state.trainable, trainable, "trainable"), (state.fixed, fixed, "fixed"))
    bad = [
        f"'{path}' lacks {kind} {name!r}"
        for part, names, kind in halves
        for path in paths
        for name in names
        if name not in part.get(path, {})
    ]
    if bad:
        raise ValueError(
            f"{who}: the state does not fit: {'; '.join(bad)}. Pass the State that "
            "this transform's own init returned."
        )


def check_shapes(
    who: str,
    found: Mapping[Path, Any],
    wanted: Mapping[Path, Mapping[str, Shape]],
) -> None:
    """Refuse entries of a state that are missing or of other shapes.

    Args:
        who: Name of the transform, for messages.
        found: One half of a state, or a part of it.
        wanted: For each path and name the shape; None for a size that may be any.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, names in wanted.items():
        for name, shape in names.items():
            got = found.get(path, {}).get(name)
            if got is None:
                bad.append(f"'{path}' lacks {name!r}")
            elif len(got.shape) != len(shape) or any(
                size not in (None, have)
                for size, have in zip(shape, got.shape, strict=True)
            ):
                sizes = ", ".join("any" if s is None else str(s) for s in shape)
                bad.append(
                    f"{name!r} at '{path}': expected shape ({sizes}), got "
                    f"{tuple(got.shape)}"
                )
    if bad:
        raise ValueError(
            f"{who}: the state does not fit: {'; '.join(bad)}. Pass the State that "
            "this transform's own init returned for this tree; call apply inside "
            "jax.vmap or lrk.map_tasks for states that lrk.stack made."
        )


def check_operators(who: str, new: Mapping[Path, Operator]) -> None:
    """Refuse operators whose parts do not fit each other.

    Raises:
        ValueError: If there are any; all are named.
    """
    reasons = {path: op.mismatch() for path, op in new.items()}
    bad = [f"'{path}': {reason}" for path, reason in reasons.items() if reason]
    if bad:
        raise ValueError(
            f"{who}: {'; '.join(bad)}. Pass the tree that init saw; call apply inside "
            "jax.vmap or lrk.map_tasks for states that lrk.stack made."
        )
