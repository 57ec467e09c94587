"""RandLoRA: a sum of random low-rank bases with trained diagonals, of full rank."""

import math
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
from lowrank.adapters._lora import Initializer, check_rank, scale_of

_IMPLEMENTATION = "threefry2x32"


def unit_uniform(key: Array, shape: Any, dtype: Any = jnp.float32) -> Array:
    """Uniform numbers of standard deviation 1."""
    return jax.random.uniform(key, shape, dtype, -math.sqrt(3), math.sqrt(3))


def scaled_bases(
    base: Float[Array, "*stack r small"],
    lam: Float[Array, "*stack r bases"],
    gamma: Float[Array, "*stack bases small"],
) -> Float[Array, "*stack rank small"]:
    """`Lambda_i A Gamma_i` for all bases, below each other: `rank` is `r bases`."""
    parts = lam[..., :, :, None] * base[..., :, None, :] * gamma[..., None, :, :]
    return parts.reshape(*parts.shape[:-3], -1, parts.shape[-1])


def randlora(
    rank: int,
    *,
    bases: int | None = None,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = unit_uniform,
    store_bases: bool = True,
) -> Transform:
    """RandLoRA: frozen random bases, and diagonals that are trained; of full rank.

    A kernel `W` with sides `small <= large` becomes `W + (alpha / r) D`, where `D` or
    its transpose is `sum_i B_i L_i A G_i`, for random `A: [r, small]` and
    `B_i: [large, r]` and trained diagonals `L_i: [r]` and `G_i: [small]`. With
    `bases >= small / r` the sum reaches full rank, and is formed once for each `apply`.
    While all `G_i` are equal, as at init, its rank is `r`.

    Args:
        rank: Inner size `r` of each basis, at least 1 and at most `small`. The smaller
            it is, the more diagonals there are.
        bases: Number of bases; None for the fewest that give full rank.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of the bases, called as `init(key, shape, float32)`.
        store_bases: Whether the state holds the bases, which are as large as the
            leaf, or the seed that they are drawn from again in each `apply`.

    Returns:
        A transform that is the identity at init. Trainable, float32: `lambda`,
        `[*stack, r, bases]`, zero at init, and `gamma`, `[*stack, bases, small]`.
        Fixed: `base_a: [*stack, r, small]` and `base_b: [*stack, r, bases, large]`, or
        `seed`, two uint32 numbers; and `scale`.

    Raises:
        TypeError: If `rank` or `bases` is not an int.
        ValueError: If one of them is below 1, or `alpha` and `scale` are both given; in
            `init`, if a selected leaf cannot be adapted; in `apply`, if the state is of
            another tree.

    Example:
        >>> tx = lrk.randlora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((5, 4))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'lambda': (2, 2), 'gamma': (2, 4)}

    Notes:
        PEFT cuts the bases of all layers from one pair of the largest size; here each
        leaf draws its own, and a seed saves the memory instead.

    References:
        Albert et al., RandLoRA, 2025, arXiv:2502.00987: eq. 4, `dW = sum_j B_j L_j A
        G_j`, with one `A` for all bases, and full rank from `small / r` of them on.
    """
    rank = check_rank("randlora", rank)
    number = scale_of("randlora", rank, alpha, scale)
    count = None if bases is None else check_rank("randlora", bases, "bases")

    def bases_of(sizes: Axes) -> tuple[int, int, int]:
        sides = math.prod(sizes.inputs), math.prod(sizes.outputs)
        small, large = min(sides), max(sides)
        return count or -(-small // rank), small, large

    def draw_bases(seed: Array, sizes: Axes) -> Arrays:
        number_of, small, large = bases_of(sizes)
        key = jax.random.wrap_key_data(seed, impl=_IMPLEMENTATION)
        for_a, for_b = jax.random.split(key)
        return {
            "base_a": drawn(init, for_a, sizes.stack, (rank,), (small,)),
            "base_b": drawn(init, for_b, sizes.stack, (rank, number_of), (large,)),
        }

    def fits(sizes: Axes) -> Reason | None:
        return exceeds(rank, sizes)

    def draw(key: Array, sizes: Axes) -> tuple[Arrays, Arrays]:
        number_of, small, _ = bases_of(sizes)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        level = jnp.float32(1 / max(number_of, small))
        gamma = jnp.full((*sizes.stack, number_of, small), level)
        own = {"lambda": jnp.zeros((*sizes.stack, rank, number_of)), "gamma": gamma}
        fixed = draw_bases(seed, sizes) if store_bases else {"seed": seed}
        return own, {**fixed, "scale": jnp.asarray(number, jnp.float32)}

    def build(w: Any, own: Arrays, axes: Axes) -> Operator:
        sizes = axes.sizes(tuple(w.shape))
        held = own if store_bases else draw_bases(own["seed"], sizes)
        low = scaled_bases(held["base_a"], own["lambda"], own["gamma"])
        high = held["base_b"].reshape(*low.shape[:-1], -1)
        if math.prod(sizes.inputs) <= math.prod(sizes.outputs):
            a, b = jnp.swapaxes(low, -1, -2), high
        else:
            a, b = jnp.swapaxes(high, -1, -2), low
        a = a.reshape(*sizes.stack, *sizes.inputs, -1)
        b = b.reshape(*sizes.stack, b.shape[-2], *sizes.outputs)
        return thin_or_formed(w, a, b, own["scale"], axes)

    fixed = ("base_a", "base_b") if store_bases else ("seed",)
    rules = Rules(fits, draw, build, ("lambda", "gamma"), (*fixed, "scale"))
    return leafwise("randlora", rules, select, axes)
