"""LoRA-XS: a small trained matrix between frozen singular vectors of the weight."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._from_weight import matrices, unflattened
from lowrank.adapters._lora import (
    Initializer,
    check_leaves,
    check_rank,
    draw_factor,
    scale_of,
)
from lowrank.linalg import truncated_svd
from lowrank.operators import LowRank


def singular_factors(
    w: Float[Array, "*stack n m"], rank: int
) -> tuple[Float[Array, "*stack n r"], Float[Array, "*stack r m"]]:
    """`U_r S_r` and `V_r^T`."""
    u, s, vt = truncated_svd(w, rank)
    return u * s[..., None, :], vt


def lora_xs(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoRA-XS: train `r^2` numbers between the leading singular vectors of a weight.

    With `W = U S V^T`, a kernel `W: [n, m]` becomes `W + s A R B`, where
    `A = U_r S_r: [n, r]` and `B = V_r^T: [r, m]` are frozen and `R: [r, r]` is trained.
    The weight is that which `init` meets.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack has an SVD and an `R` of its own.
        init: Initializer of `R`, called as `init(key, (rank, rank), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init`). Trainable:
        `r`, float32, `[*stack, r, r]`. Fixed: `a`, `b` and `scale`.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted or has no dense form; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.lora_xs(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((40, 30))})
        >>> lrk.count(state)
        (4, 140)

    Notes:
        The paper draws `R` with a standard deviation of 1e-5
        (`init=jax.nn.initializers.normal(1e-5)`); since neither `A` nor `B` is zero,
        `R = 0` has a gradient as well.

    References:
        Bałazy et al., LoRA-XS, 2024, arXiv:2405.17604: its section on the method,
        `h = x W + x A R B` with `A = U_r S_r` and `B = V_r^T` of `W = U S V^T`, both
        frozen, and `R` alone trained.
    """
    rank = check_rank("lora_xs", rank)
    check_select("lora_xs", select)
    number = scale_of("lora_xs", rank, alpha, scale)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("lora_xs", key)
        chosen = selected("lora_xs", params, select)
        found = resolve("lora_xs", chosen, axes)
        check_leaves("lora_xs", rank, chosen, found)
        trainable, fixed = {}, {}
        for path, w in matrices("lora_xs", chosen, found).items():
            leaf, own = chosen[path], found[path]
            a, b = unflattened(*singular_factors(w, rank), leaf, own)
            fixed[path] = {"a": a, "b": b, "scale": jnp.asarray(number, jnp.float32)}
            mine = _tree.leaf_key(key, path)
            trainable[path] = {"r": draw_factor(init, mine, w.shape[:-2], rank, rank)}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("lora_xs", params)
        names = {"trainable": ("r",), "fixed": ("a", "b", "scale")}
        _check.check_state("lora_xs", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("lora_xs", chosen, axes)
        new = {
            path: _between(
                w, state.trainable[path]["r"], state.fixed[path], found[path]
            )
            for path, w in chosen.items()
        }
        _check.check_operators("lora_xs", new)
        return _tree.replace("lora_xs", params, new)

    return Transform(start, apply)


def _between(w: Any, r: Array, fixed: Mapping[str, Array], axes: Axes) -> Operator:
    """`W + s A (R B)`: the small product is that with the outputs."""
    b = fixed["b"]
    flat = b.reshape(*r.shape[:-2], b.shape[len(axes.stack)], -1)
    values = {"w": w, "a": fixed["a"], "b": jnp.matmul(r, flat).reshape(b.shape)}
    dims = {"a_dims": axes.a_dims, "b_dims": axes.b_dims}
    return LowRank._make(**values, scale=fixed["scale"], **dims)
