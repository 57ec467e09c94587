"""How far the factors of an adapter moved from where they started."""

from typing import NamedTuple

import jax.numpy as jnp

from lowrank import _tree
from lowrank._adapted import split
from lowrank._base import Array, Path, PyTree
from lowrank.analysis._change import (
    check_finite,
    identity_beside,
    length,
    mt,
    wide,
)
from lowrank.analysis._similarity import angles, directions
from lowrank.analysis._tasks import same_leaves
from lowrank.operators import LowRank


class Drift(NamedTuple):
    """How far each low-rank leaf moved, by path.

    Attributes:
        a: `|A - A0|_F / |A0|_F`, `[*stack]`.
        b: `|B - B0|_F / |B0|_F`; infinite where `B0` is zero and `B` is not.
        a_angles: Principal angles between the column spaces of `A` and `A0`, the input
            directions, `[*stack, r]` in radians.
        b_angles: The same for the row spaces of `B`, the output directions; all right
            angles where one of them is zero.

    Example:
        >>> lrk.analysis.Drift._fields
        ('a', 'b', 'a_angles', 'b_angles')
    """

    a: dict[Path, Array]
    b: dict[Path, Array]
    a_angles: dict[Path, Array]
    b_angles: dict[Path, Array]


def drift(adapted: PyTree, initial: PyTree) -> Drift:
    """Measure how far the factors of an adapter moved from their start.

    Args:
        adapted: A tree with low-rank terms.
        initial: The same tree at init: `tx.apply(params, tx.init(key, params))` with
            the key of then.

    Returns:
        Numbers for every leaf with low-rank terms; where a leaf has several, their `A`
        count as one, side by side, and so do their `B`, scales multiplied in. Two
        independent draws of `A` have a drift of about 1.41 and angles near pi/2 if `r`
        is small beside `n`; one that was not trained, 0. It runs under `jit`.

    Raises:
        ValueError: If paths, shapes, or ranks differ, no leaf has a low-rank term, or
            numbers are not finite; all such leaves are named.

    Example:
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> state = tx.init(jax.random.key(0), params)
        >>> start = tx.apply(params, state)
        >>> moved = {"w": start["w"].replace(a=1.5 * start["w"].a)}
        >>> round(float(lrk.analysis.drift(moved, start).a["w"]), 4)
        0.5

    References:
        Zhu et al., Asymmetry in low-rank adapters, 2024, arXiv:2402.16842: a random `A`
        serves as well as a trained one.
    """
    leaves = same_leaves("drift", [adapted, initial])
    factors, bad = {}, []
    for path, pair in leaves.items():
        low = [[t for t in split(x)[1] if isinstance(t, LowRank)] for x in pair]
        shapes = [[(t.a.shape, t.b.shape, t.a_dims, t.b_dims) for t in x] for x in low]
        if shapes[0] != shapes[1]:
            ranks = [[t.rank for t in x] for x in low]
            bad.append(f"'{path}': ranks {ranks[0]} against {ranks[1]}")
        elif low[0]:
            factors[path] = [_factors(terms) for terms in low]
    if bad:
        raise ValueError(
            f"drift: the low-rank terms differ at {'; '.join(bad)}. Pass the state "
            "that this transform's own init returned, applied to the same parameters."
        )
    if not factors:
        raise ValueError(
            f"drift: none of {len(leaves)} leaves has a low-rank term "
            f"({_tree.quoted(list(leaves)[:8])}). Pass an adapted tree."
        )
    check_finite("drift", {f"'{path}'": own for path, own in factors.items()})
    found = Drift({}, {}, {}, {})
    for path, ((a, b), (a0, b0)) in factors.items():
        found.a[path], found.a_angles[path] = _moved(a, a0)
        found.b[path], found.b_angles[path] = _moved(mt(b), mt(b0))
    return found


def _factors(terms: list[LowRank]) -> tuple[Array, Array]:
    """All factors of a leaf, as `[*stack, n, r]` and `[*stack, r, m]`."""
    depth = len(terms[0].stack)
    stack = terms[0].a.shape[:depth]
    a = [wide(t.a).reshape(*stack, -1, t.rank) for t in terms]
    b = [wide(t.scaled_b()).reshape(*stack, t.rank, -1) for t in terms]
    return jnp.concatenate(a, axis=-1), jnp.concatenate(b, axis=-2)


def _moved(x: Array, start: Array) -> tuple[Array, Array]:
    """Relative change of a matrix, and angles between the column spaces."""

    def size(x: Array) -> Array:
        return length(jnp.sum(jnp.square(x), axis=(-2, -1)))

    change, before = size(x - start), size(start)
    relative = jnp.where(change == 0, 0, change / jnp.where(change == 0, 1, before))
    eye = identity_beside(x)
    return relative, angles(directions(x, eye), directions(start, eye))
