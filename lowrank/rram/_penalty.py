"""Regularisation away from defects."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank import _tree
from lowrank._base import Array, Path, PyTree, is_floating
from lowrank.rram._freeze import check_leaves, weights


def defect_penalty(
    params: PyTree, deployed: PyTree, importance: Mapping[Path, Any] | None = None
) -> Array:
    """How far a chip is from the weights that are wanted: `sum omega (deployed - w)^2`.

    Its gradient draws a weight towards what its cells can hold: to zero on a cell that
    is stuck there, to the value of a cell that is stuck elsewhere, and to smaller
    magnitudes on cells whose programming is off by a factor.

    Args:
        params: The weights, of the tree that is differentiated.
        deployed: What the chip makes of the same weights, through the map.
        importance: By path, `omega` of each weight, a constant for differentiation;
            other leaves do not count. None: 1, and all floating leaves.

    Returns:
        A scalar in float32, at least 0 if `omega` is; exactly 0 on an ideal chip.

    Raises:
        ValueError: If `importance` names leaves that the trees lack, or is of another
            shape, or `deployed` is another tree.

    Example:
        >>> held = lambda w: w.at[0].set(0.0)  # the first weight is stuck at zero
        >>> penalty = lambda w: lrk.rram.defect_penalty({"w": w}, {"w": held(w)})
        >>> jax.grad(penalty)(jnp.asarray([3.0, 2.0])).tolist()
        [6.0, 0.0]

    Notes:
        The gradient goes through `deployed` as well as through `w`. Were `deployed` a
        constant, a weight on a cell with gain `g > 1` would chase `g w` without end;
        through the map its slope is `2 (g - 1)^2 w`, which ends at zero. Constants are
        the importance, and, inside the map, the scale of each column: else a weight
        could shrink its error by growing its column's largest weight.
        The regulariser of the ITT-RNA paper is not known; this one is ours.

    References:
        None: see the notes.
    """
    leaves = _tree.leaves("defect_penalty", params)
    chosen = {path: w for path, w in leaves.items() if is_floating(w)}
    if importance is not None:
        check_leaves("defect_penalty", "the tree", chosen, importance)
        chosen = {path: chosen[path] for path in importance}
    values = weights("defect_penalty", deployed, chosen)
    total = jnp.zeros((), jnp.float32)
    for path, w in chosen.items():
        if values[path] is w:  # not on the chip
            continue
        error = jnp.square((values[path] - w).astype(jnp.float32))
        omega = 1.0 if importance is None else lax.stop_gradient(importance[path])
        total = total + jnp.sum(omega * error)
    return total
