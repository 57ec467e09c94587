"""A leaf of every tree as thin matrices, and a thin matrix product as a leaf."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank import _tree
from lowrank._adapted import split
from lowrank._base import Array, Operator, Path, PyTree
from lowrank._parts import Parts, adapted
from lowrank.operators import Delta, LowRank
from lowrank.operators._dispatch import scaled

Dims = tuple[int, ...]


class Layout(NamedTuple):
    """Which axes of a leaf are stack, inputs and outputs of its factors."""

    shape: Dims
    a_dims: Dims
    b_dims: Dims

    @property
    def stack(self) -> Dims:
        """Axes that both factors hold."""
        return tuple(d for d in self.a_dims if d in self.b_dims)

    def sizes(self, dims: Sequence[int]) -> Dims:
        """Sizes of some axes."""
        return tuple(self.shape[d] for d in dims)

    @property
    def inputs(self) -> Dims:
        """Axes that only `a` holds."""
        return self.a_dims[len(self.stack) :]

    @property
    def outputs(self) -> Dims:
        """Axes that only `b` holds."""
        return self.b_dims[len(self.stack) :]

    def matrix(self, d: Array) -> Array:
        """An array of the leaf's shape as `[*stack, n, m]`."""
        order = (*self.stack, *self.inputs, *self.outputs)
        n, m = (math.prod(self.sizes(dims)) for dims in (self.inputs, self.outputs))
        return jnp.transpose(d, order).reshape(*self.sizes(self.stack), n, m)

    def unmatrix(self, d: Array) -> Array:
        """The inverse of `matrix`."""
        order = (*self.stack, *self.inputs, *self.outputs)
        back = tuple(order.index(i) for i in range(len(order)))
        return jnp.transpose(d.reshape(self.sizes(order)), back)


class Matrices(NamedTuple):
    """One leaf of all trees: tree `t` adds `a[t] b[t]`.

    Attributes:
        base: What the terms were added to, kept once.
        a: For each tree `[*stack, n, r_t]`; `r_t` is 0 where it leaves the leaf alone.
        b: For each tree `[*stack, r_t, m]`, its scale multiplied in.
        layout: How `n` and `m` are laid out in the leaf.
    """

    base: Any
    a: tuple[Array, ...]
    b: tuple[Array, ...]
    layout: Layout

    def operator(self, a: Array, b: Array) -> Operator:
        """The leaf that stands for `base + a b`, for `a: [*stack, n, r]`.

        A product as wide as the leaf itself becomes a plain delta.
        """
        layout, stack = self.layout, self.layout.stack
        if a.shape[-1] >= min(a.shape[-2], b.shape[-1]) and not stack:
            return Delta(self.base, layout.unmatrix(a @ b).astype(a.dtype))
        depth, rank = len(stack), a.shape[-1]
        a = a.reshape(*a.shape[:depth], *layout.sizes(layout.inputs), rank)
        b = b.reshape(*b.shape[:depth], rank, *layout.sizes(layout.outputs))
        dims = {"a_dims": layout.a_dims, "b_dims": layout.b_dims}
        return LowRank(self.base, a, b, jnp.ones((), b.dtype), **dims)


class Plain(NamedTuple):
    """One leaf of all trees that is no matrix, such as a bias: tree `t` adds `d[t]`."""

    base: Any
    d: tuple[Array | None, ...]

    def operator(self, weights: Sequence[Any]) -> Operator:
        """The leaf that stands for `base + sum_t w_t d_t`."""
        pairs = zip(self.d, weights, strict=True)
        found = [scaled(d, w) for d, w in pairs if d is not None]
        return Delta(self.base, sum(found[1:], found[0]))


def factored(who: str, trees: Sequence[PyTree]) -> dict[Path, Matrices | Plain]:
    """Take apart adapted trees into thin matrices, in float32 or wider.

    Several low-rank terms of one tree are put side by side; a plain delta of a matrix
    becomes the product of itself and an identity.

    Returns:
        By path, for leaves that at least one tree adapts, in the order of the tree.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            or factors of one leaf hold different axes; all such leaves are named.
    """
    return {path: _leaf(own) for path, own in adapted(who, trees).items()}


def assemble(who: str, tree: PyTree, merged: Mapping[Path, Any]) -> PyTree:
    """The tree with merged leaves in place, and every other leaf as its base."""
    bases = {path: split(leaf)[0] for path, leaf in _tree.leaves(who, tree).items()}
    return _tree.replace(who, tree, {**bases, **merged})


def _leaf(own: Parts) -> Matrices | Plain:
    """One leaf of all trees."""
    shape = tuple(own.base.shape)
    terms = [t for terms in own.terms for t in terms if isinstance(t, LowRank)]
    if not terms and len(shape) != 2:
        return Plain(own.base, tuple(_delta(terms) for terms in own.terms))
    a_dims, b_dims = (terms[0].a_dims, terms[0].b_dims) if terms else ((0,), (1,))
    layout = Layout(shape, a_dims, b_dims)
    pairs = [_pair(layout, terms) for terms in own.terms]
    a, b = (tuple(side) for side in zip(*pairs, strict=True))
    return Matrices(own.base, a, b, layout)


def wide(x: Array) -> Array:
    """In float32, or the wider dtype it has."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _delta(terms: Sequence[Operator]) -> Array | None:
    """The plain deltas of one tree at one leaf, summed."""
    found = [wide(term.d) for term in terms if isinstance(term, Delta)]
    return sum(found[1:], found[0]) if found else None


def _pair(layout: Layout, terms: Sequence[Operator]) -> tuple[Array, Array]:
    """The factors of one tree at one leaf, `[*stack, n, r]` and `[*stack, r, m]`."""
    stack = layout.sizes(layout.stack)
    n, m = (math.prod(layout.sizes(d)) for d in (layout.inputs, layout.outputs))
    pairs = [
        (wide(t.a).reshape(*stack, n, -1), wide(t.scaled_b()).reshape(*stack, -1, m))
        for t in terms
        if isinstance(t, LowRank)
    ]
    if (d := _delta(terms)) is not None:
        pairs.append(_with_identity(layout.matrix(d)))
    if not pairs:
        return jnp.zeros((*stack, n, 0)), jnp.zeros((*stack, 0, m))
    a, b = zip(*pairs, strict=True)
    return jnp.concatenate(a, axis=-1), jnp.concatenate(b, axis=-2)


def _with_identity(d: Array) -> tuple[Array, Array]:
    """A matrix as a product with an identity of its smaller side."""
    *stack, n, m = d.shape
    eye = jnp.broadcast_to(
        jnp.eye(min(n, m), dtype=d.dtype), (*stack, *[min(n, m)] * 2)
    )
    return (eye, d) if n <= m else (d, eye)
