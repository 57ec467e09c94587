"""Leaves added to a tree: trained rows beside the leaves that give rows like them."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import DictKey, SequenceKey

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform, is_operator
from lowrank._select import Select, check_select, selected
from lowrank.adapters._lora import scale_of
from lowrank.adapters._two_layer import check_floating

Draw = Callable[[Array, tuple[int, ...], int], dict[str, Array]]
Form = Callable[[Mapping[str, Array]], Array]


def rows_beside(
    who: str,
    name: str,
    length: int,
    *,
    names: tuple[str, ...],
    draw: Draw,
    form: Form,
    scale: Any,
    select: Select,
    axes: Mapping[Path, Axes] | None,
    columns: int | None = None,
) -> Transform:
    """A transform that adds a leaf `name: [*stack, length, *out]` beside each leaf.

    Args:
        who: Name of the transform, for messages.
        name: Last part of the path of each new leaf.
        length: Number of rows.
        names: Names of the trainable arrays of a leaf.
        draw: `draw(key, stack, width)` makes those arrays, for rows of `width`.
        form: The rows `[*stack, length, width]` of those arrays.
        scale: What the rows are multiplied by; None for 1.
        select: Which leaves to put rows beside.
        axes: As for `lora`.
        columns: Width of the rows, then `[*stack, length, columns]`; None: the
            outputs of the leaf.

    Returns:
        A transform.

    Raises:
        TypeError: If a size is no int or `scale` no number.
        ValueError: If a size is below 1, or `name` is no part of a path.
    """
    check_size(who, "length", length)
    if columns is not None:
        check_size(who, "columns", columns)
    check_select(who, select)
    number = scale_of(who, length, None, scale)
    if not isinstance(name, str) or not name or "/" in name:
        raise ValueError(f"{who}: name must be one part of a path, got {name!r}.")

    def outputs(sizes: Axes) -> tuple[int, ...]:
        return sizes.outputs if columns is None else (columns,)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = resolve(who, chosen, axes)
        check_floating(who, chosen)
        add_beside(who, params, dict.fromkeys(chosen), name)
        trainable = {}
        for path, leaf in chosen.items():
            sizes = found[path].sizes(leaf.shape)
            width = math.prod(outputs(sizes))
            trainable[path] = draw(_tree.leaf_key(key, path), sizes.stack, width)
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        _check.check_state(who, leaves, state, trainable=names, fixed=("scale",))
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve(who, chosen, axes)
        new, bad = {}, []
        for path, leaf in chosen.items():
            sizes = found[path].sizes(leaf.shape)
            rows = form(state.trainable[path])
            width = math.prod(outputs(sizes))
            if rows.ndim != len(sizes.stack) + 2 or rows.shape[-1] != width:
                bad.append(f"{tuple(rows.shape)} at '{path}'")
                continue
            rows = rows * state.fixed[path]["scale"].astype(rows.dtype)
            shape = (*sizes.stack, rows.shape[-2], *outputs(sizes))
            new[path] = rows.reshape(shape).astype(leaf.dtype)
        if bad:
            raise ValueError(
                f"{who}: rows of {', '.join(bad)} do not fit the leaf. Pass the tree "
                "that init saw; call apply inside jax.vmap or lrk.map_tasks for states "
                "that lrk.stack made."
            )
        return add_beside(who, params, new, name)

    return Transform(init, apply)


def check_size(who: str, name: str, size: Any) -> None:
    """Refuse what is no positive int.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is below 1.
    """
    if isinstance(size, bool) or not isinstance(size, int):
        raise TypeError(f"{who}: {name} must be an int, got {size!r}.")
    if size < 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {size}.")


def add_beside(who: str, tree: PyTree, new: Mapping[Path, Any], name: str) -> PyTree:
    """The same tree with a leaf `name` beside each leaf that is named by path.

    Only the containers on the way are copied; all other leaves are the same objects.

    Raises:
        ValueError: If a leaf does not stand in a dict, or has such a neighbour; all are
            named.
    """
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=is_operator)[0]
    places = [keys for keys, _ in flat]
    paths = _tree.path_strings(places)
    known, bad = set(paths), []
    for path, keys in zip(paths, places, strict=True):
        if path not in new:
            continue
        inside = all(isinstance(key, (DictKey, SequenceKey)) for key in keys)
        if not inside or not isinstance(keys[-1], DictKey):
            bad.append(f"'{path}' does not stand in a nested dict")
        elif (other := _tree.join([*keys[:-1], DictKey(name)])) in known:
            bad.append(f"'{other}' is there already")
        else:
            tree = _with(tree, keys[:-1], name, new[path])
    if bad:
        raise ValueError(
            f"{who}: cannot add {name!r}: {'; '.join(bad)}. Select leaves of nested "
            "dicts, once each, or pass another name=."
        )
    return tree


def _with(node: Any, keys: tuple[Any, ...], name: str, leaf: Any) -> Any:
    """A container with a leaf put in, copied on the way there."""
    if not keys:
        return type(node)({**node, name: leaf})
    head, rest = keys[0], keys[1:]
    if isinstance(head, DictKey):
        return type(node)({**node, head.key: _with(node[head.key], rest, name, leaf)})
    own = list(node)
    own[head.idx] = _with(own[head.idx], rest, name, leaf)
    return type(node)(own)
