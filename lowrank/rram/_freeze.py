"""Reduce and freeze: which weights a chip distorts, and in which order they go."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree
from lowrank._select import Select, is_matrix, selected
from lowrank.operators._rows import from_matrix, to_matrix
from lowrank.rram._errors import held
from lowrank.rram._numbers import check

# The rank of a weight that is never frozen.
NEVER = np.int32(np.iinfo(np.int32).max)


def afflicted(
    params: PyTree,
    deployed: PyTree,
    *,
    tolerance: Any = 0.05,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """Which weights a chip distorts: `|deployed - w| > tolerance s`.

    `s` is the largest magnitude of the weight's column. A defect that the present
    weight does not meet (a cell stuck at the value asked for) does not count.

    Args:
        params: The weights that are wanted.
        deployed: What the chip makes of them: the tree that `apply` gives.
        tolerance: Share of the column's scale, at least 0; may be traced.
        select: Which leaves, as for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        By path, booleans of the leaf's shape.

    Raises:
        ValueError: If `tolerance < 0`, nothing is selected, a leaf needs `axes`, or
            `deployed` is another tree.

    Example:
        >>> w, chip = jnp.asarray([[1.0], [-0.5]]), jnp.asarray([[1.0], [0.0]])
        >>> lrk.rram.afflicted({"w": w}, {"w": chip})["w"].tolist()
        [[False], [True]]

    Notes:
        For the cells themselves, whatever is programmed into them, see `fault_free`.

    References:
        As `freeze_order`.
    """
    check("afflicted", tolerance=(tolerance, 0, None))
    chosen = selected("afflicted", params, select)
    found = resolve("afflicted", chosen, axes)
    values = weights("afflicted", deployed, chosen)
    return {
        path: jnp.abs(values[path] - w) > tolerance * column_scale(w, found[path])
        for path, w in chosen.items()
    }


def weights(who: str, deployed: PyTree, like: Mapping[Path, Any]) -> dict[Path, Array]:
    """The weights that a chip holds, as plain arrays, at some paths.

    Raises:
        ValueError: If there is no such weight, or it has another shape.
    """
    leaves, bad, found = _tree.leaves(who, deployed), [], {}
    for path, w in like.items():
        leaf = leaves.get(path)
        if leaf is None or tuple(leaf.shape) != tuple(w.shape):
            have = "nothing" if leaf is None else f"{tuple(leaf.shape)}"
            bad.append(f"'{path}': expected shape {tuple(w.shape)}, got {have}")
        elif (value := held(leaf)) is not None:
            found[path] = value
        else:
            bad.append(f"'{path}': {type(leaf).__name__} has no weight to compare")
    if bad:
        raise ValueError(
            f"{who}: the deployed tree does not fit: {'; '.join(bad)}. Pass what apply "
            "gives for the same parameters."
        )
    return found


def column_scale(w: Array, axes: Axes) -> Array:
    """The largest magnitude of each column, of the shape of the weight."""
    size = jnp.abs(to_matrix(w, axes)).max(-2, keepdims=True)
    size = jnp.broadcast_to(size, to_matrix(w, axes).shape)
    return from_matrix(size, w.shape, axes)


def freeze_order(
    importance: Mapping[Path, Any], afflicted: Mapping[Path, Any]
) -> dict[Path, Array]:
    """The order in which afflicted weights are frozen: the most important one first.

    Args:
        importance: By path, a number for each weight; of equal ones the first goes
            first, by path and then by place.
        afflicted: By path, whether a weight is to be frozen at all.

    Returns:
        By path, int32: 0, 1, .. over the afflicted weights of all leaves, and the
        largest int32, never reached, for the others.

    Raises:
        ValueError: If `afflicted` is empty, or `importance` lacks one of its paths or
            has another shape there.

    Example:
        >>> important = {"w": jnp.asarray([3.0, 1.0, 2.0])}
        >>> hit = {"w": jnp.asarray([True, True, False])}
        >>> order = lrk.rram.freeze_order(important, hit)
        >>> lrk.rram.frozen(order, 1)["w"].tolist()
        [True, False, False]

    References:
        Chen et al., DATE 2017, DOI 10.23919/DATE.2017.7926952, as described in notes on
        the paper: weights on abnormal cells are fixed in the order of a sensitivity.
        Its formula is not known; `importance` and `fisher_importance` are two choices.
    """
    if not afflicted:
        raise ValueError(
            "freeze_order: expected the weights of at least one leaf, got none. Pass "
            "what afflicted gives."
        )
    check_leaves("freeze_order", "importance", importance, afflicted)
    paths = sorted(afflicted)  # as in a jitted call, whatever the order of the dict
    hit = jnp.concatenate([jnp.ravel(jnp.asarray(afflicted[p], bool)) for p in paths])
    size = jnp.concatenate(
        [jnp.ravel(jnp.asarray(importance[p], jnp.float32)) for p in paths]
    )
    sequence = jnp.argsort(jnp.where(hit, -size, jnp.inf), stable=True)
    rank = jnp.zeros(hit.shape, jnp.int32)
    rank = rank.at[sequence].set(jnp.arange(hit.size, dtype=jnp.int32))
    rank = jnp.where(hit, rank, NEVER)
    shapes = [np.shape(afflicted[p]) for p in paths]
    ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1]
    parts = jnp.split(rank, ends)
    return {p: r.reshape(s) for p, r, s in zip(paths, parts, shapes, strict=True)}


def frozen(order: Mapping[Path, Any], count: Any) -> dict[Path, Array]:
    """The mask of the first `count` weights of an order.

    Args:
        order: As `freeze_order` gives it.
        count: How many, at least 0; may be traced.

    Returns:
        By path, booleans: True where a weight is frozen. Healthy weights never are.

    Raises:
        ValueError: If `count < 0`.

    Example:
        >>> lrk.rram.frozen({"w": jnp.asarray([1, 0, 2])}, 2)["w"].tolist()
        [True, True, False]

    References:
        As `freeze_order`.
    """
    check("frozen", count=(count, 0, None))
    return {path: jnp.asarray(rank) < count for path, rank in order.items()}


def check_leaves(
    who: str, what: str, given: Mapping[Path, Any], like: Mapping[Path, Any]
) -> None:
    """Refuse a mapping that lacks paths or has other shapes.

    Raises:
        ValueError: If it does; all offenders are named.
    """
    bad = []
    for path, leaf in like.items():
        if path not in given:
            near = _tree.quoted(_tree.nearest([path], given, 2)) or "none"
            bad.append(f"'{path}': missing (it has {near})")
        elif np.shape(given[path]) != np.shape(leaf):
            bad.append(
                f"'{path}': expected shape {np.shape(leaf)}, got "
                f"{np.shape(given[path])}"
            )
    if bad:
        raise ValueError(
            f"{who}: {what} does not fit: {'; '.join(bad)}. Make it from the same "
            "parameters with the same select= and axes=."
        )
