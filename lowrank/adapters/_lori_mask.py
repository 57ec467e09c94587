"""LoRI's mask: the largest entries of a trained `B`."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._axes import Axes
from lowrank._base import Array, Path, State
from lowrank._combine import state_parts

_SCOPES = ("model", "layer", "matrix", "projection")


def keep_largest(values: Array, count: int) -> Array:
    """A 0/1 vector with ones at the `count` largest entries by size.

    Ties go to the earlier entry, so the number of ones is exact.
    """
    _, index = jax.lax.top_k(jnp.abs(values), count)
    return jnp.zeros(values.shape, bool).at[index].set(True)


def lori_mask(
    state: State,
    *,
    density: float = 0.1,
    scope: str | Callable[[Path], str] = "model",
    axes: Mapping[Path, Axes] | None = None,
) -> dict[Path, Array]:
    """Extract LoRI's mask: keep the entries of `B` that grew largest.

    Of the `N` entries of all `B` in a group, the `int(density * N)` largest by `|B|`
    are kept (at least one). With `scope="model"` all layers and projections are one
    group, as the authors do.

    Args:
        state: A trained state of `lori` or `lora`, or of a chain that holds one: every
            dense leaf `b` counts. For states that `lrk.stack` made, use `jax.vmap`.
        density: Share of the entries to keep, in (0, 1].
        scope: Which entries compete: `model`; `layer`, the path up to its first number;
            `matrix`, each leaf; `projection`, the path without its numbers; or a
            function from a path to the name of its group.
        axes: Axes by path, for leaves with stacks of layers: each index of a stack is
            then a layer and a matrix of its own.

    Returns:
        A mask by path, of booleans, each of the shape of its `B`; what `lori` takes.

    Raises:
        ValueError: If the density or the scope is no such thing, the state has no dense
            `b`, or all of them are zero.

    Example:
        >>> b = jnp.array([[3.0, -5.0], [1.0, 0.0]])
        >>> lrk.lori_mask(lrk.State({"w": {"b": b}}, {}), density=0.5)["w"].tolist()
        [[True, True], [False, False]]

    Notes:
        The authors keep `|B| >= t` for a threshold `t`, so ties can keep more; here the
        number is exact.

    References:
        Zhang et al., LoRI, 2025, arXiv:2504.07448; the authors' `extract_mask.py`
        (`get_model_mask` is the scope that they use).
    """
    if not 0 < density <= 1:
        raise ValueError(f"lori_mask: density must lie in (0, 1], got {density}.")
    group = _group(scope)
    found = _factors(state)
    by_layer = scope in ("layer", "matrix")
    split = {p: _layers(b, p, axes) if by_layer else 1 for p, b in found.items()}
    parts: dict[str, list[tuple[Path, int]]] = {}
    for path in found:
        for i in range(split[path]):
            name = group(path) + (f"#{i}" if split[path] > 1 else "")
            parts.setdefault(name, []).append((path, i))
    rows = {p: b.reshape(split[p], -1) for p, b in found.items()}
    pieces: dict[tuple[Path, int], Array] = {}
    for members in parts.values():
        flat = jnp.concatenate([rows[path][i] for path, i in members])
        keep = keep_largest(flat, max(1, int(density * flat.size)))
        ends = np.cumsum([rows[path].shape[1] for path, _ in members])[:-1]
        pieces |= zip(members, jnp.split(keep, ends), strict=True)
    return {
        path: jnp.stack([pieces[path, i] for i in range(split[path])]).reshape(b.shape)
        for path, b in found.items()
    }


def _group(scope: Any) -> Callable[[Path], str]:
    """From a path to the name of its group."""
    groups: dict[str, Callable[[Path], str]] = {
        "model": lambda _: "",
        "layer": _layer,
        "matrix": lambda path: path,
        "projection": lambda path: re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path),
    }
    if callable(scope):
        return scope
    if scope not in groups:
        raise ValueError(
            f"lori_mask: unknown scope {scope!r}. Use one of {_SCOPES}, or a function "
            "from a path to a name."
        )
    return groups[scope]


def _layer(path: Path) -> str:
    """The path up to its first number; all of it if there is none."""
    match = re.match(r"(.*?(^|/)\d+)(/|$)", path)
    return match[1] if match else path


def _layers(b: Array, path: Path, axes: Mapping[Path, Axes] | None) -> int:
    """How many matrices a leaf holds: the product of its stack sizes."""
    stack = axes[path].stack if axes and path in axes else ()
    return math.prod(b.shape[: len(stack)])


def _factors(state: State) -> dict[Path, Array]:
    """Every dense `b` of a state.

    Raises:
        ValueError: If there is none, or all are zero.
    """
    found: dict[Path, Array] = {}
    parts = zip(state_parts(state.trainable), state_parts(state.fixed), strict=True)
    for train, fix in parts:
        for path, leaf in train.items():
            if "b" in leaf and "index" not in fix.get(path, {}):
                found[path] = leaf["b"]
    if not found:
        raise ValueError(
            "lori_mask: the state has no dense `b`. Pass a trained state of lrk.lori "
            "without a mask, or of lrk.lora."
        )
    concrete = all(_compat.is_concrete(b) for b in found.values())
    if concrete and not any(np.asarray(b).any() for b in found.values()):
        raise ValueError(
            "lori_mask: every `b` is zero. Train before extracting a mask."
        )
    return found
