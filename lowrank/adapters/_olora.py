"""OLoRA: low-rank factors that start as a part of the QR of the weight."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._from_weight import anchored
from lowrank.adapters._lora import check_rank, scale_of


def qr_factors(
    w: Float[Array, "*stack n m"], rank: int, scale: Any
) -> tuple[Float[Array, "*stack n r"], Float[Array, "*stack r m"]]:
    """`R_r^T` and `Q_r^T` of `W^T = Q R`.

    Columns of `Q` depend on the columns before them alone, so the QR of the first `r`
    is enough: `R_r = Q_r^T W^T`.
    """
    del scale
    turned = jnp.matrix_transpose(w)
    q, _ = jnp.linalg.qr(turned[..., :rank])
    return w @ q, jnp.matrix_transpose(q)


def olora(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """OLoRA: start the factors from an orthonormal basis of the weight.

    With `W^T = Q R`, a kernel `W: [n, m]` becomes `(W - s A_0 B_0) + s A B`, where
    `A: [n, r]` starts at `A_0 = R_r^T` and `B: [r, m]` at `B_0 = Q_r^T`, whose rows are
    orthonormal. The weight is that which `init` meets.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack has a QR of its own.

    Returns:
        A transform that is the identity at init. Trainable: `a`, `b`, float32. Fixed:
        `a0`, `b0`, where they started, and `scale`. The leaf becomes a `LowRank` of
        rank `2 r`, as for `pissa`.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted or has no dense form; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.olora(1)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.array([[0.0, 4.0], [3, 0]])})
        >>> jnp.abs(state.trainable["w"]["b"]).tolist()
        [[0.0, 1.0]]

    Notes:
        `A_0` and `B_0` do not know the scale, as in PEFT: with a scale other than 1
        what is taken off the weight, `s R_r^T Q_r^T`, is no projection of it. Otherwise
        as `pissa`.

    References:
        Büyükakyüz, OLoRA, 2024, arXiv:2406.01775: its section on the method, `W = Q R`
        with `B = Q_r` (the first columns), `A = R_r` (the first rows) and the frozen
        `W - s Q_r R_r` (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("olora", rank)
    number = scale_of("olora", rank, alpha, scale)
    return anchored("olora", rank, qr_factors, number, select, axes)
