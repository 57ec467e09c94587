"""Operations that rearrange, cast, scale or mark a weight."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank._base import is_operator
from lowrank.lifting._rules import rule


@rule("transpose")
def _transpose(w: Any, *, permutation: Any, **_: Any) -> Any:
    return w.transpose(tuple(permutation))


@rule("reshape")
def _reshape(w: Any, *, new_sizes: Any, dimensions: Any = None, **_: Any) -> Any:
    return NotImplemented if dimensions is not None else w.reshape(tuple(new_sizes))


@rule("squeeze")
def _squeeze(w: Any, *, dimensions: Any, **_: Any) -> Any:
    return w.reshape(tuple(n for d, n in enumerate(w.shape) if d not in dimensions))


@rule("expand_dims")
def _expand_dims(w: Any, *, dimensions: Any, **_: Any) -> Any:
    sizes = iter(w.shape)
    ndim = w.ndim + len(dimensions)
    return w.reshape(tuple(1 if d in dimensions else next(sizes) for d in range(ndim)))


@rule("broadcast_in_dim")
def _broadcast(w: Any, *sizes: Any, shape: Any, **_: Any) -> Any:
    if sizes or math.prod(shape) != math.prod(w.shape):
        return NotImplemented
    return w.reshape(tuple(shape))


@rule("slice")
def _slice(w: Any, *, start_indices: Any, limit_indices: Any, strides: Any) -> Any:
    return w.slice(tuple(start_indices), tuple(limit_indices), strides)


@rule("split")
def _split(w: Any, *, sizes: Any, axis: int, **_: Any) -> Any:
    parts, at = [], 0
    for size in map(int, sizes):
        start, limit = [0] * w.ndim, list(w.shape)
        start[axis], limit[axis] = at, at + size
        parts.append(w.slice(tuple(start), tuple(limit), None))
        at += size
    return NotImplemented if any(p is NotImplemented for p in parts) else parts


@rule("unstack")
def _unstack(w: Any, *, axis: int, **_: Any) -> Any:
    rows = _split(w, sizes=[1] * w.shape[axis], axis=axis)
    if rows is NotImplemented:
        return rows
    parts = [_squeeze(row, dimensions=(axis,)) for row in rows]
    return NotImplemented if any(p is NotImplemented for p in parts) else parts


@rule("dynamic_slice")
def _dynamic_slice(w: Any, *starts: Any, slice_sizes: Any, **_: Any) -> Any:
    if any(map(is_operator, starts)):
        return NotImplemented
    return w.dynamic_slice(starts, tuple(slice_sizes))


@rule("rev")
def _rev(w: Any, *, dimensions: Any, **_: Any) -> Any:
    return w.reverse(tuple(dimensions))


@rule("convert_element_type")
def _convert(w: Any, *, new_dtype: Any, **_: Any) -> Any:
    return (
        w.cast(new_dtype) if jnp.issubdtype(new_dtype, jnp.floating) else NotImplemented
    )


def _scalar(x: Any) -> bool:
    return not is_operator(x) and jnp.ndim(x) == 0


@rule("mul")
def _mul(x: Any, y: Any, **_: Any) -> Any:
    w, factor = (x, y) if is_operator(x) else (y, x)
    return w.scaled(factor) if _scalar(factor) else NotImplemented


@rule("div")
def _div(x: Any, y: Any, **_: Any) -> Any:
    return x.scaled(1 / y) if is_operator(x) and _scalar(y) else NotImplemented


@rule("neg")
def _neg(w: Any, **_: Any) -> Any:
    return w.scaled(-1.0)


@rule("add", "add_any")
def _add(x: Any, y: Any, **_: Any) -> Any:
    w, other = (x, y) if is_operator(x) else (y, x)
    same = not is_operator(other) and jnp.shape(other) == w.shape
    return w.add(jnp.asarray(other)) if same else NotImplemented


@rule("sub")
def _sub(x: Any, y: Any, **_: Any) -> Any:
    if is_operator(x):
        return NotImplemented if is_operator(y) else _add(x, -y)
    flipped = y.scaled(-1.0)
    return NotImplemented if flipped is NotImplemented else _add(flipped, x)


@rule("copy", "copy_p", "name", "pvary", "pcast", "pbroadcast")
def _same(w: Any, **_: Any) -> Any:
    """Marks on a value: what the rules emit for its parts needs none of them."""
    return w


@rule("stop_gradient")
def _stop_gradient(w: Any, **_: Any) -> Any:
    return jax.tree.map(lax.stop_gradient, w)


@rule("sharding_constraint")
def _sharding_constraint(w: Any, *, sharding: Any, **_: Any) -> Any:
    return w.constrain(sharding)
