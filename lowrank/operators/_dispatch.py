"""The operator protocol as functions that take arrays too.

A nested base may be an array or an operator: both answer here, and both may decline
with `NotImplemented`.
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec

from lowrank import _compat
from lowrank._base import Array, Operator

Weight = Any


def contract(w: Weight, x: Array, spec: Any) -> Any:
    """`spec(x, w)`, a `Contraction`."""
    return w.contract(x, spec) if isinstance(w, Operator) else spec(x, w)


def conv(w: Weight, x: Array, spec: Any) -> Any:
    """`spec(x, w)`, a `Convolution`."""
    return w.conv(x, spec) if isinstance(w, Operator) else spec(x, w)


def gather(w: Weight, indices: Array, spec: Any) -> Any:
    """`spec(w, indices)`, a `Gather`."""
    return w.gather(indices, spec) if isinstance(w, Operator) else spec(w, indices)


def transpose(w: Weight, permutation: tuple[int, ...]) -> Any:
    """Axes in another order."""
    if isinstance(w, Operator):
        return w.transpose(permutation)
    return lax.transpose(w, permutation)


def reshape(w: Weight, shape: tuple[int, ...]) -> Any:
    """Another shape of the same size."""
    return w.reshape(shape) if isinstance(w, Operator) else lax.reshape(w, shape)


def slice_(w: Weight, start: Any, limit: Any, strides: Any) -> Any:
    """A static slice."""
    if isinstance(w, Operator):
        return w.slice(start, limit, strides)
    return lax.slice(w, start, limit, strides)


def dynamic_slice(w: Weight, starts: Any, sizes: Any) -> Any:
    """A slice at traced positions."""
    if isinstance(w, Operator):
        return w.dynamic_slice(starts, sizes)
    return lax.dynamic_slice(w, starts, sizes)


def reverse(w: Weight, dims: tuple[int, ...]) -> Any:
    """Some axes backwards."""
    return w.reverse(dims) if isinstance(w, Operator) else lax.rev(w, dims)


def cast(w: Weight, dtype: Any) -> Any:
    """Another dtype."""
    if isinstance(w, Operator):
        return w.cast(dtype)
    return lax.convert_element_type(w, dtype)


def scaled(w: Weight, factor: Any) -> Any:
    """Times a scalar, in the dtype of `w`."""
    if isinstance(w, Operator):
        return w.scaled(factor)
    return w * jnp.asarray(factor, w.dtype)


def add(w: Weight, other: Array) -> Any:
    """Plus an array of the same shape, in the dtype of `w`."""
    if isinstance(w, Operator):
        return w.add(other)
    return w + other.astype(w.dtype)


def unstack(w: Weight) -> Any:
    """`(stacked arrays, slice -> weight)` along axis 0."""
    return w.unstack() if isinstance(w, Operator) else (w, lambda part: part)


def partition(w: Weight, spec: PartitionSpec) -> Any:
    """Partition specs of a weight's arrays."""
    return w.partition(spec) if isinstance(w, Operator) else spec


def constrain(w: Weight, sharding: NamedSharding) -> Any:
    """A sharding constraint on a weight's arrays."""
    if isinstance(w, Operator):
        return w.constrain(sharding)
    return lax.with_sharding_constraint(w, sharding)


def dense(w: Weight) -> Array:
    """The plain array."""
    return w.dense() if isinstance(w, Operator) else w


def aval(w: Weight) -> Any:
    """The abstract value."""
    return w.aval if isinstance(w, Operator) else _compat.abstract(w)


def settle(w: Weight) -> Any:
    """An array, if the operator gains nothing from its form."""
    return w.settle() if isinstance(w, Operator) else w


def declined(*answers: Any) -> bool:
    """Whether one of the answers is `NotImplemented`."""
    return any(answer is NotImplemented for answer in answers)


def common_dtype(*arrays: Any) -> Any:
    """The dtype that JAX would promote to, also where promotion is strict."""
    with jax.numpy_dtype_promotion("standard"):
        return jnp.promote_types(*(x.dtype for x in arrays))


def total(w: Array, delta: Array) -> Array:
    """`w + delta` in the dtype of `w`, rounded once."""
    dtype = common_dtype(w, delta)
    return (w.astype(dtype) + delta.astype(dtype)).astype(w.dtype)
