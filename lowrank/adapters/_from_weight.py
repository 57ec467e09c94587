"""Low-rank factors that start from the weight itself, with its value unchanged."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import (
    Array,
    Operator,
    Path,
    PyTree,
    State,
    Transform,
    is_operator,
)
from lowrank._select import Select, check_select, selected
from lowrank.adapters._lora import check_leaves
from lowrank.operators import LowRank
from lowrank.operators import _dispatch as ask

Factors = Callable[[Array, int, Array], tuple[Array, Array]]


def matrices(
    who: str, chosen: Mapping[Path, Any], axes: Mapping[Path, Axes]
) -> dict[Path, Array]:
    """Every selected weight as it is met, formed, `[*stack, n, m]` in float32.

    Raises:
        ValueError: If an operator has no dense form; all are named.
    """
    stuck = [
        f"'{path}' ({type(leaf).__name__})"
        for path, leaf in chosen.items()
        if is_operator(leaf) and not leaf.has_dense
    ]
    if stuck:
        raise ValueError(
            f"{who}: no weight to start from at {', '.join(stuck)}: it acts inside the "
            f"product and has no dense form. Put {who} before it, or leave these out "
            "with select=."
        )
    return {
        path: axes[path].matrix(ask.dense(leaf)).astype(jnp.float32)
        for path, leaf in chosen.items()
    }


def unflattened(a: Array, b: Array, leaf: Any, axes: Axes) -> tuple[Array, Array]:
    """Factors `[*stack, n, r]` and `[*stack, r, m]` with the leaf's own axes."""
    stack, inputs, outputs = axes.sizes(tuple(leaf.shape))
    rank = a.shape[-1]
    return a.reshape(*stack, *inputs, rank), b.reshape(*stack, rank, *outputs)


def anchored(
    who: str,
    rank: int,
    factors: Factors,
    number: Any,
    select: Select,
    axes: Mapping[Path, Axes] | None,
) -> Transform:
    """`W + s (A B - A_0 B_0)`, where `A_0` and `B_0` are what `factors` makes of `W`.

    Args:
        who: Name of the transform, for messages.
        rank: Inner size `r`.
        factors: `(w: [*stack, n, m], rank, scale) -> (a, b)`; traced.
        number: The scale.
        select: Which leaves to adapt.
        axes: As for `lora`.

    Returns:
        A transform that is the identity at init. Trainable: `a`, `b`. Fixed: `a0`,
        `b0`, `scale`.
    """
    check_select(who, select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = resolve(who, chosen, axes)
        check_leaves(who, rank, chosen, found)
        trainable, fixed = {}, {}
        for path, w in matrices(who, chosen, found).items():
            scale = jnp.asarray(number, jnp.float32)
            a, b = unflattened(*factors(w, rank, scale), chosen[path], found[path])
            trainable[path] = {"a": a, "b": b}
            # Copies: a trainable array may be donated, which would free its twin.
            fixed[path] = {"a0": jnp.copy(a), "b0": jnp.copy(b), "scale": scale}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        names = {"trainable": ("a", "b"), "fixed": ("a0", "b0", "scale")}
        _check.check_state(who, leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve(who, chosen, axes)
        new = {
            path: _difference(w, state.trainable[path], state.fixed[path], found[path])
            for path, w in chosen.items()
        }
        _check.check_operators(who, new)
        return _tree.replace(who, params, new)

    return Transform(init, apply)


def _difference(
    w: Any, own: Mapping[str, Array], fixed: Mapping[str, Array], axes: Axes
) -> Operator:
    """One term of rank `2 r`: its halves cancel before anything is rounded."""
    a = jnp.concatenate([own["a"], fixed["a0"]], axis=-1)
    b = jnp.concatenate([own["b"], -fixed["b0"]], axis=len(axes.stack))
    values = {"w": w, "a": a, "b": b, "scale": fixed["scale"]}
    return LowRank._make(**values, a_dims=axes.a_dims, b_dims=axes.b_dims)
