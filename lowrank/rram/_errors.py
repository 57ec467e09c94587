"""What deployed weights lack, leaf by leaf."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank import _tree
from lowrank._base import Array, Path, PyTree, is_floating, is_operator
from lowrank._select import Select, check_select, selected


class Error(NamedTuple):
    """A deployed leaf and what it lacks, in float32 or wider."""

    leaf: Any
    e: Array


def errors_of(
    who: str,
    params: PyTree,
    deployed: PyTree,
    select: Select | None,
    *,
    matrices: bool,
) -> dict[Path, Error]:
    """The leaves to correct, and their errors.

    Args:
        who: Name of the caller, for messages.
        params: The weights that were wanted.
        deployed: What stands in their place.
        select: Which leaves; None for those that are not the same object in both.
        matrices: Whether leaves of fewer than two axes are then left out.

    Raises:
        ValueError: If the trees differ, no leaf is left, or one cannot be corrected.
    """
    wanted, got = _tree.leaves(who, params), _tree.leaves(who, deployed)
    bad = [f"'{path}' is in one tree only" for path in wanted.keys() ^ got.keys()]
    bad += [
        f"{_tree.describe(path, leaf)} is deployed as {tuple(got[path].shape)}"
        for path, leaf in wanted.items()
        if path in got and tuple(got[path].shape) != tuple(leaf.shape)
    ]
    if bad:
        raise ValueError(
            f"{who}: the trees differ: {'; '.join(sorted(bad))}. Pass the weights that "
            "were wanted, and what apply made of them."
        )
    chosen = _chosen(who, wanted, got, deployed, select, matrices)
    pairs = {path: (_weight(wanted[path]), _weight(got[path])) for path in chosen}
    stuck = [
        _tree.describe(path, got[path])
        for path, (w, chip) in pairs.items()
        if w is None or chip is None
    ]
    if stuck:
        raise ValueError(
            f"{who}: no floating numbers at {'; '.join(stuck)}. Leave them out with "
            "select=."
        )
    return {
        path: Error(got[path], w - chip)
        for path, (w, chip) in pairs.items()
        if w is not None and chip is not None
    }


def _chosen(
    who: str,
    wanted: Mapping[Path, Any],
    got: Mapping[Path, Any],
    deployed: PyTree,
    select: Select | None,
    matrices: bool,
) -> list[Path]:
    """Paths that are selected, or else those that are not the same object.

    Raises:
        ValueError: If there are none.
    """
    if select is not None:
        check_select(who, select)
        return list(selected(who, deployed, select))
    found = [
        path
        for path, leaf in got.items()
        if leaf is not wanted[path]
        and is_floating(leaf)
        and not (matrices and len(leaf.shape) < 2)
    ]
    if not found:
        raise ValueError(
            f"{who}: no floating leaf differs between the trees. Pass, as deployed, "
            "what a crossbar's apply made of the weights."
        )
    return found


def held(leaf: Any) -> Array | None:
    """The weight that a leaf stands for on a chip, without what acts in products.

    None for an operator that has no such weight.
    """
    if not is_operator(leaf):
        return leaf
    if leaf.has_dense:
        return leaf.dense()
    read = getattr(type(leaf), "programmed_weight", None)
    return None if read is None else read(leaf)


def _weight(leaf: Any) -> Array | None:
    """The numbers of a leaf in float32 or wider, or None."""
    w = held(leaf) if is_floating(leaf) else None
    if w is None:
        return None
    return jnp.asarray(w).astype(jnp.promote_types(w.dtype, jnp.float32))
