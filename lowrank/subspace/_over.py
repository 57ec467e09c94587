"""A subspace of what another transform trains: SubLoRA and its like."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank.subspace._projection import (
    SUBSPACE,
    Projection,
    check_dimension,
    check_projection,
    check_total,
    moves,
    sizes_of,
    taken,
)

_WHO = "subspace.over"


def over(tx: Transform, d: int, projection: Projection) -> Transform:
    """Train `d` numbers that move all that another transform trains.

    The trainable arrays of `tx`, such as the factors of all its adapters, are one
    vector of `D` entries: `theta = theta_0 + P z`, with `theta_0` what `tx.init` gives,
    kept fixed. Over `lora` that is SubLoRA: the adapters stay factored, and `W0 + A B`
    is as far from being formed as ever.

    Args:
        tx: Any transform that trains something: `lora`, `dora`, `full`, a chain.
        d: How many numbers are trained, at least 1 and at most `D`.
        projection: How `P` is drawn, as for `random`.

    Returns:
        A transform that is at init what `tx` is. Its state has three members, like that
        of a chain: what `tx` keeps fixed, what it would train, and the subspace.
        Trainable: `z`, float32, in the last member, `trainable[-1]["subspace"]["z"]`.
        Fixed: both parts of the state of `tx`, and what the projection draws, under
        names such as `query/kernel/a` (`query/kernel/0/a` for member 0 of a chain).
        `tx` draws from the very key, so that it starts as it would alone.

    Raises:
        TypeError: If `tx` is no transform, `d` no int or `projection` no `Projection`.
        ValueError: If `d < 1`; in `init`, if `d > D`, `tx` trains nothing or something
            that is not floating; in `apply`, if the state is of another transform or
            tree.

    Example:
        >>> params = {"w": jnp.ones((4, 3))}
        >>> tx = lrk.subspace.over(lrk.lora(2), 5, lrk.subspace.dense())
        >>> state = tx.init(jax.random.key(0), params)
        >>> lrk.count(state)  # P has 14 x 5 entries, the factors have 14
        (5, 84)
        >>> type(tx.apply(params, state)["w"]).__name__
        'LowRank'

    Notes:
        Uni-LoRA, with `gather()`, has no `theta_0`: both factors are `P z`, from a
        random `z`, since at `z = 0` all gradients are zero. With LoRA's `theta_0` (`A`
        random, `B` zero) `z = 0` is a start like any other.

    References:
        Lotfi et al., Non-vacuous generalization bounds for large language models, 2023,
        arXiv:2312.17173: SubLoRA, theta = theta_0 + LoRA(P w).
    """
    if not isinstance(tx, Transform):
        raise TypeError(f"{_WHO}: expected a transform, got {tx!r}. Pass lrk.lora(8).")
    d = check_dimension(_WHO, d)
    check_projection(_WHO, projection)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(_WHO, key)
        inner = tx.init(key, params)
        places = _places(inner.trainable)
        _check_trained(places)
        _check.check_hashes(_WHO, places)
        sizes = sizes_of(places)
        check_total(_WHO, d, sizes)
        drawn = projection.draw(_tree.leaf_key(key, SUBSPACE), sizes, d)
        none = _emptied(inner.trainable)
        z = {SUBSPACE: {"z": jnp.zeros(d, jnp.float32)}}
        return State((none, none, z), (inner.fixed, inner.trainable, drawn))

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        fixed, start, drawn = _members(state)
        places = _places(start)
        own = State(state.trainable[-1], drawn)
        z = taken(_WHO, places, own, projection, d)["z"]
        moved = moves(_WHO, projection, drawn, z, places)
        now = {p: leaf + moved[p].astype(leaf.dtype) for p, leaf in places.items()}
        return tx.apply(params, State(_replaced(start, now), fixed), key=key)

    return Transform(init, apply)


def _members(state: State) -> tuple[Any, Any, Any]:
    """What a state of `over` keeps fixed.

    Raises:
        ValueError: If it is no such state.
    """
    counts = [len(part) if isinstance(part, tuple) else None for part in state]
    if counts != [3, 3]:
        raise ValueError(
            f"{_WHO}: expected a state of 3 members, got {counts} (trainable, fixed). "
            "Pass the State that this transform's own init returned."
        )
    return state.fixed


def _places(trained: PyTree) -> dict[Path, Any]:
    """All arrays that a transform trains: `path/name`, or `path/member/name`."""
    flat = jax.tree_util.tree_flatten_with_path(trained)[0]
    return {_name(keys): leaf for keys, leaf in flat}


def _name(keys: tuple[Any, ...]) -> str:
    """The path of the leaf first, then the member of the chain."""
    members = [key for key in keys if isinstance(key, jax.tree_util.SequenceKey)]
    path, *rest = [key for key in keys if key not in members]
    return _tree.join([path, *members, *rest])


def _replaced(trained: PyTree, new: Mapping[Path, Array]) -> PyTree:
    """What a transform trains, with other numbers."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(trained)
    return jax.tree.unflatten(treedef, [new[_name(keys)] for keys, _ in flat])


def _emptied(trained: PyTree) -> PyTree:
    """The members of a state, with no path in them."""
    if isinstance(trained, tuple):
        return tuple(_emptied(member) for member in trained)
    return {}


def _check_trained(places: Mapping[Path, Any]) -> None:
    """Refuse a transform that trains nothing, or what cannot move.

    Raises:
        ValueError: If it does.
    """
    if not places:
        raise ValueError(f"{_WHO}: the transform trains nothing. Pass lrk.lora(8).")
    if bad := [path for path, leaf in places.items() if not is_floating(leaf)]:
        raise ValueError(
            f"{_WHO}: cannot move {_tree.quoted(bad)}: not floating. Leave such leaves "
            "out of the transform."
        )
