"""Projections around projections: one for each leaf, or drawn again each time."""

import functools
import math
import operator

import jax
import jax.numpy as jnp
from jaxtyping import Array

from lowrank import _tree
from lowrank._base import Path
from lowrank.subspace._projection import (
    SUBSPACE,
    Fixed,
    Projection,
    Sizes,
    check_projection,
)

_IMPLEMENTATION = "threefry2x32"


def per_leaf(projection: Projection) -> Projection:
    """A projection of its own for each leaf, normalised over the whole network.

    A leaf of `n` entries moves by `sqrt(n / D) P_leaf z`, with all of `z` and `P_leaf`
    drawn from the leaf's own key as if it were a network of its own. As each `P_leaf`
    has columns of norm one, so has `P`.

    Args:
        projection: What is drawn for each leaf: `fastfood()`, `fastfood_stacked()`,
            `sparse()` or `dense()`. One that needs `d <= n` (`gather()`,
            `kronecker()`) refuses smaller leaves.

    Returns:
        A projection for `random`, nested if the inner one is. Fixed, for each leaf:
        what the inner one draws. The draw of a leaf depends on no other leaf.

    Raises:
        TypeError: If `projection` is none; when it draws, `ValueError` if the inner one
            needs `d <= n` and a leaf has fewer entries.

    Example:
        >>> params = {"w": jnp.ones((4, 4)), "bias": jnp.zeros(4)}
        >>> inner = lrk.subspace.fastfood()
        >>> tx = lrk.subspace.random(8, lrk.subspace.per_leaf(inner))
        >>> tx.init(jax.random.key(0), params).fixed["bias"]["gain"].shape
        (2, 2, 1, 2)

    Notes:
        jgamper/intrinsic-dimensionality has this layout with Fastfood, but each tensor
        has columns of norm one, so that biases move as far as kernels and `P` has
        columns of norm `sqrt(number of tensors)`; and where the transform is shorter
        than `z` it cuts `z`, so that a leaf of 10 entries sees 16 numbers of 750. Here
        such a leaf gets several transforms, one for each part of `z`, and their sum.
    """
    check_projection("per_leaf", projection)

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        fixed = {}
        for path, size in sizes.items():
            drawn = projection.draw(_tree.leaf_key(key, path), {path: size}, d)
            fixed[path] = {**drawn[path], **drawn.get(SUBSPACE, {})}
        return fixed

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        total, out = sum(sizes.values()), {}
        for path, size in sizes.items():
            own = {path: fixed[path], SUBSPACE: fixed[path]}
            part = projection.apply(own, z, {path: size})[path]
            out[path] = part * math.sqrt(size / total)
        return out

    names = (*projection.names, *projection.shared)
    return Projection(names, draw, apply, projection.nested)


def regenerated(projection: Projection) -> Projection:
    """A projection that is drawn again for each product, from a seed for each leaf.

    The state holds two numbers for each leaf instead of `P`: checkpoints and many
    states side by side cost nothing. Within a step `P` exists while it is applied, and
    again in the backward pass, but not in between.

    Args:
        projection: What is drawn.

    Returns:
        The same kind of map, nested if the inner one is. Fixed: `seed`, two uint32
        numbers for each leaf; all seeds together give the key of the network. A seed
        gives the same `P` on one JAX version and backend.

    Raises:
        TypeError: If `projection` is none.

    Example:
        >>> params = {"w": jnp.ones((4, 4))}
        >>> small = lrk.subspace.regenerated(lrk.subspace.fastfood())
        >>> state = lrk.subspace.random(8, small).init(jax.random.key(0), params)
        >>> lrk.count(state)  # a seed is no parameter
        (8, 0)

    Notes:
        Drawing costs more than applying: permutations are sorted (`fastfood`, `gather`,
        `kronecker`), and `dense` forms all `D d` numbers each time. Keep `P` for
        training where it fits; this is for many states and for what goes to disk. Lotfi
        et al. regenerate likewise, from the state of a global generator.
    """
    check_projection("regenerated", projection)

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        del d
        keys = {path: _tree.leaf_key(key, path) for path in sizes}
        return {
            p: {"seed": jax.random.bits(k, (2,), jnp.uint32)} for p, k in keys.items()
        }

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        # Of different numbers the exclusive or is as random as they are.
        seed = functools.reduce(operator.xor, (fixed[path]["seed"] for path in sizes))

        def again(z: Array) -> dict[Path, Array]:
            key = jax.random.wrap_key_data(seed, impl=_IMPLEMENTATION)
            return projection.apply(projection.draw(key, sizes, z.shape[0]), z, sizes)

        return jax.checkpoint(again)(z)

    return Projection(("seed",), draw, apply, projection.nested)
