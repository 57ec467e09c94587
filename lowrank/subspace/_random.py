"""Intrinsic dimension: all weights move within one random subspace."""

import math
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, selected
from lowrank.operators import Delta

# Where the state keeps what belongs to no single leaf.
SUBSPACE = "subspace"
_WHO = "subspace.random"

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

    Example:
        >>> lrk.subspace.dense().names
        ('p',)
    """

    names: tuple[str, ...]
    draw: Callable[[Array, Sizes, int], dict[Path, dict[str, Array]]]
    apply: Callable[[Fixed, Array, Sizes], dict[Path, Array]]


def floating(path: Path, leaf: jax.ShapeDtypeStruct) -> bool:
    """Selects every leaf that could be trained."""
    del path
    return is_floating(leaf)


def random(d: int, projection: Projection, *, select: Select = floating) -> Transform:
    """Train `d` numbers that move all selected weights: `theta = theta_0 + P z`.

    The selected leaves, flattened, are one vector `theta` of `D` entries. `P: [D, d]`
    is drawn once and fixed, and `z: [d]`, zero at init, is all that is trained. The
    smallest `d` that still solves a task is its intrinsic dimension.

    Args:
        d: How many numbers are trained, at least 1 and at most `D`.
        projection: How `P` is drawn: `dense()` or `gather()`.
        select: Which leaves move; called once, in `init`, as `select(path, leaf)`. All
            floating leaves by default, of any shape.

    Returns:
        A transform that is the identity at init. Trainable: `z`, float32, under the
        one path `subspace`, which is no path of the parameters. Fixed: what the
        projection draws, by path.

    Raises:
        TypeError: If `d` is no int or `projection` no `Projection`.
        ValueError: If `d < 1`; in `init`, if `d > D`, a selected leaf is not floating,
            none is selected, or a leaf has the path `subspace`; in `apply`, if the
            state is of another tree or transform.

    Example:
        >>> params = {"w": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> tx = lrk.subspace.random(2, lrk.subspace.dense())
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.trainable["subspace"]["z"].shape
        (2,)
        >>> lrk.count(state)  # 2 trained, and 15 x 2 entries of P
        (2, 30)

    Notes:
        The trained vector belongs to no leaf, so it has a path of its own and another
        leaf of the tree, selected or not, never moves it. `lrk.select_paths` shows the
        leaves that move. Selecting one more leaf changes `P` everywhere, as its columns
        are normalised over all leaves.
        A chain of two such transforms adds two subspaces. Weight decay on `z` is no
        weight decay on `theta`, which Li et al. regularise.

    References:
        Li et al., Measuring the intrinsic dimension of objective landscapes, 2018,
        arXiv:1804.08838: theta^(D) = theta_0^(D) + P theta^(d).
    """
    d = _check_dimension(d)
    if not isinstance(projection, Projection):
        raise TypeError(
            f"{_WHO}: expected a Projection, got {projection!r}. Pass "
            "lrk.subspace.dense() or lrk.subspace.gather()."
        )
    check_select(_WHO, select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(_WHO, key)
        _check_free(params)
        chosen = selected(_WHO, params, select)
        sizes = {path: math.prod(leaf.shape) for path, leaf in chosen.items()}
        _check_leaves(d, chosen, sizes)
        fixed = projection.draw(key, sizes, d)
        return State({SUBSPACE: {"z": jnp.zeros(d, jnp.float32)}}, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(_WHO, params)
        z = _taken(leaves, state, projection.names)
        # In the order of the tree: a state may have passed through sorted dicts.
        chosen = {path: leaf for path, leaf in leaves.items() if path in state.fixed}
        sizes = {path: math.prod(leaf.shape) for path, leaf in chosen.items()}
        moves = projection.apply(state.fixed, z, sizes)
        _check_moves(moves, chosen, sizes)
        new = {
            path: Delta._make(w=w, d=moves[path].reshape(tuple(w.shape)))
            for path, w in chosen.items()
        }
        return _tree.replace(_WHO, params, new)

    return Transform(init, apply)


def _check_dimension(d: Any) -> int:
    """A dimension as an int.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1.
    """
    if isinstance(d, bool) or not hasattr(d, "__index__"):
        raise TypeError(f"{_WHO}: d must be an int, got {d!r}.")
    d = operator.index(d)
    if d < 1:
        raise ValueError(f"{_WHO}: d must be at least 1, got {d}.")
    return d


def _check_leaves(d: int, chosen: Mapping[Path, Any], sizes: Sizes) -> None:
    """Refuse leaves that cannot move, and more dimensions than entries.

    Raises:
        ValueError: If there are any.
    """
    if bad := [path for path, leaf in chosen.items() if not is_floating(leaf)]:
        raise ValueError(
            f"{_WHO}: cannot move {bad}: not floating. Leave them out with select=."
        )
    total = sum(sizes.values())
    if d > total:
        raise ValueError(
            f"{_WHO}: d={d} exceeds the {total} entries of {_tree.quoted(chosen)}. "
            "Lower d, or select more leaves."
        )


def _check_free(params: PyTree) -> None:
    """Refuse a tree that uses the path of the trained vector.

    Raises:
        ValueError: If it does.
    """
    if SUBSPACE in _tree.leaves(_WHO, params):
        raise ValueError(
            f"{_WHO}: a leaf has the path '{SUBSPACE}', where the state keeps what is "
            "trained. Rename it."
        )


def _taken(leaves: Mapping[Path, Any], state: State, names: tuple[str, ...]) -> Array:
    """The trained vector of a state that fits.

    Raises:
        ValueError: If the state is of another tree or transform, or a stack of states.
    """
    trained = state.trainable
    if not isinstance(trained, Mapping) or list(trained) != [SUBSPACE]:
        raise ValueError(
            f"{_WHO}: expected '{SUBSPACE}' as the one trainable path. Pass the State "
            "that this transform's own init returned."
        )
    _check.check_state(_WHO, leaves, State({}, state.fixed), fixed=names)
    z = trained[SUBSPACE].get("z")
    if z is None or z.ndim != 1:
        got = "none" if z is None else f"shape {tuple(z.shape)}"
        raise ValueError(
            f"{_WHO}: expected a vector 'z' at '{SUBSPACE}', got {got}. Call apply "
            "inside jax.vmap or lrk.map_tasks for states that lrk.stack made."
        )
    return z


def _check_moves(
    moves: Mapping[Path, Array], chosen: Mapping[Path, Any], sizes: Sizes
) -> None:
    """Refuse a state whose arrays are of other leaves.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [
        f"{_tree.describe(path, leaf)}: the state moves {moves[path].size} entries"
        for path, leaf in chosen.items()
        if moves[path].size != sizes[path]
    ]
    if bad:
        raise ValueError(f"{_WHO}: {'; '.join(bad)}. Pass the tree that init saw.")
