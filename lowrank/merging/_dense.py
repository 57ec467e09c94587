"""A leaf of every tree as the dense array that it adds."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank._base import Array, Operator, Path, PyTree
from lowrank._parts import Parts, adapted
from lowrank.merging._factors import Layout, wide
from lowrank.operators import Delta, LowRank


class Dense(NamedTuple):
    """One leaf of all trees: tree `t` adds `d[t]`.

    Attributes:
        base: What the changes are added to, kept once.
        d: For each tree an array of the leaf's shape; None where it leaves it alone.
        layout: Which axes are stack, inputs and outputs. Without a low-rank term the
            last axis of several is the outputs, and nothing is stacked.
    """

    base: Any
    d: tuple[Array | None, ...]
    layout: Layout

    def tensors(self) -> Array:
        """The changes as `[T, S, m, n]`: a matrix `[m, n]` for each stack index.

        Rows are outputs, so that a row is what one output reads.
        """
        zero = jnp.zeros(self.layout.shape, jnp.float32)
        stacked = [self.layout.matrix(zero if d is None else d) for d in self.d]
        x = jnp.stack(stacked)
        depth = math.prod(self.layout.sizes(self.layout.stack))
        return jnp.swapaxes(x.reshape(len(x), depth, *x.shape[-2:]), -1, -2)

    def operator(self, x: Array) -> Operator:
        """The leaf that stands for the base plus one such `[S, m, n]`."""
        return Delta(self.base, self.layout.unmatrix(jnp.swapaxes(x, -1, -2)))


def dense_deltas(who: str, trees: Sequence[PyTree]) -> dict[Path, Dense]:
    """Take apart adapted trees into the arrays that they add, in float32 or wider.

    Returns:
        By path, for leaves that at least one tree adapts, in the order of the tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            or factors of one leaf hold different axes; all such leaves are named.
    """
    return {path: _leaf(own) for path, own in adapted(who, trees).items()}


def _leaf(own: Parts) -> Dense:
    """One leaf of all trees."""
    shape = tuple(own.base.shape)
    terms = [t for terms in own.terms for t in terms if isinstance(t, LowRank)]
    axes = tuple(range(len(shape)))
    dims = (axes[:-1], axes[-1:]) if len(shape) > 1 else (axes, ())
    if terms:
        dims = (terms[0].a_dims, terms[0].b_dims)
    return Dense(own.base, tuple(map(_change, own.terms)), Layout(shape, *dims))


def _change(terms: Sequence[Operator]) -> Array | None:
    """What one tree adds to one leaf."""
    found = [_array(term) for term in terms]
    return sum(found[1:], found[0]) if found else None


def _array(term: Any) -> Array:
    """What one term adds, its product taken in the wide dtype."""
    if isinstance(term, LowRank):
        term = term.replace(a=wide(term.a), b=wide(term.b))
    return wide(term.delta())
