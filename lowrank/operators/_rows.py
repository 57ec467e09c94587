"""How the axes of a weight become the rows and columns of a matrix."""

import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jaxtyping import Float

from lowrank._axes import Axes
from lowrank._base import Array
from lowrank.linalg import regroup

Dims = tuple[int, ...]
Labels = Sequence[Any]

# What a product may do with a long stack, input or output axis.
_FITS = (("batch", "free"), ("summed",), ("free",))


def moved(x: Array, labels: Labels, order: Labels) -> Array:
    """An array with its axes in another order."""
    back = [labels.index(n) for n in order]
    return x if back == sorted(back) else jnp.transpose(x, back)


def used_as(sizes: Dims, axes: Axes, xl: Labels, wl: Labels, out: Labels) -> Any:
    """The axes as a product uses them.

    Args:
        sizes: Shape of the weight.
        axes: What its axes are; one of size 1 takes the role that the product gives it.
        xl: One label for each axis of the activation.
        wl: One label for each axis of the weight.
        out: Labels of the result.

    Returns:
        `Axes`; None if an input is not summed, or another axis is.
    """
    use = {
        d: "free" if n not in xl else "batch" if n in out else "summed"
        for d, n in enumerate(wl)
    }
    found = []
    for dims, fits, kind in zip(axes, _FITS, ("batch", "summed", "free"), strict=True):
        long = [d for d in dims if sizes[d] > 1]
        if any(use[d] not in fits for d in long):
            return None
        found.append((*long, *(d for d in use if sizes[d] == 1 and use[d] == kind)))
    return Axes(*found)


def reshaped_axes(sizes: Dims, axes: Axes, shape: Dims) -> Axes | None:
    """The axes of a reshaped weight.

    Args:
        sizes: Shape of the weight.
        axes: What its axes are.
        shape: The new shape.

    Returns:
        Axes that flatten to the same matrix; None where axes of two kinds, or axes that
        are not flattened in their own order, would be merged.
    """
    long = [[d for d in dims if sizes[d] > 1] for dims in axes]
    places: dict[int, list[int]] = {}
    fresh: list[int] = []
    groups = regroup(sizes, shape)
    for old, new in groups or ():
        own = [d for d in old if sizes[d] > 1]
        if not own:
            fresh += new
        elif any(_runs(own, dims) for dims in long):
            places[own[0]] = new
        else:
            return None
    if groups is None:
        return None
    stack, inputs, outputs = (
        tuple(n for d in dims for n in places.get(d, ())) for dims in long
    )
    return Axes((*stack, *fresh), inputs, outputs)


def _runs(part: list[int], whole: list[int]) -> bool:
    """Whether some axes follow each other in a list."""
    at = whole.index(part[0]) if part[0] in whole else 0
    return whole[at : at + len(part)] == part


def matrix_shape(leaf: Any, axes: Axes) -> tuple[int, ...]:
    """`(*stack, rows, cols)` of a leaf."""
    sizes = axes.sizes(tuple(leaf.shape))
    return (*sizes.stack, math.prod(sizes.inputs), math.prod(sizes.outputs))


def to_matrix(w: Float[Array, "..."], axes: Axes) -> Float[Array, "*stack rows cols"]:
    """A weight as `[*stack, rows, cols]`."""
    return axes.matrix(w)


def from_matrix(
    matrix: Float[Array, "*stack rows cols"], shape: tuple[int, ...], axes: Axes
) -> Float[Array, "..."]:
    """The weight again, in its own layout."""
    order = (*axes.stack, *axes.inputs, *axes.outputs)
    split = matrix.reshape([shape[d] for d in order])
    return jnp.transpose(split, [order.index(d) for d in range(len(shape))])
