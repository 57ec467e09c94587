"""Convolution with a kernel on a crossbar."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank._base import Array
from lowrank.linalg._draw import flat_normal
from lowrank.linalg._mvm import converted, read_out


def crossbar_conv(x: Array, op: Any, spec: Any) -> Any:
    """What a crossbar makes of each patch of an activation.

    Args:
        x: Activation, laid out as `spec` says.
        op: A `Crossbar` whose rows are the kernel's input features and spatial axes.
        spec: A `Convolution`.

    Returns:
        The convolution, in the layout of the result; NotImplemented where there are
        groups or stacks, or other axes are rows.
    """
    out_dim, *_ = spec.dimension_numbers.rhs_spec
    stack, inputs, outputs = ([d for d in dims if op.sizes[d] > 1] for dims in op.axes)
    groups = spec.feature_group_count * spec.batch_group_count
    if stack or out_dim in inputs or set(outputs) - {out_dim} or groups != 1:
        return NotImplemented
    numbers, one = op.numbers, op.scale.shape[-2] == 1
    if not op.converts and not op.stochastic:
        return spec(x, op.programmed_weight().astype(x.dtype))
    # The range of a patch is its own; any other converts the activation as it is.
    if one and ("dac_bits" not in numbers or "dac_limit" in numbers):
        return _whole(x, op, spec)
    rows, lead = _patches(x, op.sizes, inputs, spec)
    y = op.multiply(rows, (), spec.precision).reshape(*lead, -1)
    return jnp.moveaxis(y, -1, spec.dimension_numbers.out_spec[1])


def _whole(x: Array, op: Any, spec: Any) -> Array:
    """One tile: a convolution, with noise by the norms of its patches."""
    x = x.astype(jnp.promote_types(x.dtype, op.scale.dtype))
    numbers = {n: v.astype(x.dtype) for n, v in op.numbers.items()}
    alpha = None
    if "dac_limit" in numbers:
        x, alpha = converted(x, numbers["dac_limit"], numbers.get("dac_bits"))
    kernel = op.laid_out(jnp.ones_like(op.scale)).astype(x.dtype)
    feature = spec.dimension_numbers.out_spec[1]
    plain = dataclasses.replace(spec, preferred_element_type=None)
    z = jnp.moveaxis(plain(x, kernel), feature, -1)
    power, draw = None, None
    if "read" in numbers:
        power = jnp.moveaxis(_power(lax.stop_gradient(x), op.sizes, spec), feature, -1)
    if op.stochastic:
        draw = flat_normal(op.place_key(x), z.shape, z.dtype)
    scale = op.scale.reshape((1,) * (z.ndim - 1) + (-1,)).astype(x.dtype)
    unit = op.unit.astype(x.dtype)
    y = read_out(z, power, scale, unit, numbers, draw)
    return jnp.moveaxis(y if alpha is None else alpha * y, -1, feature)


def _power(x: Array, sizes: Sequence[int], spec: Any) -> Array:
    """The sum of the squares of each patch, features of size 1, as a result lies."""
    numbers = spec.dimension_numbers
    _, channel, *places = numbers.lhs_spec
    total = jnp.sum(jnp.square(x), axis=channel, keepdims=True)

    def each(values: Sequence[Any], other: Any) -> list[Any]:
        own = dict(zip(places, values, strict=True))
        return [own.get(d, other) for d in range(x.ndim)]

    found = lax.reduce_window(
        total,
        jnp.zeros((), x.dtype),
        lax.add,
        each([sizes[d] for d in numbers.rhs_spec[2:]], 1),
        each(spec.window_strides, 1),
        each(spec.padding, (0, 0)),
        each(spec.lhs_dilation, 1),
        each(spec.rhs_dilation, 1),
    )
    order = [0] * x.ndim
    for old, new in zip(numbers.lhs_spec, numbers.out_spec, strict=True):
        order[new] = old
    return jnp.transpose(found, order)


def _patches(
    x: Array, sizes: Sequence[int], inputs: Sequence[int], spec: Any
) -> tuple[Array, tuple[int, ...]]:
    """The vectors that a convolution multiplies its kernel with.

    Cut along one axis after another: on a CPU several times as fast as a convolution
    with the identity, `lax.conv_general_dilated_patches`.

    Args:
        x: Activation, laid out as `spec` says.
        sizes: Shape of the kernel.
        inputs: Its long input axes, in the order in which they are flattened.
        spec: A `Convolution` without groups.

    Returns:
        `[n, rows]`, and the shape of the result with its features taken out.
    """
    numbers = spec.dimension_numbers
    batch, channel, *places = numbers.lhs_spec
    _, feature, *spatial = numbers.rhs_spec
    cut = jnp.transpose(x, (batch, *places, channel))
    for axis, d in enumerate(spatial):
        cut = _windows(cut, axis, sizes[d], spec)
    depth = len(spatial) + 1
    have = [*spatial, feature]
    rest = [d for d in have if sizes[d] == 1]
    order = [have.index(d) + depth for d in (*inputs, *rest)]
    # Axes of the result, features taken out, in the order in which it is laid out.
    where = (numbers.out_spec[0], *numbers.out_spec[2:])
    lead = sorted(range(depth), key=where.__getitem__)
    shape = tuple(cut.shape[d] for d in lead)
    cut = jnp.transpose(cut, (*lead, *order))
    return cut.reshape(math.prod(shape), -1), shape


def _windows(x: Array, axis: int, size: int, spec: Any) -> Array:
    """Windows along one spatial axis of `[batch, *spatial, ..., channel]`."""
    low, high = spec.padding[axis]
    edges = [(0, 0, 0)] * x.ndim
    edges[axis + 1] = (low, high, spec.lhs_dilation[axis] - 1)
    x = lax.pad(x, jnp.zeros((), x.dtype), edges)
    apart, stride = spec.rhs_dilation[axis], spec.window_strides[axis]
    span = (x.shape[axis + 1] - (size - 1) * apart - 1) // stride * stride + 1
    starts = [k * apart for k in range(size)]
    cuts = [lax.slice_in_dim(x, at, at + span, stride, axis + 1) for at in starts]
    return jnp.stack(cuts, axis=-2)
