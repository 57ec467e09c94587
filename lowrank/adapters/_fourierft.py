"""FourierFT: a change that is sparse in the frequency domain."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from lowrank._axes import Axes
from lowrank._base import Operator, Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._leafwise import (
    Arrays,
    Reason,
    Rules,
    above,
    as_leaf,
    leafwise,
)
from lowrank.adapters._lora import Initializer, check_rank, draw_factor, scale_of
from lowrank.adapters._lori import scatter
from lowrank.adapters._shira import draw_places
from lowrank.operators import Delta


def from_spectrum(
    values: Float[Array, " k"], index: Int[Array, " k"], shape: tuple[int, int]
) -> Float[Array, "n m"]:
    """`Re IDFT2(F)` for an `F` that is zero but at some places of its flat form."""
    return jnp.fft.ifft2(scatter(values, index, shape)).real.astype(values.dtype)


def fourierft(
    count: int,
    *,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = jax.nn.initializers.zeros,
) -> Transform:
    """FourierFT: train a few coefficients of the change's Fourier transform.

    A kernel `W: [n, m]` becomes `W + s Re(IDFT2(F))`, where `F: [n, m]` is zero but for
    `count` trained coefficients at random frequencies. The change is formed once for
    each `apply`, by a fast transform.

    Args:
        count: Number of coefficients of each leaf (and stack index), at least 1.
        scale: `s`; None for 1. May be traced. The inverse transform divides by `n m`,
            so the paper's values are in the hundreds.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; several axes of one kind count as one.
        init: Initializer of the coefficients, called as `init(key, (count, 1),
            float32)` for each stack index. The paper draws standard normal numbers:
            `jax.nn.initializers.normal(1.0)`.

    Returns:
        A transform that is the identity at init (with the default `init`). Trainable:
        `c: [*stack, count]`, float32. Fixed: `index`, places in the flattened `[n, m]`,
        and `scale`.

    Raises:
        TypeError: If `count` is not an int.
        ValueError: If `count < 1`; in `init`, if a selected leaf cannot be adapted; in
            `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.fourierft(3, scale=12.0)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> state.trainable["w"]["c"].shape, state.fixed["w"]["index"].shape
        ((3,), (3,))

    Notes:
        The paper and PEFT give all layers of one shape the same frequencies; here each
        leaf draws its own.

    References:
        Gao et al., FourierFT, 2024, arXiv:2405.03003: eq. 2, the coefficients `c` at
        their entries of `F`; eq. 3, `S[p, q] = sum_jk F[j, k] exp(2 pi i (p j / n +
        q k / m))`; eq. 4, `W + alpha Re(S)`. Its algorithm 1 divides by `n m`, as here.
    """
    count = check_rank("fourierft", count, "count")
    number = scale_of("fourierft", 1, None, scale)

    def fits(sizes: Axes) -> Reason | None:
        entries = math.prod((*sizes.inputs, *sizes.outputs))
        return above("count", count, entries)

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        for_c, for_index = jax.random.split(key)
        entries = math.prod((*sizes.inputs, *sizes.outputs))
        keys = jax.random.split(for_index, math.prod(sizes.stack))
        index = jax.vmap(lambda k: draw_places(k, entries, count))(keys)
        c = draw_factor(init, for_c, sizes.stack, count, 1)
        fixed = {"index": index.reshape(*sizes.stack, count)}
        return {"c": c[..., 0]}, {**fixed, "scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        sizes = axes.sizes(tuple(w.shape))
        shape = math.prod(sizes.inputs), math.prod(sizes.outputs)
        values = own["scale"] * own["c"]
        flat = [x.reshape(-1, count) for x in (values, own["index"])]
        d = jax.vmap(lambda v, i: from_spectrum(v, i, shape))(*flat)
        d = d.reshape(*sizes.stack, *sizes.inputs, *sizes.outputs)
        return Delta._make(w=w, d=as_leaf(d, axes))

    rules = Rules(fits, draw, build, ("c",), ("index", "scale"))
    return leafwise("fourierft", rules, select, axes)
