"""PiSSA: low-rank factors that start as the principal part of the weight."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._from_weight import anchored
from lowrank.adapters._lora import check_rank, scale_of
from lowrank.linalg import truncated_svd


def principal_factors(
    w: Float[Array, "*stack n m"], rank: int, scale: Float[Array, ""]
) -> tuple[Float[Array, "*stack n r"], Float[Array, "*stack r m"]]:
    """`U_r (S_r / s)^(1/2)` and `(S_r / s)^(1/2) V_r^T`."""
    u, s, vt = truncated_svd(w, rank)
    root = jnp.sqrt(s / scale)
    return u * root[..., None, :], root[..., None] * vt


def pissa(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """PiSSA: train the principal singular triplets of a weight, freeze the rest.

    With `W = U S V^T`, a kernel `W: [n, m]` becomes `(W - s A_0 B_0) + s A B`, where
    `A: [n, r]` starts at `A_0 = U_r (S_r / s)^(1/2)` and `B: [r, m]` at
    `B_0 = (S_r / s)^(1/2) V_r^T`. The weight is that which `init` meets: behind a
    transform that changes it (a chip, say), the principal part of the changed one.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, above 0, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack has an SVD of its own.

    Returns:
        A transform that is the identity at init. Trainable: `a`, `b`, float32. Fixed:
        `a0`, `b0`, where they started, and `scale`. The leaf becomes a `LowRank` of
        rank `2 r`, which is what to export; the residual is never formed.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, `alpha` and `scale` are both given, or the scale is
            not above 0; in `init`, if a selected leaf cannot be adapted or has no dense
            form; in `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.pissa(1)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.diag(jnp.array([1.0, 4.0]))})
        >>> jnp.abs(state.trainable["w"]["a"]).tolist()
        [[0.0], [2.0]]

    Notes:
        PEFT puts the residual in the place of the weight, rounded to its dtype; here
        the weight stays and the difference of the two products is added, which costs
        `r (n + m)` numbers of memory and rounds once. No dropout, as the authors
        advise.

    References:
        Meng, Wang and Zhang, PiSSA, 2024, arXiv:2404.02948: eq. 2, `A = U_r S_r^(1/2)`;
        eq. 3, `B = S_r^(1/2) V_r^T`; eq. 4, `W^res` from the other triplets; eq. 5,
        `W = W^res + A B` (their kernels are `[in, out]` too).
    """
    rank = check_rank("pissa", rank)
    number = scale_of("pissa", rank, alpha, scale)
    if isinstance(number, (int, float)) and number <= 0:
        raise ValueError(f"pissa: the scale must be above 0, got {number}.")
    return anchored("pissa", rank, principal_factors, number, select, axes)
