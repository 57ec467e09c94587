"""Look-ups in a factored weight."""

from typing import Any

from lowrank._base import Array
from lowrank.linalg import labelled_product


def factored_gather(op: Any, w: Any, indices: Array, spec: Any) -> Any:
    """Rows of one factor times the other; or weights picked from a stack.

    Args:
        op: A `LowRank`.
        w: The look-up in its base.
        indices: Indices of the look-up.
        spec: A `Gather` along one axis.

    Returns:
        An array, or a `LowRank` whose stack is over the axes of the indices.
    """
    axis, dims = spec.axis(op.shape), spec.out_dims(op.shape, indices.ndim)
    if axis in op.stack:
        return _picked(op, w, axis, indices, spec, dims)
    new = [-1 - i for i in range(indices.ndim - 1)]
    left = iter(new)
    out = [next(left) if d is None else d for d in dims]
    pairs = list(zip(op.factors(w.dtype), (op.a_labels, op.b_labels), strict=True))
    pairs.sort(key=lambda pair: axis not in pair[1])
    (own, own_labels), (other, other_labels) = pairs
    rows = spec.take(own, own_labels.index(axis), indices)
    labels = [*new, *(n for n in own_labels if n != axis)]
    low = labelled_product(rows, labels, other, other_labels, out)
    return w + low.astype(w.dtype)


def _picked(op: Any, w: Any, axis: int, indices: Array, spec: Any, dims: Any) -> Any:
    """Members of a stack, as a stack over the axes of the indices."""
    fresh = [p for p, d in enumerate(dims) if d is None]
    where = {d: p for p, d in enumerate(dims) if d is not None}

    def take(factor: Array, labels: tuple[Any, ...]) -> Array:
        return spec.take(factor, labels.index(axis), indices)

    def rename(labels: tuple[int, ...]) -> tuple[int, ...]:
        return (*fresh, *(where[d] for d in labels if d != axis))

    return op.replace(
        w=w,
        a=take(op.a, op.a_labels),
        b=take(op.b, op.b_labels),
        scale=take(op.scale, op.stack) if op.scale.ndim else op.scale,
        a_dims=rename(op.a_dims),
        b_dims=rename(op.b_dims),
    )
