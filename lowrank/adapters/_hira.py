"""HiRA: a low-rank matrix that multiplies the weight entry by entry."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowrank._axes import Axes
from lowrank._base import Operator, Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._leafwise import (
    Arrays,
    Reason,
    Rules,
    drawn,
    exceeds,
    leafwise,
    low_rank,
)
from lowrank.adapters._lora import Initializer, check_rank, kaiming, scale_of
from lowrank.operators import Delta
from lowrank.operators import _dispatch as ask


def hira(
    rank: int,
    *,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_b: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """HiRA: a change of the weight in proportion to itself, of high rank.

    A kernel `W: [n, m]` becomes `W + s W * (A B)`, entry by entry, with `A: [n, r]`
    random and `B: [r, m]` zero at init: of rank up to `r` times that of `W`. It is
    formed once for each `apply`, since a product in factors would take `r` products
    with `W`.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        scale: `s`; None for 1. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A`, as for `lora`.
        init_b: Initializer of `B`, as for `lora`.

    Returns:
        A transform that is the identity at init (with the default `init_b`). Trainable:
        `a`, `b`, float32. Fixed: `scale`. Behind another transform the change is in
        proportion to what that one makes.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`; in `init` and `apply`, if a selected leaf cannot be
            adapted or has no dense form, or the state is of another tree.

    Example:
        >>> tx = lrk.hira(1, init_b=jax.nn.initializers.ones)
        >>> params = {"w": jnp.array([[0.0, 2.0], [1.0, 0.0]])}
        >>> state = tx.init(jax.random.key(0), params)
        >>> (lrk.materialize(tx.apply(params, state))["w"] == 0).tolist()
        [[True, False], [False, True]]

    References:
        Huang et al., HiRA, 2025, ICLR: h = W0 x + (W0 * (B A)) x, the equation of its
        method (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("hira", rank)
    number = scale_of("hira", rank, None, scale)

    def fits(sizes: Axes) -> Reason | None:
        return exceeds(rank, sizes)

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        for_a, for_b = jax.random.split(key)
        own = {
            "a": drawn(init, for_a, sizes.stack, sizes.inputs, (rank,)),
            "b": drawn(init_b, for_b, sizes.stack, (rank,), sizes.outputs),
        }
        return own, {"scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        by = low_rank(w, own["a"], own["b"], own["scale"], axes).delta()
        return Delta._make(w=w, d=ask.dense(w).astype(by.dtype) * by)

    rules = Rules(fits, draw, build, ("a", "b"), ("scale",), dense=True)
    return leafwise("hira", rules, select, axes)
