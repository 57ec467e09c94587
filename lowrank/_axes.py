"""Which axes of a leaf are inputs, outputs and stacks of layers."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank import _tree
from lowrank._base import Array, Path


class Axes(NamedTuple):
    """How a weight is used: what `trace_axes` reads off, and what factories take.

    Attributes:
        stack: Axes of layers, experts and the like: one weight for each index.
        inputs: Axes that a product sums over; the factor `a` holds them.
        outputs: All other axes; the factor `b` holds them.
    """

    stack: tuple[int, ...]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]

    @property
    def a_dims(self) -> tuple[int, ...]:
        """Axes of the weight that `a` holds, before the rank axis."""
        return (*self.stack, *self.inputs)

    @property
    def b_dims(self) -> tuple[int, ...]:
        """Axes of the weight that `b` holds; the rank axis follows the stack."""
        return (*self.stack, *self.outputs)

    def sizes(self, shape: tuple[int, ...]) -> "Axes":
        """The sizes of the same axes in a weight of this shape."""
        return Axes(*(tuple(shape[d] for d in dims) for dims in self))

    def matrix(self, w: Array) -> Array:
        """A weight as `[*stack, n, m]`: inputs are rows and outputs are columns."""
        stack, inputs, outputs = self.sizes(w.shape)
        order = (*self.stack, *self.inputs, *self.outputs)
        shape = (*stack, math.prod(inputs), math.prod(outputs))
        return jnp.transpose(w, order).reshape(shape)


MATRIX = Axes((), (0,), (1,))


def resolve(
    who: str, chosen: Mapping[Path, Any], axes: Mapping[Path, Axes] | None
) -> dict[Path, Axes]:
    """The axes of every selected leaf.

    Raises:
        ValueError: If a leaf has not two axes and `axes` does not speak of it, or
            `axes` does not fit its shape. All such leaves are named.
    """
    axes = axes or {}
    found, bad = {}, []
    for path, leaf in chosen.items():
        ndim = len(leaf.shape)
        spec = axes.get(path, MATRIX if ndim == 2 else None)
        if spec is None:
            bad.append(f"{_tree.describe(path, leaf)}: needs 2 axes")
        elif sorted(sum(map(tuple, spec), ())) != list(range(ndim)):
            bad.append(f"{_tree.describe(path, leaf)}: axes {tuple(spec)} do not fit")
        elif not spec[1] or not spec[2]:
            bad.append(f"{_tree.describe(path, leaf)}: no input or no output axis")
        else:
            found[path] = Axes(*map(tuple, spec))
    if bad:
        raise ValueError(
            f"{who}: cannot adapt {'; '.join(bad)}. Pass select=lrk.is_matrix, or, for "
            "what is selected, axes=lrk.trace_axes(fn, params, *args)."
        )
    return found
