"""Convolution with a kernel that is a product of small factors."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank._base import Array
from lowrank.linalg import labelled_product
from lowrank.operators._network import INNER, Pair, Part, cheapest

GROUP = "group"


def network_conv(
    x: Array,
    pairs: Sequence[Pair],
    parts: Sequence[Sequence[Part]],
    sizes: dict[Part, int],
    spec: Any,
) -> Any:
    """What the factors of a kernel add to a convolution.

    A factor that holds spatial axes is a convolution over the features that it shares
    with what came before, the others being carried along; any other factor is a 1 x 1
    convolution. With groups, factors serve every group alike until one holds the output
    features, of which each group has its own.

    Args:
        x: Activation, laid out as `spec` says.
        pairs: The factors with their labels, in the dtype of `x`.
        parts: The parts of each axis of the kernel.
        sizes: Sizes of all labels.
        spec: A `Convolution`.

    Returns:
        The term, in the layout of the result; NotImplemented if spatial axes are split
        or shared, or the groups are no whole digits of the output's index.
    """
    out_dim, in_dim, *spatial = spec.dimension_numbers.rhs_spec
    cuts = _cuts(parts[out_dim], sizes, spec.feature_group_count)
    if cuts is None or not _chained(pairs, spatial, cuts) or spec.batch_group_count > 1:
        return NotImplemented
    left = [_grouped(pair, cuts) for pair in pairs]
    sizes = sizes | {(GROUP, n[1]): size for n, size in cuts.items()}
    names = [*((GROUP, n[1]) for n in cuts), *parts[in_dim]]
    out = [
        m for n in parts[out_dim] for m in (*([(GROUP, n[1])] if n in cuts else ()), n)
    ]
    numbers = spec.dimension_numbers
    n = len(spatial)
    channels_last = (0, n + 1, *range(1, n + 1))
    kernel = (n + 1, n, *range(n))
    last = lax.ConvDimensionNumbers(channels_last, kernel, channels_last)
    plain = dataclasses.replace(spec, dimension_numbers=last, feature_group_count=1)
    t = jnp.moveaxis(jnp.transpose(x, numbers.lhs_spec), 1, -1)
    depth = t.ndim - 1
    t = t.reshape(*t.shape[:-1], *(sizes[n] for n in names))
    while left:
        pair = left.pop(cheapest(dict(zip(names, t.shape[depth:], strict=True)), left))
        needed = {*out, *(n for _, own in left for n in own)}
        t, names = _step(t, names, pair, needed, spatial, plain)
    order = [depth + names.index(n) for n in out]
    t = jnp.transpose(t, [*range(depth), *order])
    t = jnp.moveaxis(t.reshape(*t.shape[:depth], -1), -1, 1)
    return jnp.transpose(t, [numbers.out_spec.index(p) for p in range(t.ndim)])


def _cuts(
    parts: Sequence[Part], sizes: dict[Part, int], groups: int
) -> dict[Part, int] | None:
    """How many groups each part of the outputs counts, the slowest part first.

    None if a part would count groups that are no divisor of its size.
    """
    cuts = {}
    for n in parts:
        if groups == 1:
            break
        cuts[n] = groups if sizes[n] % groups == 0 else sizes[n]
        if groups % cuts[n]:
            return None
        groups //= cuts[n]
    return cuts if groups == 1 else None


def _chained(
    pairs: Sequence[Pair], spatial: Sequence[int], cuts: dict[Part, int]
) -> bool:
    """Whether the factors act one after another, on places that are whole."""
    held = [n for _, own in pairs for n in own]
    once = all(held.count(n) == (2 if n[0] == INNER else 1) for n in held)
    whole = sorted(n for n in held if n[0] in spatial) == sorted(
        (d, 0) for d in spatial
    )
    cut = [own for _, own in pairs if any(n in cuts for n in own)]
    still = not any(n[0] in spatial for own in cut for n in own)
    return once and whole and still


def _grouped(pair: Pair, cuts: dict[Part, int]) -> Pair:
    """A factor whose output features are cut into groups."""
    factor, own = pair
    for n in cuts:
        if n in own:
            at = own.index(n)
            shape = (*factor.shape[:at], cuts[n], -1, *factor.shape[at + 1 :])
            factor, own = factor.reshape(shape), (*own[:at], (GROUP, n[1]), *own[at:])
    return factor, own


def _step(
    t: Array, names: list[Part], pair: Pair, needed: set[Part], spatial: Any, spec: Any
) -> tuple[Array, list[Part]]:
    """Multiply with one factor: a convolution, or a product over features."""
    factor, own = pair
    summed = [n for n in names if n in own and n not in needed]
    kept = [n for n in names if n not in summed]
    fresh = [n for n in own if n not in names and n[0] not in spatial]
    front = [("t", i) for i in range(t.ndim - len(names))]
    if any(n[0] in spatial for n in own):
        t = _slide(t, (names, kept, summed, fresh), pair, spatial, spec)
        return t, [*kept, *fresh]
    options = {
        "precision": spec.precision,
        "preferred_element_type": spec.preferred_element_type,
    }
    after = [*front, *kept, *fresh]
    y = labelled_product(t, [*front, *names], factor, own, after, **options)
    return y.astype(t.dtype), [*kept, *fresh]


def _slide(t: Array, kinds: Any, pair: Pair, spatial: Any, spec: Any) -> Array:
    """A convolution over the features that are summed, the others as examples."""
    (names, kept, summed, fresh), (factor, own) = kinds, pair
    sizes = dict(zip(own, factor.shape, strict=True))
    places = [(d, 0) for d in spatial if (d, 0) in own]
    factor = jnp.transpose(factor, [own.index(n) for n in [*places, *summed, *fresh]])
    width = math.prod(sizes[n] for n in summed)
    factor = factor.reshape(*(sizes.get((d, 0), 1) for d in spatial), width, -1)
    first, *rest = [("t", i) for i in range(1 + len(spatial))]
    have, order = [first, *rest, *names], [first, *kept, *rest, *summed]
    t = jnp.transpose(t, [have.index(n) for n in order])
    lead, t = t.shape[: 1 + len(kept)], t.reshape(-1, *t.shape[1 + len(kept) :])
    t = t.reshape(*t.shape[: 1 + len(rest)], width)
    y = _held(spec, [(d, 0) in own for d in spatial])(t, factor).astype(t.dtype)
    y = y.reshape(*lead, *y.shape[1:-1], *(sizes[n] for n in fresh))
    have, order = [first, *kept, *rest, *fresh], [first, *rest, *kept, *fresh]
    return jnp.transpose(y, [have.index(n) for n in order])


def _held(spec: Any, held: Sequence[bool]) -> Any:
    """The convolution along some of its axes, 1 wide and in place along the others."""

    def only(values: Any, neutral: Any) -> tuple[Any, ...]:
        return tuple(v if h else neutral for v, h in zip(values, held, strict=True))

    return dataclasses.replace(
        spec,
        window_strides=only(spec.window_strides, 1),
        padding=only(spec.padding, (0, 0)),
        lhs_dilation=only(spec.lhs_dilation, 1),
        rhs_dilation=only(spec.rhs_dilation, 1),
    )
