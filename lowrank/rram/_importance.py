"""How much each weight matters: what a placement should protect."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._base import Path, PyTree
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.operators import _dispatch as ask

Weights = Float[Array, "..."]


def magnitude_gradient(w: Weights, g: Weights) -> Weights:
    """`|w g|`: the first-order change of the loss if the weight became zero."""
    return jnp.abs(w * g)


def squared_fisher(w: Weights, f: Weights) -> Weights:
    """`w^2 F`: twice its second-order change, by the Fisher information."""
    return w * w * f


def importance(
    params: PyTree, grads: PyTree, *, select: Select = is_matrix
) -> dict[Path, Array]:
    """Importance of each weight by its magnitude and its gradient, `|w dL/dw|`.

    To first order this is how much the loss changes if a cell's fault sets the weight
    to zero.

    Args:
        params: Parameters, the weights as they are wanted.
        grads: Gradients of the loss, a tree like `params`, or arrays by path.
        select: Which leaves; called as `select(path, leaf)`.

    Returns:
        By path, an array of the leaf's shape in float32, not negative. What `assign`,
        `choose_flips` and `freeze_order` take. Runs under `jit`.

    Raises:
        ValueError: If nothing is selected, or a selected leaf has no gradient, or one
            of another shape.

    Example:
        >>> params, grads = {"w": jnp.asarray([[2.0, -1.0]])}, {"w": jnp.ones((1, 2))}
        >>> lrk.rram.importance(params, grads)["w"].tolist()
        [[2.0, 1.0]]

    Notes:
        The gradient of a net that was trained to the end is small and noisy: average
        `|dL/dw|` over batches, or use `fisher_importance`.

    References:
        Song et al., ITT-RNA, 2020, and Chen et al., DATE 2017, move important weights
        off abnormal cells; their measure is known only from later work. This one is
        the Taylor criterion of pruning: Molchanov et al., 2017, arXiv:1611.06440.
    """
    return _each("importance", "gradient", params, grads, select, magnitude_gradient)


def fisher_importance(
    params: PyTree, fisher: PyTree, *, select: Select = is_matrix
) -> dict[Path, Array]:
    """Importance of each weight by its Fisher information, `w^2 F`.

    To second order `w^2 F / 2` is how much the loss changes if a cell's fault sets the
    weight of a trained net to zero.

    Args:
        params: Parameters, the weights as they are wanted.
        fisher: Diagonal Fisher information, as `lrk.merging.fisher_diagonal` gives it:
            arrays by path, or a tree like `params`.
        select: Which leaves; called as `select(path, leaf)`.

    Returns:
        As `importance`.

    Raises:
        ValueError: As `importance`.

    Example:
        >>> params, fisher = {"w": jnp.asarray([[2.0, -1.0]])}, {"w": jnp.ones((1, 2))}
        >>> lrk.rram.fisher_importance(params, fisher)["w"].tolist()
        [[4.0, 1.0]]

    References:
        LeCun et al., Optimal Brain Damage, 1990: the saliency `h w^2 / 2`, with the
        Fisher information in the place of the Hessian.
    """
    kind = "Fisher information"
    return _each("fisher_importance", kind, params, fisher, select, squared_fisher)


def _each(
    who: str, kind: str, params: PyTree, others: PyTree, select: Select, measure: Any
) -> dict[Path, Array]:
    """A measure of two arrays for every selected leaf.

    Raises:
        ValueError: If a selected leaf has no second array that fits it; all are named.
    """
    check_select(who, select)
    chosen = selected(who, params, select)
    second = _tree.leaves(who, others)
    check_fit(who, kind, {path: tuple(w.shape) for path, w in chosen.items()}, second)
    return {
        path: measure(
            ask.dense(w).astype(jnp.float32), jnp.asarray(second[path], jnp.float32)
        )
        for path, w in chosen.items()
    }


def check_fit(
    who: str, kind: str, shapes: Mapping[Path, tuple[int, ...]], arrays: Any
) -> None:
    """Refuse arrays by path that do not cover leaves of these shapes.

    Raises:
        ValueError: If one is missing or has another shape; all are named.
    """
    bad = []
    for path, shape in shapes.items():
        if path not in arrays:
            bad.append(f"'{path}' is missing")
        elif tuple(arrays[path].shape) != shape:
            have = tuple(arrays[path].shape)
            bad.append(f"'{path}': expected shape {shape}, got {have}")
    if bad:
        raise ValueError(
            f"{who}: the {kind} does not fit the parameters: {'; '.join(bad)}. Pass "
            "one array for each selected leaf, of its shape."
        )
