"""Intrinsic dimension: all weights move within one random subspace."""

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._base import Array, PyTree, State, Transform
from lowrank._select import Select, check_select
from lowrank.operators import Delta
from lowrank.subspace._projection import (
    SUBSPACE,
    Projection,
    check_dimension,
    check_projection,
    check_total,
    floating,
    moves,
    moving,
    sizes_of,
    taken,
)

_WHO = "subspace.random"


def random(d: int, projection: Projection, *, select: Select = floating) -> Transform:
    """Train `d` numbers that move all selected weights: `theta = theta_0 + P z`.

    The selected leaves, flattened, are one vector `theta` of `D` entries. `P: [D, d]`
    is drawn once and fixed, and `z: [d]`, zero at init, is all that is trained. The
    smallest `d` that still solves a task is its intrinsic dimension.

    Args:
        d: How many numbers are trained, at least 1 and at most `D`.
        projection: How `P` is drawn: `dense()`, `sparse()`, `fastfood()`,
            `fastfood_stacked()`, `kronecker()` or `gather()`, or one of these inside
            `per_leaf` or `regenerated`.
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
            state is of another transform, or by its paths and shapes of another tree.

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
        Running statistics of batch norms are floating leaves too, and a variance that
        moves may become negative: split them off, as `nnx.split(net, nnx.Param, ...)`
        does, or leave them out with `select`.
        From its shapes a state of `sparse()`, `fastfood()` or of `regenerated(...)`
        may fit leaves of other sizes as well: keep it with the tree that it is for.
        A chain of two such transforms adds two subspaces. Weight decay on `z` is no
        weight decay on `theta`, which Li et al. regularise.

    References:
        Li et al., Measuring the intrinsic dimension of objective landscapes, 2018,
        arXiv:1804.08838: theta^(D) = theta_0^(D) + P theta^(d).
        Aghajanyan et al., 2020, arXiv:2012.13255: DID, with `fastfood()`.
    """
    d = check_dimension(_WHO, d)
    check_projection(_WHO, projection)
    check_select(_WHO, select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(_WHO, key)
        sizes = sizes_of(moving(_WHO, params, select))
        check_total(_WHO, d, sizes)
        fixed = projection.draw(key, sizes, d)
        return State({SUBSPACE: {"z": jnp.zeros(d, jnp.float32)}}, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(_WHO, params)
        z = taken(_WHO, leaves, state, projection, d)["z"]
        # In the order of the tree: a state may have passed through sorted dicts.
        chosen = {path: leaf for path, leaf in leaves.items() if path in state.fixed}
        moved = moves(_WHO, projection, state.fixed, z, chosen)
        new = {path: Delta._make(w=w, d=moved[path]) for path, w in chosen.items()}
        return _tree.replace(_WHO, params, new)

    return Transform(init, apply)
