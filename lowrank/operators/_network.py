"""Products of an array with several labelled factors, one after another."""

import math
from collections.abc import Sequence
from typing import Any

from lowrank._base import Array
from lowrank.linalg import labelled_product

INNER = -1
Part = Any  # (axis of the weight, part of the axis); (INNER, i); or an activation's
Labels = tuple[Part, ...]
Pair = tuple[Array, Labels]


def parts_of(labels: Sequence[Labels]) -> list[list[Part]]:
    """The parts of each axis of a weight, slowest first."""
    found = {n for own in labels for n in own}
    ndim = 1 + max((d for d, _ in found), default=INNER)
    return [sorted(n for n in found if n[0] == d) for d in range(ndim)]


def merged(shape: Sequence[int], groups: Sequence[Sequence[Any]]) -> list[int]:
    """A shape with each group of neighbouring axes as one."""
    sizes = iter(shape)
    return [math.prod(next(sizes) for _ in group) for group in groups]


def cheapest(have: dict[Part, int], pairs: Sequence[Pair]) -> int:
    """Which factor to multiply with next: the fewest multiply-adds, if it is linked."""

    def cost(i: int) -> tuple[bool, int]:
        factor, own = pairs[i]
        sizes = have | dict(zip(own, factor.shape, strict=True))
        return not set(own) & set(have), math.prod(sizes.values())

    return min(range(len(pairs)), key=cost)


def product(
    x: Array, names: Sequence[Part], pairs: Sequence[Pair], out: Any, **options: Any
) -> Array:
    """Multiply `x` with factors, summing each label once nothing else asks for it.

    Args:
        x: An array.
        names: A label for each of its axes.
        pairs: Factors with the labels of their axes.
        out: Labels of the result, in order.
        **options: `precision` and `preferred_element_type` of `lax.dot_general`.

    Returns:
        The product, in the dtype that the last factor gives.
    """
    dtype, names, pairs = x.dtype, list(names), list(pairs)
    while pairs:
        have = dict(zip(names, x.shape, strict=True))
        factor, own = pairs.pop(cheapest(have, pairs))
        needed = {*out, *(n for _, others in pairs for n in others)}
        kept = [n for n in names if n in needed]
        kept += [n for n in own if n in needed and n not in names]
        kept = kept if pairs else list(out)
        x = labelled_product(x.astype(dtype), names, factor, own, kept, **options)
        names = kept
    return x
