"""Convolution with a kernel on a crossbar."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank._base import Array


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
    if not op.converts and (op.scale.shape[-2] == 1 or not op.stochastic):
        return _plain(x, op, spec)
    rows, lead = _patches(x, op.sizes, inputs, spec)
    y = op.multiply(rows, (), spec.precision).reshape(*lead, -1)
    return jnp.moveaxis(y, -1, spec.dimension_numbers.out_spec[1])


def _plain(x: Array, op: Any, spec: Any) -> Array:
    """Without converters: a convolution, and noise by the norms of its patches."""
    y = spec(x, op.programmed_weight().astype(x.dtype))
    if not op.stochastic:
        return y
    feature = spec.dimension_numbers.out_spec[1]
    out_dim, *_ = spec.dimension_numbers.rhs_spec
    ones = [1 if d == out_dim else n for d, n in enumerate(op.sizes)]
    power = spec(jnp.square(x), jnp.ones(ones, x.dtype)).astype(op.scale.dtype)
    gain = math.sqrt(2) * op.numbers["read"] * op.scale / op.unit
    wide = [gain.shape[-1] if d == feature else 1 for d in range(y.ndim)]
    spread = lax.stop_gradient(jnp.sqrt(power) * gain.reshape(wide))
    draw = jax.random.normal(op.place_key(x), y.shape, spread.dtype)
    return y.astype(spread.dtype) + spread * draw


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
