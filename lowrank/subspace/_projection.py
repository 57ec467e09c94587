"""Random linear maps to all selected weights, and how a transform uses one."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from lowrank import _check, _tree
from lowrank._base import Array, Path, PyTree, State, is_floating
from lowrank._select import Select, selected

# Where the state keeps what belongs to no single leaf.
SUBSPACE = "subspace"

Sizes = Mapping[Path, int]
Fixed = Mapping[Path, Mapping[str, Array]]


class Projection(NamedTuple):
    """A random linear map from `d` numbers to all selected weights.

    The weights are one vector of `D` entries, leaf after leaf in the order of the tree.
    Both functions get `sizes`, the number of entries of each leaf, and so see the
    network as a whole: columns are normalised over all of it.

    Attributes:
        names: What `draw` gives for each leaf.
        draw: `draw(key, sizes, d)`: the fixed arrays of every path, `{path: {name:
            array}}`; it must not look at anything else.
        apply: `apply(fixed, z, sizes)`: by path, the leaf's part of `P z`, as a vector.
            Linear in `z: [d]`.
        nested: Whether the first `k` of `d` numbers span the subspace that the same key
            gives for `d=k`: then a sweep over `d` may draw once and mask `z`. Columns
            are the same up to a factor each.
        shared: What `draw` gives at the path `subspace`, for all leaves together.

    Example:
        >>> lrk.subspace.dense().names
        ('p',)
        >>> lrk.subspace.dense().nested, lrk.subspace.gather().nested
        (True, False)
    """

    names: tuple[str, ...]
    draw: Callable[[Array, Sizes, int], dict[Path, dict[str, Array]]]
    apply: Callable[[Fixed, Array, Sizes], dict[Path, Array]]
    nested: bool = False
    shared: tuple[str, ...] = ()


def floating(path: Path, leaf: Any) -> bool:
    """Selects every leaf that could be trained."""
    del path
    return is_floating(leaf)


def check_projection(who: str, projection: Any) -> None:
    """Refuse what is no projection.

    Raises:
        TypeError: If it is none.
    """
    if not isinstance(projection, Projection):
        raise TypeError(
            f"{who}: expected a Projection, got {projection!r}. Pass "
            "lrk.subspace.dense() or lrk.subspace.gather()."
        )


def check_dimension(who: str, d: Any, name: str = "d") -> int:
    """A dimension as an int.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1.
    """
    if isinstance(d, bool) or not hasattr(d, "__index__"):
        raise TypeError(f"{who}: {name} must be an int, got {d!r}.")
    d = operator.index(d)
    if d < 1:
        raise ValueError(f"{who}: {name} must be at least 1, got {d}.")
    return d


def is_real(x: np.ndarray) -> bool:
    """Whether an array holds real numbers."""
    kinds = (jnp.integer, jnp.floating)
    return any(jnp.issubdtype(x.dtype, kind) for kind in kinds)


def sizes_of(chosen: Mapping[Path, Any]) -> dict[Path, int]:
    """Entries of each leaf."""
    return {path: math.prod(leaf.shape) for path, leaf in chosen.items()}


def moving(who: str, params: PyTree, select: Select) -> dict[Path, Any]:
    """The selected leaves, all of which can move.

    Raises:
        ValueError: If one cannot, or a leaf has the path of the trained vector.
    """
    if SUBSPACE in _tree.leaves(who, params):
        raise ValueError(
            f"{who}: a leaf has the path '{SUBSPACE}', where the state keeps what is "
            "trained. Rename it."
        )
    chosen = selected(who, params, select)
    if bad := [path for path, leaf in chosen.items() if not is_floating(leaf)]:
        raise ValueError(
            f"{who}: cannot move {_tree.quoted(bad)}: not floating. Leave them out "
            "with select=."
        )
    return chosen


def check_total(who: str, d: int, sizes: Sizes) -> None:
    """Refuse more dimensions than entries.

    Raises:
        ValueError: If there are more.
    """
    total = sum(sizes.values())
    if d > total:
        raise ValueError(
            f"{who}: d={d} exceeds the {total} entries of {_tree.quoted(sizes)}. "
            "Lower d, or select more leaves."
        )


def taken(
    who: str,
    leaves: Mapping[Path, Any],
    state: State,
    projection: Projection,
    d: int,
    names: tuple[str, ...] = ("z",),
) -> dict[str, Array]:
    """The trained vectors of a state that fits, with `d` numbers in all.

    Raises:
        TypeError: If there is no state.
        ValueError: If the state is of another tree or transform, or a stack of states.
    """
    if not isinstance(state, State):
        raise TypeError(
            f"{who}: expected a State, got {type(state).__name__}. Pass the State that "
            "this transform's own init returned."
        )
    trained, fixed = state
    dicts = isinstance(trained, Mapping) and isinstance(fixed, Mapping)
    if not dicts or list(trained) != [SUBSPACE]:
        raise ValueError(
            f"{who}: expected '{SUBSPACE}' as the one trainable path. Pass the State "
            "that this transform's own init returned."
        )
    own = {path: leaf for path, leaf in fixed.items() if path != SUBSPACE}
    _check.check_state(who, leaves, State({}, own), fixed=projection.names)
    at = {SUBSPACE: fixed.get(SUBSPACE, {})}
    _check.check_state(who, at, State({}, at), fixed=projection.shared)
    vectors = {name: trained[SUBSPACE].get(name) for name in names}
    for name, vector in vectors.items():
        if vector is None or vector.ndim != 1:
            got = "none" if vector is None else f"shape {tuple(vector.shape)}"
            raise ValueError(
                f"{who}: expected a vector '{name}' at '{SUBSPACE}', got {got}. Call "
                "apply inside jax.vmap or lrk.map_tasks for states that lrk.stack made."
            )
    got = {name: vector.shape[0] for name, vector in vectors.items()}
    if sum(got.values()) != d:
        raise ValueError(
            f"{who}: expected d={d} trained numbers, got {got}. Pass the State that "
            "this transform's own init returned."
        )
    return vectors


def moves(
    who: str, projection: Projection, fixed: Fixed, z: Array, chosen: Mapping[Path, Any]
) -> dict[Path, Array]:
    """What every chosen leaf, an array or an operator, moves by, in its shape.

    Raises:
        ValueError: If the state's arrays are of other leaves; all are named.
    """
    sizes = sizes_of(chosen)
    parts = projection.apply(fixed, z, sizes)
    bad = [
        f"{_tree.describe(path, leaf)}: the state moves {parts[path].size} entries"
        for path, leaf in chosen.items()
        if parts[path].size != sizes[path]
    ]
    if bad:
        raise ValueError(f"{who}: {'; '.join(bad)}. Pass the tree that init saw.")
    return {p: parts[p].reshape(tuple(leaf.shape)) for p, leaf in chosen.items()}


def parts_of(vector: Array, sizes: Sizes) -> dict[Path, Array]:
    """One vector of all leaves, in their order, cut into theirs; a rest is dropped."""
    # Of a split the transpose is one concatenation, of slices as many sums.
    ends = np.cumsum(list(sizes.values()))
    parts = jnp.split(vector, ends if ends[-1] < vector.size else ends[:-1])
    return dict(zip(sizes, parts, strict=False))


def check_drawn(who: str, fits: bool, sizes: Sizes) -> None:
    """Refuse shared arrays that were drawn for another number of entries.

    Raises:
        ValueError: If they do not fit.
    """
    if not fits:
        raise ValueError(
            f"{who}: the state does not move {sum(sizes.values())} entries, those of "
            f"{_tree.quoted(sizes)}. Pass the tree that init saw."
        )
