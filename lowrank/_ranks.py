"""Adapters of different ranks, made one size."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import State


def pad_ranks(states: Sequence[State]) -> list[State]:
    """Give adapters of different ranks one rank, so that they can be stacked.

    `A: [*stack, *in, r]` and `B: [*stack, r, *out]` are filled up with zeros to the
    largest rank of each leaf. The product is the same, scales stay as they are, and the
    zeros stay zeros in training: a column of `A` gets its gradient through a row of `B`
    and the other way round, and what is zero does not decay.

    Args:
        states: States of one method over one tree of parameters, for different ranks.

    Returns:
        The states with equal shapes; what needs no zeros is the same object.

    Raises:
        ValueError: If there is no state, they differ in more than the ranks of stored
            factors `a` and `b`, or a `b` is packed; all such leaves are named.

    Example:
        >>> params = {"w": jnp.ones((4, 3))}
        >>> states = [lrk.lora(r).init(jax.random.key(r), params) for r in (1, 3)]
        >>> lrk.stack(lrk.pad_ranks(states)).trainable["w"]["b"].shape
        (2, 3, 3)

    Notes:
        The product is that of the largest rank: a rank of 4 beside one of 64 costs as
        much. LoRI-S keeps places in `B`: make it with one rank for all, and masks whose
        last rows are zero.
    """
    states = list(states)
    if not states:
        raise ValueError("pad_ranks: expected at least one state, got none.")
    if len({jax.tree.structure(state) for state in states}) > 1:
        raise ValueError(
            "pad_ranks: the states differ in structure. Pass states of one method over "
            "one tree of parameters."
        )
    flat = [jax.tree_util.tree_flatten_with_path(state)[0] for state in states]
    names: dict[Any, set[str]] = {}
    for keys, _ in flat[0]:
        names.setdefault(keys[1:-1], set()).add(_tree.join(keys[-1:]))
    bad, columns = [], []
    for pairs in zip(*flat, strict=True):
        keys, arrays = pairs[0][0], [x for _, x in pairs]
        axes = _differing([tuple(x.shape) for x in arrays])
        if axes and not _is_rank(keys, axes, arrays[0].ndim, names[keys[1:-1]]):
            bad.append(f"'{_tree.join(keys)}': {[tuple(x.shape) for x in arrays]}")
        columns.append([_padded(x, arrays, axes) for x in arrays])
    if bad:
        raise ValueError(
            f"pad_ranks: the states differ in more than the ranks of stored, unpacked "
            f"factors at {'; '.join(bad)}. Pass states of one method over one tree."
        )
    rows = zip(*columns, strict=True)
    treedef = jax.tree.structure(states[0])
    return [jax.tree.unflatten(treedef, list(row)) for row in rows]


def _differing(shapes: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The axes in which shapes differ; -1 where their numbers of axes do."""
    if len({len(shape) for shape in shapes}) > 1:
        return (-1,)
    sizes = [set(own) for own in zip(*shapes, strict=True)]
    return tuple(i for i, own in enumerate(sizes) if len(own) > 1)


def _is_rank(keys: Any, axes: tuple[int, ...], ndim: int, names: set[str]) -> bool:
    """Whether the axes in which factors differ are that of the rank."""
    name = _tree.join(keys[-1:])
    whole = {"a", "b"} <= names and "index" not in names
    return whole and (
        (name == "a" and axes == (ndim - 1,)) or (name == "b" and len(axes) == 1)
    )


def _padded(x: Any, others: Sequence[Any], axes: tuple[int, ...]) -> Any:
    """Zeros behind an array along one axis, up to the longest."""
    if not axes or axes == (-1,):
        return x
    largest = max(other.shape[axes[0]] for other in others)
    return fill(x, axes[0], largest)


def fill(x: Any, axis: int, size: int) -> Any:
    """Zeros behind an array along an axis; on the host where its numbers are known."""
    width = [(0, 0)] * x.ndim
    width[axis] = (0, size - x.shape[axis])
    if not width[axis][1]:
        return x
    # On the host: every size would compile a program of its own.
    known = _compat.is_known(x)
    return jnp.asarray(np.pad(np.asarray(x), width)) if known else jnp.pad(x, width)
