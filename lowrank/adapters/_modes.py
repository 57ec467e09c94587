"""Which layer and which type of weight a leaf is: the modes of a tensor of weights."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowrank import _check, _tree
from lowrank._axes import Axes
from lowrank._base import Path
from lowrank.adapters._lora import Initializer

# A regular expression with groups `layer` and `type`, or `path -> (layer, type)`.
Groups = str | Callable[[Path], tuple[Any, Any]]

ALL = "all"


class Modes(NamedTuple):
    """The members of both modes, and which of them each leaf is.

    Attributes:
        layers: Names, in the order in which they first occur.
        types: Names, likewise.
        rows: By path, `layer_row` and `type_row`: which member a leaf is for each stack
            index, int32.
    """

    layers: tuple[str, ...]
    types: tuple[str, ...]
    rows: dict[Path, dict[str, Array]]


def check_groups(who: str, groups: Any) -> Callable[[Path], tuple[Any, Any] | None]:
    """A function of the path from either form of `groups`.

    Raises:
        TypeError: If it is neither an expression nor a function.
        ValueError: If the expression does not compile, or has neither group.
    """
    if callable(groups):
        return groups
    if not isinstance(groups, str):
        raise TypeError(
            f"{who}: groups must be a regular expression or a function of the path, "
            f"got {groups!r}. Pass r'(?P<layer>\\d+)/(?P<type>query|value)/kernel$'."
        )
    try:
        pattern = re.compile(groups)
    except re.error as error:
        reason = f"{who}: groups={groups!r} is no regular expression: {error}."
        raise ValueError(reason) from error
    if not {"layer", "type"} & set(pattern.groupindex):
        raise ValueError(
            f"{who}: groups={groups!r} has neither a group 'layer' nor 'type'. Write "
            "(?P<layer>...) and (?P<type>...)."
        )
    one_type = None if "type" in pattern.groupindex else ALL

    def read(path: Path) -> tuple[Any, Any] | None:
        found = pattern.search(path)
        if found is None:
            return None
        named = found.groupdict()
        return named.get("layer"), named.get("type", one_type)

    return read


def read_modes(
    who: str,
    read: Callable[[Path], tuple[Any, Any] | None],
    chosen: Mapping[Path, Any],
    axes: Mapping[Path, Axes],
) -> Modes:
    """The layer and the type of every leaf; a stacked leaf is as many layers.

    Raises:
        ValueError: If a leaf has no layer or no type, or two are the same member. All
            such leaves are named.
    """
    members: dict[Path, list[tuple[str, str]]] = {}
    bad = []
    for path, leaf in chosen.items():
        stack = axes[path].sizes(leaf.shape).stack
        answer = read(path)
        if reason := _unclear(answer, stack):
            bad.append(f"{_tree.describe(path, leaf)}: {reason}")
        elif answer is not None:
            layer, kind = answer
            inner = ["/".join(map(str, index)) for index in np.ndindex(stack)]
            front = [] if layer is None else [str(layer)]
            names = ["/".join([*front, *([name] if name else [])]) for name in inner]
            members[path] = [(name, str(kind)) for name in names]
    bad += _twice(members)
    if bad:
        raise ValueError(
            f"{who}: cannot tell layer and type of {'; '.join(bad)}. Name both in "
            "groups= for every leaf that select= takes."
        )
    flat = [member for own in members.values() for member in own]
    layers, types = (tuple(dict.fromkeys(names)) for names in zip(*flat, strict=True))
    rows: dict[Path, dict[str, Array]] = {}
    for path, own in members.items():
        stack = axes[path].sizes(chosen[path].shape).stack
        layer = np.array([layers.index(name) for name, _ in own], np.int32)
        kind = np.array([types.index(name) for _, name in own], np.int32)
        rows[path] = {
            "layer_row": jnp.asarray(layer.reshape(stack)),
            "type_row": jnp.asarray(kind.reshape(stack)),
        }
    return Modes(layers, types, rows)


def _unclear(answer: Any, stack: tuple[int, ...]) -> str | None:
    """Why an answer of `groups` does not tell layer and type, or None."""
    if answer is None:
        return "groups does not match"
    if not isinstance(answer, tuple) or len(answer) != 2:
        return f"groups must return (layer, type), got {answer!r}"
    layer, kind = answer
    if not isinstance(kind, str) or not kind:
        return "no type"
    if not (isinstance(layer, (str, int)) or layer is None):
        return f"the layer must be a string or an int, got {layer!r}"
    return None if stack or layer not in (None, "") else "no layer, and no stack axis"


def _twice(members: Mapping[Path, list[tuple[str, str]]]) -> list[str]:
    """Leaves that would be one member of the tensor."""
    seen: dict[tuple[str, str], Path] = {}
    bad = []
    for path, own in members.items():
        for layer, kind in own:
            other = seen.setdefault((layer, kind), path)
            if other != path:
                bad.append(f"'{other}' and '{path}': both layer {layer!r}, {kind!r}")
                break
    return bad


def draw_modes(
    who: str,
    init: Initializer,
    key: Array,
    modes: Modes,
    heads: int | None,
    shape: tuple[int, ...],
) -> dict[str, Array]:
    """`layer`, `type` (and `head`): an array `[members, *shape]` for each mode.

    Each row has the key of its own name, so that a further member moves no other's row.

    Raises:
        ValueError: If two members of a mode have one crc32.
    """
    members = {"layer": modes.layers, "type": modes.types}
    if heads is not None:
        members["head"] = tuple(map(str, range(heads)))

    def draw(code: Array) -> Array:
        return init(jax.random.fold_in(key, code), shape, jnp.float32)

    drawn = {}
    for mode, names in members.items():
        _check.check_hashes(who, [f"{mode}/{name}" for name in names])
        codes = np.array([_tree.path_code(f"{mode}/{name}") for name in names])
        drawn[mode] = jax.vmap(draw)(jnp.asarray(codes))
    return drawn


def member_rows(
    shared: Mapping[str, Array], index: Mapping[str, Array]
) -> tuple[Array, Array]:
    """What the layer and the type of one leaf have in `layer` and `type`."""
    layer, kind = (
        jnp.take(shared[mode], index[f"{mode}_row"], axis=0, mode="clip")
        for mode in ("layer", "type")
    )
    return layer, kind


def mode_shapes(heads: int | None, *shape: int) -> dict[str, _check.Shape]:
    """Names and shapes of what `draw_modes` draws; None for a number of members."""
    rows: _check.Shape = (None, *shape)
    shapes = {"layer": rows, "type": rows}
    return shapes if heads is None else shapes | {"head": (heads, *shape)}
