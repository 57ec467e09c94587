"""Layers in a list against layers stacked in one leaf, as trees of parameters."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank.models._functional import Params


def stack_layers(params: Mapping[str, Any], at: str = "model/layers") -> Params:
    """Stack the layers of a parameter tree: `n` subtrees become one.

    A leaf `at/i/name` of shape `[...]`, for each layer `i`, becomes the leaf `at/name`
    of shape `[n, ...]`: what a model built with `scan=True` holds.

    Args:
        params: Nested dict whose node `at` has the children "0", "1", ... "n-1".
        at: Path of that node.

    Returns:
        A new tree; leaves elsewhere are the same objects. The inverse of
        `unstack_layers`.

    Raises:
        ValueError: If there is no such node, or its children are not layers with equal
            paths, shapes and dtypes; all differences are listed.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowrank.models import stack_layers
        >>> layer = {"kernel": jnp.ones((2, 3))}
        >>> tree = stack_layers({"h": {"0": layer, "1": layer}}, "h")
        >>> tree["h"]["kernel"].shape
        (2, 2, 3)
    """
    node = _node("stack_layers", params, at)
    names = [str(i) for i in range(len(node))]
    if not names or set(node) != set(names):
        raise ValueError(
            f"stack_layers: no layers at '{at}': expected the children '0', '1', ..., "
            f"got {sorted(node)}. Pass the path of the list of layers."
        )
    first = _specs(node["0"])
    wrong = [
        f"'{at}/{name}/{path}': expected {first.get(path)}, got {specs.get(path)}"
        for name in names
        for specs in [_specs(node[name])]
        for path in sorted(first.keys() | specs.keys())
        if first.get(path) != specs.get(path)
    ]
    if wrong:
        raise ValueError(
            f"stack_layers: layers differ from the first at {'; '.join(wrong)}. Layers "
            "that are stacked are alike."
        )
    layers = [node[name] for name in names]
    return _put(params, at, jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers))


def unstack_layers(params: Mapping[str, Any], at: str = "model/layers") -> Params:
    """Take stacked layers apart: one subtree becomes `n`.

    A leaf `at/name` of shape `[n, ...]` becomes the leaves `at/i/name` of shape
    `[...]`.

    Args:
        params: Nested dict in which all leaves below `at` have one leading axis.
        at: Path of the stacked layers.

    Returns:
        A new tree; leaves elsewhere are the same objects. The inverse of
        `stack_layers`.

    Raises:
        ValueError: If there is no such node, or its leaves differ in the leading axis.

    Example:
        >>> import jax.numpy as jnp
        >>> from lowrank.models import unstack_layers
        >>> tree = unstack_layers({"h": {"kernel": jnp.ones((2, 2, 3))}}, "h")
        >>> sorted(tree["h"]), tree["h"]["1"]["kernel"].shape
        (['0', '1'], (2, 3))
    """
    node = _node("unstack_layers", params, at)
    sizes = {path: shape[:1] for path, (shape, _) in _specs(node).items()}
    if len(set(sizes.values())) != 1 or () in sizes.values():
        raise ValueError(
            f"unstack_layers: no stacked layers at '{at}': expected one leading axis, "
            f"got {sizes}. Pass the path of the stacked layers."
        )
    ((layers,),) = set(sizes.values())
    parts = {
        str(i): jax.tree.map(lambda leaf, i=i: leaf[i], dict(node))
        for i in range(layers)
    }
    return _put(params, at, parts)


def _node(who: str, params: Mapping[str, Any], at: str) -> Mapping[str, Any]:
    """The subtree at a path."""
    node: Any = params
    for part in at.split("/"):
        node = node.get(part) if isinstance(node, Mapping) else None
    if not isinstance(node, Mapping):
        raise ValueError(
            f"{who}: no layers at '{at}': expected a path to a dict of the tree, whose "
            f"first names are {sorted(params)}. Pass at=..."
        )
    return node


def _put(tree: Mapping[str, Any], at: str, new: Params) -> Params:
    """The tree with another subtree at a path."""
    name, _, rest = at.partition("/")
    return {**tree, name: _put(tree[name], rest, new) if rest else new}


def _specs(tree: Any) -> dict[str, tuple[tuple[int, ...], Any]]:
    """Shape and dtype of every leaf, by path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, leaf.dtype)
        for path, leaf in jax.tree.leaves_with_path(tree)
    }
