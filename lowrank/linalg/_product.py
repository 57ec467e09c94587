"""Products of labelled arrays, and reshapes told by groups of axes."""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

Labels = Sequence[Hashable]


def labelled_product(
    x: jax.Array, xl: Labels, y: jax.Array, yl: Labels, out: Labels, **options: Any
) -> jax.Array:
    """Contract two arrays whose axes carry labels, as one matrix product.

    Labels in both arrays and in `out` are batch axes, labels in both but not in `out`
    are summed. All axes of one kind are merged first, so that the backend meets a plain
    matrix product: a training step whose skinny products had rank-3 operands took 1.4
    times as long on a CPU (`docs/speed.md`).

    Args:
        x: Left operand.
        xl: One label for each axis of `x`.
        y: Right operand.
        yl: One label for each axis of `y`.
        out: Labels of the result, in order.
        **options: `precision` and `preferred_element_type` of `lax.dot_general`.

    Returns:
        The product, with axes as in `out`.
    """
    batch = [n for n in xl if n in yl and n in out]
    summed = [n for n in xl if n in yl and n not in out]
    left = [n for n in xl if n not in yl]
    right = [n for n in yl if n not in xl]
    sizes = dict(zip(yl, y.shape, strict=True)) | dict(zip(xl, x.shape, strict=True))
    flat = not (_is_sharded(x) or _is_sharded(y))
    x, (xb, xs, _) = _merge(x, xl, (batch, summed, left), flat)
    y, (yb, ys, _) = _merge(y, yl, (batch, summed, right), flat)
    z = lax.dot_general(x, y, ((xs, ys), (xb, yb)), **options)
    have = [*batch, *left, *right]
    z = z.reshape([sizes[n] for n in have]) if flat else z
    order = [have.index(n) for n in out]
    return z if order == sorted(order) else jnp.transpose(z, order)


def _is_sharded(x: jax.Array) -> bool:
    """Whether the type of `x` carries a sharding: merging its axes would gather it."""
    spec = getattr(jax.typeof(x).sharding, "spec", ())
    return any(axis is not None for axis in spec)


def _merge(
    x: jax.Array, labels: Labels, groups: Sequence[Labels], flat: bool
) -> tuple[jax.Array, list[tuple[int, ...]]]:
    """Merge each group of axes into one; returns the axes that each group now has.

    Batch axes (the first group) stay apart. Axes are moved only if a group is
    scattered.
    """
    where = [[labels.index(n) for n in group] for group in groups]
    if not flat:
        return x, [tuple(axes) for axes in where]
    kinds = [[axis] for axis in where[0]] + [axes for axes in where[1:] if axes]
    tidy = all(axes == list(range(axes[0], axes[0] + len(axes))) for axes in kinds)
    if tidy:
        kinds = sorted(kinds)
    else:
        x = jnp.transpose(x, [axis for axes in kinds for axis in axes])
    shape = x.shape if tidy else None
    lengths = [math.prod(labels_sizes) for labels_sizes in _sizes(x, kinds, shape)]
    merged = x.reshape(lengths)
    find = {tuple(axes): i for i, axes in enumerate(kinds)}
    batch = tuple(find[(axis,)] for axis in where[0])
    return merged, [batch, *((find[tuple(a)],) if a else () for a in where[1:])]


def _sizes(
    x: jax.Array, kinds: Sequence[Sequence[int]], shape: tuple[int, ...] | None
) -> list[tuple[int, ...]]:
    """Sizes of the axes of each group, before or after they were moved."""
    if shape is not None:
        return [tuple(shape[axis] for axis in axes) for axes in kinds]
    ends = [sum(len(axes) for axes in kinds[: i + 1]) for i in range(len(kinds))]
    return [
        x.shape[end - len(axes) : end] for end, axes in zip(ends, kinds, strict=True)
    ]


def regroup(
    old: Sequence[int], new: Sequence[int]
) -> list[tuple[list[int], list[int]]] | None:
    """Match axes of an old shape with axes of a new one, group by group.

    Args:
        old: Shape before a reshape.
        new: Shape after it.

    Returns:
        Pairs (old axes, new axes) of equal total size, as small as possible; None if
        axes cannot be matched in order.
    """
    groups, i, j = [], 0, 0
    while i < len(old) or j < len(new):
        left, right = [], []
        if i < len(old):
            left.append(i)
            i += 1
        if j < len(new):
            right.append(j)
            j += 1
        while (p := math.prod(old[d] for d in left)) != (
            q := math.prod(new[d] for d in right)
        ):
            if p < q and i < len(old):
                left.append(i)
                i += 1
            elif q < p and j < len(new):
                right.append(j)
                j += 1
            else:
                return None
        groups.append((left, right))
    return groups
