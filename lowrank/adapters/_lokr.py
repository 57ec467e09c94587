"""LoKr: a Kronecker product with a low-rank matrix."""

import math
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
    above,
    drawn,
    leafwise,
)
from lowrank.adapters._lora import Initializer, check_rank, kaiming, scale_of
from lowrank.operators import Factored


def split_size(size: int, factor: int | None) -> tuple[int, int]:
    """A size as a product: `factor` first if it divides, else as near to square."""
    if factor is not None and size % factor == 0:
        return factor, size // factor
    top = min(math.isqrt(size), size if factor is None else factor)
    first = max(d for d in range(1, top + 1) if size % d == 0)
    return first, size // first


def lokr(
    rank: int,
    *,
    factor: int | None = None,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_b: Initializer = kaiming,
    init_c: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """LoKr: a Kronecker product of a small matrix and a low-rank one.

    A kernel `W: [n1 n2, m1 m2]` becomes `W + (alpha / r) C ⊗ (A B)`, for
    `C: [n1, m1]`, `A: [n2, r]` and `B: [r, m2]`. Its rank is up to `r min(n1, m1)`. It
    is never formed: a product sums `n2` with `A` and `n1` with `C`.

    Args:
        rank: Inner size `r`, at least 1 and at most `min(n2, m2)`.
        factor: `n1` and `m1`, where it divides; else the largest divisor below it and
            below the square root. None for the largest below the square root.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`, with one axis of outputs. The last axis of inputs is split;
            others, as the places of a convolution, belong to `A`.
        init: Initializer of `A`, called as `init(key, (fan_in, rank), float32)`.
        init_b: Initializer of `B`, called as `init_b(key, (rank, m2), float32)`.
        init_c: Initializer of `C`, called as `init_c(key, (n1, m1), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init_c`). Trainable:
        `c`, `a`, `b`, float32. Fixed: `scale`.

    Raises:
        TypeError: If `rank` or `factor` is not an int.
        ValueError: If `rank < 1`, `factor < 1`, or `alpha` and `scale` are both given;
            in `init`, if a selected leaf cannot be adapted; in `apply`, if the state is
            of another tree.

    Example:
        >>> tx = lrk.lokr(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((12, 10))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'c': (3, 2), 'a': (4, 2), 'b': (2, 5)}

    Notes:
        PEFT trains the second matrix whole once `rank` reaches half of its larger side,
        and can decompose the first one too; here it is always `C ⊗ (A B)`. LyCORIS
        starts from `B = 0` and a random `C`: `init_b` and `init_c`.

    References:
        Yeh et al., LyCORIS, 2023, arXiv:2309.14859: eq. 4, `W0 + gamma C ⊗ (B A)`, and
        eq. 5, the largest divisor up to `min(f, sqrt(p))` (transposed: our kernels are
        `[in, out]`).
    """
    rank = check_rank("lokr", rank)
    number = scale_of("lokr", rank, alpha, scale)
    first = None if factor is None else check_rank("lokr", factor, "factor")

    def fits(sizes: Axes) -> Reason | None:
        if len(sizes.outputs) != 1:
            return Reason("needs one axis of outputs", "name one in axes=")
        inner = [split_size(n, first)[1] for n in (sizes.inputs[-1], *sizes.outputs)]
        return above("rank", rank, min(inner))

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        for_a, for_b, for_c = jax.random.split(key, 3)
        stack, (*places, n) = sizes.stack, sizes.inputs
        (n1, n2), (m1, m2) = split_size(n, first), split_size(sizes.outputs[0], first)
        own = {
            "c": drawn(init_c, for_c, stack, (n1,), (m1,)),
            "a": drawn(init, for_a, stack, (*places, n2), (rank,)),
            "b": drawn(init_b, for_b, stack, (rank,), (m2,)),
        }
        return own, {"scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        (*places, n), (m,) = axes.inputs, axes.outputs
        stack, whole = [[(d, 0) for d in dims] for dims in (axes.stack, places)]
        labels = (
            (*stack, (n, 0), (m, 0)),
            (*stack, *whole, (n, 1), (-1, 0)),
            (*stack, (-1, 0), (m, 1)),
        )
        factors = (own["c"], own["a"], own["b"])
        return Factored._make(w=w, factors=factors, scale=own["scale"], labels=labels)

    rules = Rules(fits, draw, build, ("c", "a", "b"), ("scale",))
    return leafwise("lokr", rules, select, axes)
