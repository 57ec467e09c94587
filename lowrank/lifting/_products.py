"""Products of an activation and a weight: `dot_general`, convolution, look-up."""

import dataclasses
from typing import Any

from jax import lax

from lowrank._base import is_operator
from lowrank.lifting._rules import rule
from lowrank.operators import _dispatch as ask
from lowrank.operators._specs import Contraction, Convolution, Gather


@rule("dot_general")
def _dot_general(
    lhs: Any,
    rhs: Any,
    *,
    dimension_numbers: Any,
    precision: Any = None,
    preferred_element_type: Any = None,
    out_sharding: Any = None,
    **_: Any,
) -> Any:
    if is_operator(lhs) and is_operator(rhs):
        return NotImplemented
    first = is_operator(lhs)
    spec = Contraction(
        dimension_numbers, first, precision, preferred_element_type, out_sharding
    )
    w, x = (lhs, rhs) if first else (rhs, lhs)
    return w.contract(x, spec)


@rule("conv_general_dilated")
def _conv(lhs: Any, rhs: Any, **params: Any) -> Any:
    if is_operator(lhs):
        return NotImplemented
    names = Convolution.__dataclass_fields__
    spec = Convolution(**{name: params[name] for name in names if name in params})
    return rhs.conv(lhs, spec)


@rule("gather")
def _gather(w: Any, indices: Any, **params: Any) -> Any:
    if is_operator(indices):
        return NotImplemented
    names = Gather.__dataclass_fields__
    spec = Gather(**{name: params[name] for name in names if name in params})
    return (
        w.gather(indices, spec)
        if spec.axis(w.shape) is not None
        else (_batched_slice(w, indices, spec))
    )


def _batched_slice(w: Any, indices: Any, spec: Gather) -> Any:
    """A `dynamic_slice` of one index that was batched by `vmap`, as a plain look-up.

    It starts at every axis, but all axes save one are taken whole, and that one keeps
    an axis of size 1.
    """
    numbers, shape = spec.dimension_numbers, w.shape
    starts = list(numbers.start_index_map)
    cut = [d for d in starts if spec.slice_sizes[d] != shape[d]]
    fills = spec.mode == lax.GatherScatterMode.FILL_OR_DROP
    if len(cut) != 1 or spec.slice_sizes[cut[0]] != 1 or fills:
        return NotImplemented
    if tuple(numbers.collapsed_slice_dims) or numbers.operand_batching_dims:
        return NotImplemented
    axis, at = cut[0], starts.index(cut[0])
    position = numbers.offset_dims[axis]
    rest = (p for p in numbers.offset_dims if p != position)
    plain = lax.GatherDimensionNumbers(
        offset_dims=tuple(p - (p > position) for p in rest),
        collapsed_slice_dims=(axis,),
        start_index_map=(axis,),
    )
    rows = w.gather(
        indices[..., at : at + 1], dataclasses.replace(spec, dimension_numbers=plain)
    )
    if rows is NotImplemented:
        return rows
    wider = (*rows.shape[:position], 1, *rows.shape[position:])
    return ask.reshape(rows, wider)
