"""LoRI's mask: the largest entries of a trained `B`."""

import math
import re
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._axes import Axes
from lowrank._base import Array, Path, State
from lowrank._combine import state_parts


def keep_largest(values: Array, density: float) -> Array:
    """A 0/1 vector with ones at the `max(1, int(density * N))` largest of `N` entries.

    Ties go to the earlier entry, so the number of ones is exact.
    """
    _, index = jax.lax.top_k(values, max(1, int(density * values.size)))
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
        scope: Which entries compete: `model`; `layer`, the path up to its first number,
            or else the first index of a stack, with all stacks of that length;
            `matrix`, each matrix of each leaf; `projection`, the path without its
            numbers; or a function from a path to the name of its group.
        axes: Axes by path, which say what leaves are stacks; what `lori` got.

    Returns:
        A mask by path, of booleans, each of the shape of its `B`; what `lori` takes.

    Raises:
        ValueError: If the density or the scope is no such thing, the state has no dense
            `b` or two of one path, or, where that can be seen, all are zero or some are
            not finite.

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
    check_density("lori_mask", density)
    size = {path: jnp.abs(b) for path, b in _factors(state).items()}
    keep = lambda _, values: keep_largest(values, density)  # noqa: E731
    return by_group("lori_mask", size, scope, axes, keep)


def check_density(who: str, density: float) -> None:
    """Refuse what is no share.

    Raises:
        ValueError: If the density lies outside (0, 1].
    """
    if not 0 < density <= 1:
        raise ValueError(f"{who}: density must lie in (0, 1], got {density}.")


# A leaf, or the part of it that one place of its stack holds.
Piece = tuple[Path, int]


def by_group(
    who: str,
    values: Mapping[Path, Array],
    scope: str | Callable[[Path], str],
    axes: Mapping[Path, Axes] | None,
    change: Callable[[Piece, Array], Array],
) -> dict[Path, Array]:
    """Change the entries of each group together, as one vector.

    Args:
        who: Name of the caller, for messages.
        values: Arrays by path, each of the shape of its `B`.
        scope: Which entries are one group; as for `lori_mask`.
        axes: Axes by path.
        change: From a group's first piece and its entries to as many new entries.

    Returns:
        The new entries by path, where the old ones were.

    Raises:
        ValueError: If there is no such scope.
    """
    group = _group(who, scope)
    names = {p: group(p, _stack(x, p, axes)) for p, x in values.items()}
    parts: dict[Hashable, list[Piece]] = {}
    for path, own in names.items():
        for i, name in enumerate(own):
            parts.setdefault(name, []).append((path, i))
    rows = {p: x.reshape(len(names[p]), -1) for p, x in values.items()}
    pieces: dict[Piece, Array] = {}
    for members in parts.values():
        flat = jnp.concatenate([rows[path][i] for path, i in members])
        ends = np.cumsum([rows[path].shape[1] for path, _ in members])[:-1]
        new = jnp.split(change(members[0], flat), ends)
        pieces |= zip(members, new, strict=True)
    return {
        path: jnp.stack([pieces[path, i] for i in range(len(own))]).reshape(
            values[path].shape
        )
        for path, own in names.items()
    }


# For each scope, the group of every part of a leaf, from its path and stack sizes.
Groups = Callable[[Path, tuple[int, ...]], list[Hashable]]


def _by_layer(path: Path, stack: tuple[int, ...]) -> list[Hashable]:
    """The path up to its first number, else the places in a stack, else the path."""
    match = re.match(r"(.*?(^|/)\d+)(/|$)", path)
    if match or not stack:
        return [match[1] if match else path]
    return [(stack[0], i) for i in range(stack[0])]


_SCOPES: dict[str, Groups] = {
    "model": lambda path, stack: [""],  # noqa: ARG005
    "layer": _by_layer,
    "matrix": lambda path, stack: [(path, i) for i in range(math.prod(stack))],
    "projection": lambda path, stack: [  # noqa: ARG005
        re.sub(r"(^|/)\d+(?=/|$)", r"\1*", path)
    ],
}


def _group(who: str, scope: Any) -> Groups:
    """How a scope divides the leaves.

    Raises:
        ValueError: If there is no such scope.
    """
    if callable(scope):
        return lambda path, _: [scope(path)]
    if scope not in _SCOPES:
        raise ValueError(
            f"{who}: unknown scope {scope!r}. Use one of {tuple(_SCOPES)}, or a "
            "function from a path to a name."
        )
    return _SCOPES[scope]


def _stack(b: Array, path: Path, axes: Mapping[Path, Axes] | None) -> tuple[int, ...]:
    """Sizes of the stack axes of a leaf."""
    return b.shape[: len(axes[path].stack)] if axes and path in axes else ()


def _factors(state: State) -> dict[Path, Array]:
    """Every dense `b` of a state.

    Raises:
        ValueError: If there is none, two have one path, all are zero, or some are not
            finite.
    """
    found: dict[Path, Array] = {}
    twice = []
    parts = zip(state_parts(state.trainable), state_parts(state.fixed), strict=True)
    for train, fix in parts:
        for path, leaf in train.items():
            if "b" in leaf and "index" not in fix.get(path, {}):
                twice += [path] if path in found else []
                found[path] = leaf["b"]
    if not found:
        raise ValueError(
            "lori_mask: the state has no dense `b`. Pass a trained state of lrk.lori "
            "without a mask, or of lrk.lora."
        )
    if twice:
        raise ValueError(
            f"lori_mask: more than one member of the chain has a `b` at {twice}. Pass "
            "the state of one member: State(state.trainable[i], state.fixed[i])."
        )
    seen = {p: np.asarray(b) for p, b in found.items() if _compat.is_known(b)}
    wrong = [path for path, b in seen.items() if not np.isfinite(b).all()]
    if wrong:
        raise ValueError(
            f"lori_mask: `b` is not finite at {wrong}. Train again at a lower rate."
        )
    if len(seen) == len(found) and not any(b.any() for b in seen.values()):
        raise ValueError(
            "lori_mask: every `b` is zero. Train before extracting a mask."
        )
    return found
