"""Weights of any layout as matrices of a crossbar: inputs are rows, outputs columns."""

import math
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes


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
