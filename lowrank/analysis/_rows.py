"""From leaves to rows: layers of one shape are measured in one call."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import Array, Path, as_struct
from lowrank._select import Select, check_select

MOST = 2**24  # entries of weights that one call holds at a time


class Item(NamedTuple):
    """One leaf to be measured.

    Attributes:
        path: Where it is.
        arrays: What is measured, each `[*stack, ...]`, or None.
        facts: What is known without measuring.
    """

    path: Path
    arrays: tuple[Any, ...]
    facts: dict[str, Any]

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the stack, read off the first array, a matrix."""
        return self.arrays[0].shape[:-2]

    def names(self) -> list[str]:
        """The path for each layer: `layers/kernel[3]`."""
        indices = np.ndindex(*self.stack)
        marks = ["[" + ",".join(map(str, i)) + "]" if i else "" for i in indices]
        return [self.path + mark for mark in marks]

    def flat(self) -> list[Array | None]:
        """The arrays with one axis of layers."""
        return [
            None if x is None else x.reshape(-1, *x.shape[len(self.stack) :])
            for x in self.arrays
        ]


def measured(
    items: Sequence[Item], measure: Callable[..., dict[str, Array]]
) -> dict[Path, list[dict[str, Any]]]:
    """The rows of all items, by path.

    Args:
        items: Leaves.
        measure: From arrays with an axis of layers in front to numbers `[layers]`, by
            name; called once for each kind of shapes, or for each part of a large one.
    """
    groups: dict[Any, list[Item]] = {}
    for item in items:
        kind = tuple(None if x is None else x.shape[1:] for x in item.flat())
        groups.setdefault(kind, []).append(item)
    found: dict[Path, list[dict[str, Any]]] = {}
    for own in groups.values():
        columns = zip(*(item.flat() for item in own), strict=True)
        arrays = [None if c[0] is None else jnp.concatenate(c) for c in columns]
        numbers = iter(_in_parts(arrays, measure))
        for item in own:
            found[item.path] = [
                {"path": name} | item.facts | next(numbers) for name in item.names()
            ]
    return found


def _in_parts(
    arrays: Sequence[Array | None], measure: Callable[..., dict[str, Array]]
) -> list[dict[str, Any]]:
    """Rows of one kind, so many at a time that their weights fit."""
    own = [x for x in arrays if x is not None]
    layers = own[0].shape[0]
    most = max(1, MOST // max(x[0].size for x in own))
    rows = []
    for start in range(0, layers, most):
        part = [None if x is None else x[start : start + most] for x in arrays]
        columns = {k: np.asarray(v) for k, v in measure(*part).items()}
        size = len(next(iter(columns.values())))
        rows += [{k: v[i].item() for k, v in columns.items()} for i in range(size)]
    return rows


def chosen(
    who: str, leaves: Mapping[Path, Any], select: Select | None
) -> dict[Path, Any]:
    """The leaves that are looked at.

    Raises:
        TypeError: If `select` is no predicate.
        ValueError: If there are no leaves, it selects none, or one is traced.
    """
    if not leaves:
        raise ValueError(f"{who}: the tree holds no arrays. Pass an adapted tree.")
    if select is not None:
        check_select(who, select)
        own = {p: x for p, x in leaves.items() if select(p, as_struct(x))}
    else:
        own = dict(leaves)
    if not own:
        raise ValueError(
            f"{who}: the selection matches none of {len(leaves)} leaves "
            f"({_tree.quoted(list(leaves)[:8])}). Check select=."
        )
    traced = [
        path
        for path, leaf in own.items()
        if not all(map(_compat.is_known, jax.tree.leaves(leaf)))
    ]
    if traced:
        raise ValueError(
            f"{who}: expected arrays with numbers in them, got tracers or shapes at "
            f"{_tree.quoted(traced[:8])}. Call it outside jit; the functions that it "
            "is made of run inside."
        )
    return own
