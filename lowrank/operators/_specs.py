"""What a product asks of a weight: a contraction, a convolution, a look-up."""

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
from jax import Array, lax

Ints = tuple[int, ...]


@dataclass(frozen=True)
class Contraction:
    """A `lax.dot_general` of an activation `x` and a weight.

    Attributes:
        dimension_numbers: As for `lax.dot_general`, in the order of its operands.
        weight_first: Whether the weight is the left operand.
        precision: As for `lax.dot_general`.
        preferred_element_type: As for `lax.dot_general`.
        out_sharding: As for `lax.dot_general`.
    """

    dimension_numbers: Any
    weight_first: bool
    precision: Any = None
    preferred_element_type: Any = None
    out_sharding: Any = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments for further products of the same kind."""
        return {
            "precision": self.precision,
            "preferred_element_type": self.preferred_element_type,
        }

    def __call__(self, x: Array, w: Array) -> Array:
        """The product with a plain array."""
        left, right = (w, x) if self.weight_first else (x, w)
        return lax.dot_general(
            left,
            right,
            self.dimension_numbers,
            out_sharding=self.out_sharding,
            **self.options,
        )

    def labels(
        self, x_ndim: int, w_ndim: int
    ) -> tuple[list[int], list[int], list[int]]:
        """One integer for each axis of `x`, of the weight and of the result.

        Axes that meet in the product have the same integer.
        """
        (lc, rc), (lb, rb) = self.dimension_numbers
        n, m = (w_ndim, x_ndim) if self.weight_first else (x_ndim, w_ndim)
        left, right = list(range(n)), list(range(n, n + m))
        for i, j in zip((*lc, *lb), (*rc, *rb), strict=True):
            right[j] = left[i]
        out = [left[i] for i in lb]
        out += [left[i] for i in range(n) if i not in (*lb, *lc)]
        out += [right[j] for j in range(m) if j not in (*rb, *rc)]
        return (right, left, out) if self.weight_first else (left, right, out)


@dataclass(frozen=True)
class Convolution:
    """A `lax.conv_general_dilated` of an activation `x` and a kernel.

    Attributes:
        window_strides: As for `lax.conv_general_dilated`, like all others.
        padding: Low and high padding of each spatial axis.
        lhs_dilation: Dilation of `x`: the stride of a transposed convolution.
        rhs_dilation: Dilation of the kernel.
        dimension_numbers: A `lax.ConvDimensionNumbers`.
        feature_group_count: Groups of features.
        batch_group_count: Groups of examples.
        precision: As for `lax.dot_general`.
        preferred_element_type: As for `lax.dot_general`.
    """

    window_strides: Ints
    padding: tuple[tuple[int, int], ...]
    lhs_dilation: Ints
    rhs_dilation: Ints
    dimension_numbers: Any
    feature_group_count: int = 1
    batch_group_count: int = 1
    precision: Any = None
    preferred_element_type: Any = None

    def __call__(self, x: Array, w: Array) -> Array:
        """The convolution with a plain array."""
        return lax.conv_general_dilated(
            x,
            w,
            self.window_strides,
            self.padding,
            lhs_dilation=self.lhs_dilation,
            rhs_dilation=self.rhs_dilation,
            dimension_numbers=self.dimension_numbers,
            feature_group_count=self.feature_group_count,
            batch_group_count=self.batch_group_count,
            precision=self.precision,
            preferred_element_type=self.preferred_element_type,
        )


@dataclass(frozen=True)
class Gather:
    """A `lax.gather` from a weight.

    Attributes:
        dimension_numbers: A `lax.GatherDimensionNumbers`, as for `lax.gather`.
        slice_sizes: How much is taken along each axis of the weight.
        mode: What happens out of bounds.
        fill_value: What is filled in, where the mode fills.
        unique_indices: A promise about the indices.
        indices_are_sorted: A promise about the indices.
    """

    dimension_numbers: Any
    slice_sizes: Ints
    mode: Any
    fill_value: Any = None
    unique_indices: bool = False
    indices_are_sorted: bool = False

    def __call__(self, w: Array, indices: Array) -> Array:
        """The look-up in a plain array."""
        return lax.gather(
            w,
            indices,
            self.dimension_numbers,
            self.slice_sizes,
            mode=self.mode,
            fill_value=self.fill_value,
            unique_indices=self.unique_indices,
            indices_are_sorted=self.indices_are_sorted,
        )

    def axis(self, shape: Ints) -> int | None:
        """The one axis that is looked up, all others being taken whole; else None."""
        numbers = self.dimension_numbers
        mapped = tuple(numbers.start_index_map)
        if len(mapped) != 1 or tuple(numbers.collapsed_slice_dims) != mapped:
            return None
        if getattr(numbers, "operand_batching_dims", ()):
            return None
        rest = [d for d in range(len(shape)) if d != mapped[0]]
        whole = all(self.slice_sizes[d] == shape[d] for d in rest)
        return mapped[0] if whole else None

    def out_dims(self, shape: Ints, index_ndim: int) -> list[int | None]:
        """For each axis of the result, the axis of the weight it comes from.

        Axes that come from the indices are None.
        """
        axis = self.axis(shape)
        rest = iter(d for d in range(len(shape)) if d != axis)
        offset = self.dimension_numbers.offset_dims
        total = index_ndim - 1 + len(offset)
        return [next(rest) if p in offset else None for p in range(total)]

    def take(self, factor: Array, axis: int, indices: Array) -> Array:
        """Entries of one factor along `axis`, the axes of the indices in front.

        Where the look-up fills, a factor gives zeros: the filled value is the base's.
        """
        factor = jnp.moveaxis(factor, axis, 0)
        depth = indices.ndim - 1
        numbers = lax.GatherDimensionNumbers(
            offset_dims=tuple(range(depth, depth + factor.ndim - 1)),
            collapsed_slice_dims=(0,),
            start_index_map=(0,),
        )
        sizes = (1, *factor.shape[1:])
        return lax.gather(factor, indices, numbers, sizes, mode=self.mode, fill_value=0)
