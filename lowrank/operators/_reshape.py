"""Reshapes of a factored weight: the same split or merge of each factor's axes."""

from typing import Any

from jax import lax

from lowrank._base import Array
from lowrank.linalg import regroup

RANK = "rank"
_Role = tuple[bool, bool]


def reshaped(op: Any, w: Any, shape: tuple[int, ...]) -> Any:
    """A `LowRank` of another shape over the reshaped base `w`.

    Args:
        op: A `LowRank`.
        w: Its base, reshaped already.
        shape: The new shape.

    Returns:
        The operator; NotImplemented if an axis would mix inputs, outputs and stacks.
    """
    roles = _roles(op, shape)
    if roles is None:
        return NotImplemented
    stack = tuple(d for d, role in enumerate(roles) if role == (True, True))
    inputs = tuple(d for d, role in enumerate(roles) if role == (True, False))
    outputs = tuple(d for d, role in enumerate(roles) if role == (False, True))
    old = op.stack
    ordered = lax.transpose(
        op.scale, [old.index(d) for d in sorted(old)][: op.scale.ndim]
    )
    return op.replace(
        w=w,
        a=_refit(op.a, op.a_labels, (old, op.a_dims), (stack, inputs), shape, True),
        b=_refit(op.b, op.b_labels, (old, op.b_dims), (stack, outputs), shape, False),
        scale=ordered.reshape([shape[d] for d in stack]) if op.scale.ndim else op.scale,
        a_dims=stack + inputs,
        b_dims=stack + outputs,
    )


def _roles(op: Any, shape: tuple[int, ...]) -> list[_Role] | None:
    """For each new axis, whether `a` and whether `b` holds it."""
    groups = regroup(op.shape, shape)
    roles: list[_Role] = [(True, False)] * len(shape)
    for old, new in groups or ():
        long = [d for d in old if op.shape[d] > 1] or old[:1]
        held = {(d in op.a_dims, d in op.b_dims) for d in long}
        if len(held) > 1:
            return None
        for d in new:
            roles[d] = next(iter(held), (True, False))
    return None if groups is None else roles


def _refit(
    factor: Array,
    labels: tuple[Any, ...],
    old: tuple[tuple[int, ...], tuple[int, ...]],
    new: tuple[tuple[int, ...], tuple[int, ...]],
    shape: tuple[int, ...],
    rank_last: bool,
) -> Array:
    """A factor with its axes in the order of the weight's, then in the new sizes."""
    stack, own = sorted(old[0]), sorted(set(old[1]) - set(old[0]))
    order = [*stack, *own, RANK] if rank_last else [*stack, RANK, *own]
    factor = lax.transpose(factor, [labels.index(n) for n in order])
    rank = [factor.shape[order.index(RANK)]]
    outer, inner = ([shape[d] for d in dims] for dims in new)
    return factor.reshape(outer + (inner + rank if rank_last else rank + inner))
