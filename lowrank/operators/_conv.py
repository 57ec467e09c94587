"""Convolution with a factored kernel."""

import dataclasses
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array
from lowrank.linalg import labelled_product
from lowrank.operators._reshape import RANK


def factored_conv(x: Array, op: Any, spec: Any) -> Any:
    """What the factors of a low-rank kernel add to a convolution.

    The factor that holds the input features acts first, with the spatial axes that it
    holds; then the other. With groups, the first factor serves every group and the
    second makes the outputs of each; where a group has no more outputs than the rank,
    as in a depthwise convolution, two steps would cost more than a whole kernel, and
    the product of the factors is the kernel.

    Args:
        x: Activation, laid out as `spec` says.
        op: A `LowRank` without stack axes.
        spec: A `Convolution`.

    Returns:
        The term, in the layout of the result; NotImplemented if the factors do not
        split the kernel into a convolution behind a convolution.
    """
    out_dim, in_dim, *spatial = spec.dimension_numbers.rhs_spec
    a, b = op.factors(x.dtype)
    pair = [(a, list(op.a_labels)), (b, list(op.b_labels))]
    if in_dim in op.b_dims:
        pair.reverse()
    (first, first_labels), (second, second_labels) = pair
    if out_dim in first_labels or spec.batch_group_count != 1:
        return NotImplemented
    if spec.feature_group_count != 1:
        if len(second_labels) > 2:
            return NotImplemented
        return _grouped(x, first, first_labels, second, second_labels, spec)
    rank_out = [RANK if d == out_dim else d for d in range(op.ndim)]
    rank_in = [RANK if d == in_dim else d for d in range(op.ndim)]
    numbers = spec.dimension_numbers
    between = numbers._replace(out_spec=numbers.lhs_spec)  # what the second one reads
    inner = dataclasses.replace(spec, dimension_numbers=between)
    t = _one(x, first, first_labels, rank_out, spatial, inner)
    return _one(t.astype(x.dtype), second, second_labels, rank_in, spatial, spec)


def _one(
    x: Array,
    factor: Array,
    labels: list[Any],
    layout: list[Any],
    spatial: Any,
    spec: Any,
) -> Array:
    """One factor as a kernel of the given layout, 1 wide where it holds no axis."""
    held = [d in labels for d in spatial]
    if not any(held):
        return _pointwise(x, factor, labels, layout, spec)
    present = [n for n in layout if n in labels]
    kernel = jnp.transpose(factor, [labels.index(n) for n in present])
    missing = [i for i, n in enumerate(layout) if n not in labels]
    kernel = jnp.expand_dims(kernel, missing)

    def only(values: Any, neutral: Any) -> tuple[Any, ...]:
        return tuple(v if h else neutral for v, h in zip(values, held, strict=True))

    own = dataclasses.replace(
        spec,
        window_strides=only(spec.window_strides, 1),
        padding=only(spec.padding, (0, 0)),
        lhs_dilation=only(spec.lhs_dilation, 1),
        rhs_dilation=only(spec.rhs_dilation, 1),
    )
    return own(x, kernel)


def _pointwise(
    x: Array, factor: Array, labels: list[Any], layout: list[Any], spec: Any
) -> Array:
    """A 1 x 1 convolution, as a product over the feature axis."""
    numbers = spec.dimension_numbers
    out_dim, in_dim = layout[numbers.rhs_spec[0]], layout[numbers.rhs_spec[1]]
    before, after = list(numbers.lhs_spec), list(numbers.out_spec)
    xl: list[Any] = [("x", before.index(p)) for p in range(x.ndim)]
    out: list[Any] = [("x", after.index(p)) for p in range(x.ndim)]
    xl[before[1]], out[after[1]] = in_dim, out_dim
    options = {
        "precision": spec.precision,
        "preferred_element_type": spec.preferred_element_type,
    }
    return labelled_product(x, xl, factor, labels, out, **options)


def _grouped(
    x: Array, first: Array, fl: list[Any], second: Array, sl: list[Any], spec: Any
) -> Array:
    """The same first factor in each group, then each group's own outputs."""
    groups, numbers = spec.feature_group_count, spec.dimension_numbers
    rank = first.shape[fl.index(RANK)]
    if second.size <= groups * rank * rank:  # outputs of a group <= rank
        dims = list(range(len(numbers.rhs_spec)))
        return spec(x, labelled_product(first, fl, second, sl, dims))
    layout = [
        RANK if d == numbers.rhs_spec[0] else d for d in range(len(numbers.rhs_spec))
    ]
    layout = [n for n in layout if n in fl]
    kernel = jnp.transpose(first, [fl.index(n) for n in layout])
    repeats = [groups if n == RANK else 1 for n in layout]
    t = spec(x, jnp.tile(kernel, repeats)).astype(x.dtype)
    feature = numbers.out_spec[1]
    t = t.reshape(*t.shape[:feature], groups, rank, *t.shape[feature + 1 :])
    outs = jnp.moveaxis(second, sl.index(RANK), 0).reshape(rank, groups, -1)
    axes: list[Any] = [("t", i) for i in range(t.ndim)]
    axes[feature], axes[feature + 1] = "group", RANK
    result = [*axes[: feature + 1], "out", *axes[feature + 2 :]]
    y = labelled_product(t, axes, outs, [RANK, "group", "out"], result)
    return y.reshape(*y.shape[:feature], -1, *y.shape[feature + 2 :])
