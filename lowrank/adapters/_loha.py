"""LoHa: an entrywise product of two low-rank matrices."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

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
    thin_or_formed,
)
from lowrank.adapters._lora import Initializer, check_rank, kaiming, scale_of


def paired_columns(
    x: Float[Array, "*rows r"], y: Float[Array, "*rows r"]
) -> Float[Array, "*rows r2"]:
    """All products of a column of one factor and a column of the other."""
    pairs = x[..., :, None] * y[..., None, :]
    return pairs.reshape(*x.shape[:-1], -1)


def loha(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_a2: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoHa: the entrywise product of two low-rank matrices, of rank up to `r^2`.

    A kernel `W: [n, m]` becomes `W + (alpha / r) (A1 B1) * (A2 B2)` with factors
    `A: [n, r]` and `B: [r, m]`, `A2` zero at init and the others random. The product of
    two sums of `r` terms is a sum of `r^2`: a low-rank matrix, whose factors are the
    products of columns and of rows.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A1`, `B1` and `B2`, called as
            `init(key, (fan_in, fan_out), float32)` for each stack index.
        init_a2: The same of `A2`.

    Returns:
        A transform that is the identity at init (with the default `init_a2`).
        Trainable: `a1`, `b1`, `a2`, `b2`, float32. Fixed: `scale`. What `apply` makes
        is a `LowRank` of rank `r^2`, or a `Delta` once those factors would hold more
        numbers than the weight.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted; in `apply`, if the state is of another
            tree.

    Example:
        >>> tx = lrk.loha(2, alpha=4)
        >>> params = {"w": jnp.ones((9, 8))}
        >>> state = tx.init(jax.random.key(0), params)
        >>> tx.apply(params, state)["w"].rank
        4

    References:
        Hyeon-Woo et al., FedPara, 2021, arXiv:2108.06098: proposition 1,
        `W = (X1 Y1^T) * (X2 Y2^T)` of rank up to `r1 r2`; Yeh et al., LyCORIS, 2023,
        arXiv:2309.14859: eq. 3, `W0 + gamma (B1 A1) * (B2 A2)` (transposed: our
        kernels are `[in, out]`).
    """
    rank = check_rank("loha", rank)
    number = scale_of("loha", rank, alpha, scale)

    def fits(sizes: Axes) -> Reason | None:
        return exceeds(rank, sizes)

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        keys = jax.random.split(key, 4)
        rows, columns = (sizes.inputs, (rank,)), ((rank,), sizes.outputs)
        shapes = {"a1": rows, "b1": columns, "a2": rows, "b2": columns}
        inits = {"a1": init, "b1": init, "a2": init_a2, "b2": init}
        own = {
            name: drawn(inits[name], k, sizes.stack, *shapes[name])
            for name, k in zip(shapes, keys, strict=True)
        }
        return own, {"scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        a = paired_columns(own["a1"], own["a2"])
        at = len(axes.stack)
        b1, b2 = (jnp.moveaxis(own[n], at, -1) for n in ("b1", "b2"))
        b = jnp.moveaxis(paired_columns(b1, b2), -1, at)
        return thin_or_formed(w, a, b, own["scale"], axes)

    rules = Rules(fits, draw, build, ("a1", "b1", "a2", "b2"), ("scale",))
    return leafwise("loha", rules, select, axes)
