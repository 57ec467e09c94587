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
    second makes the outputs of each.

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
    """The same first factor in each group, then each group's own outputs.

    Groups go to the batch: the first factor is one small kernel that all of them share.
    As a kernel of all groups it would be the gradient of a grouped kernel, which XLA
    computes slowly on CPUs.
    """
    groups, numbers = spec.feature_group_count, spec.dimension_numbers
    batch, feature = numbers.lhs_spec[:2]
    x = x.reshape(*x.shape[:feature], groups, -1, *x.shape[feature + 1 :])
    x = jnp.moveaxis(x, feature, batch + 1)
    x = x.reshape(*x.shape[:batch], -1, *x.shape[batch + 2 :])
    dims = range(len(numbers.rhs_spec))
    layout = [RANK if d == numbers.rhs_spec[0] else d for d in dims]
    kernel = jnp.transpose(first, [fl.index(n) for n in layout])
    t = dataclasses.replace(spec, feature_group_count=1)(x, kernel).astype(x.dtype)
    batch, feature = numbers.out_spec[:2]
    labels: list[Any] = [("t", i) for i in dims]
    inner, outer = [*labels], [*labels]
    inner[feature], inner[batch : batch + 1] = RANK, [labels[batch], "group"]
    outer[feature : feature + 1] = ["group", "out"]
    t = t.reshape(*t.shape[:batch], -1, groups, *t.shape[batch + 1 :])
    outs = jnp.moveaxis(second, sl.index(RANK), 0).reshape(
        second.shape[sl.index(RANK)], groups, -1
    )
    y = labelled_product(t, inner, outs, [RANK, "group", "out"], outer)
    return y.reshape(*y.shape[:feature], -1, *y.shape[feature + 2 :])
