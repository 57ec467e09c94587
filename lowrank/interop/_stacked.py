"""Layers that a tree holds as one, `[layers, ...]`, and that a file numbers."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from lowrank._axes import Axes
from lowrank._base import Path, as_struct
from lowrank.interop._adapter import Factors
from lowrank.operators import _dispatch as ask

Leaves = Mapping[Path, Any]


def one_by_one(who: str, leaves: Leaves, at: str | None) -> dict[Path, Any]:
    """The leaves with those below `at` as shapes, one for each layer: `at/0/name`.

    Raises:
        ValueError: If there are no such leaves, or they differ in their first axis.
    """
    return _numbered(who, leaves, at, _shapes)


def taken_apart(who: str, leaves: Leaves, at: str | None) -> dict[Path, Any]:
    """The same with arrays and operators.

    Raises:
        ValueError: As `one_by_one`; or if an operator cannot be taken apart.
    """
    return _numbered(who, leaves, at, _slices)


def _numbered(who: str, leaves: Leaves, at: str | None, parts: Any) -> dict[Path, Any]:
    if at is None:
        return dict(leaves)
    inside = {p: x for p, x in leaves.items() if p.startswith(f"{at}/")}
    counts = {tuple(leaf.shape[:1]) for leaf in inside.values()}
    if len(counts) != 1 or () in counts:
        raise ValueError(
            f"{who}: no stacked layers at '{at}': expected leaves with one leading "
            f"axis, got {sorted(counts)}. Pass the path of the stacked layers."
        )
    found = {}
    for path, leaf in leaves.items():
        if path not in inside:
            found[path] = leaf
            continue
        for number, part in enumerate(parts(who, path, leaf)):
            found[f"{at}/{number}/{path.removeprefix(f'{at}/')}"] = part
    return found


def _shapes(who: str, path: Path, leaf: Any) -> list[Any]:
    del who, path
    count, *rest = leaf.shape
    return [jax.ShapeDtypeStruct(tuple(rest), as_struct(leaf).dtype)] * count


def _slices(who: str, path: Path, leaf: Any) -> list[Any]:
    parts = ask.unstack(leaf)
    if ask.declined(parts):
        raise ValueError(
            f"{who}: cannot take '{path}' ({type(leaf).__name__}) apart into layers. "
            "Write a tree whose layers are apart."
        )
    arrays, rebuild = parts
    return [
        rebuild(jax.tree.map(lambda x, i=i: x[i], arrays)) for i in range(leaf.shape[0])
    ]


def put_together(
    found: Mapping[Path, Factors],
    arrays: Mapping[Path, Mapping[str, np.ndarray]],
    dims: Mapping[Path, Axes],
    at: str | None,
    count: int,
) -> tuple[dict[Path, Factors], dict[Path, dict[str, np.ndarray]], dict[Path, Axes]]:
    """What was found for each layer as what the stacked leaves get."""
    head = f"{at}/"
    own: dict[Path, Factors] = {}
    stacked: dict[Path, dict[str, np.ndarray]] = {}
    axes: dict[Path, Axes] = {}
    for path in found:
        number, _, name = path.removeprefix(head).partition("/")
        if at is None or not path.startswith(head):
            own[path], stacked[path] = found[path], dict(arrays[path])
            axes[path] = dims[path]
        elif number == "0":
            layers = [arrays[f"{head}{i}/{name}"] for i in range(count)]
            whole = f"{head}{name}"
            own[whole] = found[path]
            stacked[whole] = {k: np.stack([x[k] for x in layers]) for k in layers[0]}
            shifted = (tuple(d + 1 for d in side) for side in dims[path][1:])
            axes[whole] = Axes((0,), *shifted)
    return own, stacked, axes


def unlike(found: Mapping[Path, Factors], at: str | None, count: int) -> list[str]:
    """Stacked leaves whose layers are not all there, or not of one rank and scale."""
    bad = []
    inside = [path for path in found if at is not None and path.startswith(f"{at}/")]
    names = {path.removeprefix(f"{at}/").partition("/")[2] for path in inside}
    for name in sorted(names):
        layers = [found.get(f"{at}/{i}/{name}") for i in range(count)]
        kinds = {None if x is None else (x.rank, x.scale) for x in layers}
        if len(kinds) > 1:
            bad.append(f"'{at}/{name}': its layers differ in rank or scale, or lack it")
    return bad
