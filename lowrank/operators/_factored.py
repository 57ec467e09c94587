"""A weight plus a product of small factors, each over parts of its axes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.linalg import regroup
from lowrank.operators import _dispatch as ask
from lowrank.operators._factored_conv import network_conv
from lowrank.operators._network import (
    INNER,
    Labels,
    Part,
    merged,
    parts_of,
    product,
)
from lowrank.operators._premerged import premerged

Dims = tuple[int, ...]
Act = Callable[[Array, Labels], Any]


class Factored(Operator):
    """A weight that stands for `w + scale * (f_1 f_2 ... f_k)`, which is never formed.

    Each axis of a factor carries a label `(d, p)`: part `p` of axis `d` of `w`, where
    the parts of one axis are read as the digits of its index, slowest first; or
    `(-1, p)` for an inner axis, which is summed. So a Kronecker product is two factors
    over the parts of two axes, and a Tucker kernel three factors with two inner axes.
    A product with an activation takes the factors one by one, the cheapest first.

    Args:
        w: The base: an array or an operator.
        factors: The factors.
        labels: For each factor, a label for each of its axes. An axis of `w` that
            several factors hold is a stack of layers; it must be whole.
        scale: Scalar.

    Returns:
        An operator: a pytree node with children `w, factors, scale`.

    Raises:
        ValueError: If the factors do not fit `w`.

    Example:
        >>> w, c, d = jnp.zeros((4, 6)), jnp.ones((2, 3)), jnp.ones((2, 2))
        >>> labels = (((0, 0), (1, 0)), ((0, 1), (1, 1)))
        >>> op = lrk.operators.Factored(w, (c, d), labels)
        >>> bool((lrk.materialize(op) == jnp.kron(c, d)).all())
        True
    """

    fields = ("w", "factors", "scale")
    static = ("labels",)
    additive = True

    w: Any
    factors: tuple[Array, ...]
    scale: Array
    labels: tuple[Labels, ...]

    def __init__(
        self,
        w: Any,
        factors: Sequence[ArrayLike],
        labels: Sequence[Sequence[Part]],
        scale: Any = 1.0,
    ) -> None:
        values = {
            "w": w,
            "factors": tuple(jnp.asarray(f) for f in factors),
            "labels": tuple(tuple(map(tuple, own)) for own in labels),
            "scale": jnp.asarray(scale),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Factored: {reason}.")

    # Shapes.

    def _pairs(self) -> list[tuple[Array, Labels]]:
        return list(zip(self.factors, self.labels, strict=True))

    def _sizes(self) -> dict[Part, int]:
        return {
            n: size
            for factor, own in self._pairs()
            for n, size in zip(own, factor.shape, strict=True)
        }

    def _parts(self) -> list[list[Part]]:
        return parts_of(self.labels)

    def _whole(self, d: int) -> bool:
        """Whether an axis of `w` has one part."""
        return self._parts()[d] == [(d, 0)]

    def mismatch(self) -> str | None:
        """Why the factors do not fit `w`, or None."""
        fits = len(self.factors) == len(self.labels) and all(
            len(own) == len(set(own)) == factor.ndim for factor, own in self._pairs()
        )
        if fits and not self.scale.shape:
            sizes = self._sizes()
            seen = [
                (n, size)
                for factor, own in self._pairs()
                for n, size in zip(own, factor.shape, strict=True)
            ]
            held = [math.prod(sizes[n] for n in own) for own in self._parts()]
            known = {n for own in self._parts() for n in own}
            inner = [n for own in self.labels for n in own if n[0] == INNER]
            known |= {n for n in inner if inner.count(n) > 1}
            if (
                all(self._parts())
                and set(sizes) == known
                and all(sizes[n] == size for n, size in seen)
                and tuple(held) == self.shape
            ):
                return self.w.mismatch() if isinstance(self.w, Operator) else None
        shapes = ", ".join(str(tuple(f.shape)) for f in self.factors)
        return (
            f"factors {shapes} with scale {tuple(self.scale.shape)} do not fit a "
            f"weight of shape {self.shape} with labels {self.labels}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the factors vary."""
        return _compat.join_varying(ask.aval(self.w), (*self.factors, self.scale))

    # Products.

    def _cast(self, dtype: Any) -> list[tuple[Array, Labels]]:
        """The factors in the dtype of a product, the scale in the smallest."""
        pairs = self._pairs()
        at = min(range(len(pairs)), key=lambda i: self.factors[i].size)
        factor, own = pairs[at]
        pairs[at] = (factor * self.scale.astype(factor.dtype), own)
        return [(f.astype(dtype), names) for f, names in pairs]

    def delta(self) -> Array:
        """The array that the factors add, in their own dtype."""
        out = [n for own in self._parts() for n in own]
        first, *rest = self._cast(self.factors[0].dtype)
        full = product(*first, rest, out)
        return full.reshape(merged(full.shape, self._parts()))

    def dense(self) -> Array:
        """`w + scale * (f_1 ... f_k)`, in the dtype of `w`, rounded once."""
        return ask.total(ask.dense(self.w), self.delta())

    def settle(self) -> Operator | Array:
        """The same over a settled base."""
        return self.replace(w=ask.settle(self.w))

    def contract(self, x: Array, spec: Any) -> Any:
        """`x w`, plus the product of `x` with one factor after another."""
        y = ask.contract(self.w, x, spec)
        return y if ask.declined(y) else y + self.term(x, spec).astype(y.dtype)

    def term(self, x: Array, spec: Any) -> Array:
        """What the factors add to a product."""
        dtype, sizes = ask.common_dtype(x, self), self._sizes()
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        own = dict(zip(wl, self._parts(), strict=True))
        split = [own.get(n, [("x", n)]) for n in xl]
        shape = [
            sizes.get(n, size)
            for names, size in zip(split, x.shape, strict=True)
            for n in names
        ]
        names = [n for group in split for n in group]
        wanted = [own.get(n, [("x", n)]) for n in out]
        order = [n for group in wanted for n in group]
        pairs = self._cast(dtype)
        y = product(x.astype(dtype).reshape(shape), names, pairs, order, **spec.options)
        return y.reshape(merged(y.shape, wanted))

    def conv(self, x: Array, spec: Any) -> Any:
        """Small convolutions, one after another."""
        y = ask.conv(self.w, x, spec)
        if ask.declined(y):
            return y
        low = network_conv(x, self._cast(x.dtype), self._parts(), self._sizes(), spec)
        return low if ask.declined(low) else y + low.astype(y.dtype)

    def gather(self, indices: Array, spec: Any) -> Any:
        """Rows of the one factor that holds the axis, times the others."""
        w, axis = ask.gather(self.w, indices, spec), spec.axis(self.shape)
        if ask.declined(w) or axis is None or not self._whole(axis):
            return NotImplemented
        pairs = self._cast(w.dtype)
        held = [i for i, (_, own) in enumerate(pairs) if (axis, 0) in own]
        if len(held) > 1:
            return NotImplemented
        factor, own = pairs.pop(held[0])
        rows = spec.take(factor, own.index((axis, 0)), indices)
        fresh = [("x", i) for i in range(indices.ndim - 1)]
        names = [*fresh, *(n for n in own if n != (axis, 0))]
        left = iter(fresh)
        wanted = [
            [next(left)] if d is None else self._parts()[d]
            for d in spec.out_dims(self.shape, indices.ndim)
        ]
        low = product(rows, names, pairs, [n for group in wanted for n in group])
        return w + low.reshape(w.shape).astype(w.dtype)

    def premerge(self) -> Any:
        """Merged once, with gradients for the factors."""
        return premerged(self)

    def describe_axes(self) -> str:
        """Which axes of the weight each factor holds."""
        held = [sorted({d for d, _ in own if d != INNER}) for own in self.labels]
        return " ".join(f"f{i}{dims}" for i, dims in enumerate(held))

    # Structure: the same of `w`, and of the factors that hold its axes.

    def _each(self, w: Any, act: Act, labels: Any = None) -> Any:
        if ask.declined(w):
            return w
        factors = tuple(act(factor, own) for factor, own in self._pairs())
        return self.replace(w=w, factors=factors, labels=labels or self.labels)

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)} | {INNER: INNER}
        labels = tuple(tuple((where[d], p) for d, p in own) for own in self.labels)
        return self._each(ask.transpose(self.w, permutation), lambda x, _: x, labels)

    def reshape(self, shape: Dims) -> Any:
        """Join axes, or split them between their parts."""
        new = self._new_parts(shape)
        if new is None:
            return NotImplemented
        where = {old: (d, p) for d, own in enumerate(new) for p, old in enumerate(own)}
        labels = [tuple(where.get(n, n) for n in own) for own in self.labels]
        fresh = tuple((d, 0) for d, own in enumerate(new) if not own)
        kept = [n for own in self._parts() for n in own]
        dropped = [n for n in kept if n not in where]
        factors = []
        for i, (factor, own) in enumerate(self._pairs()):
            gone = [j for j, n in enumerate(own) if n in dropped]
            ones = (1,) * len(fresh) if i == 0 else ()
            small = jnp.squeeze(factor, gone)
            factors.append(small.reshape(*ones, *small.shape))
            left = tuple(n for j, n in enumerate(labels[i]) if j not in gone)
            labels[i] = (*fresh, *left) if i == 0 else left
        w = ask.reshape(self.w, shape)
        if ask.declined(w):
            return w
        return self.replace(w=w, factors=tuple(factors), labels=tuple(labels))

    def _new_parts(self, shape: Dims) -> list[list[Part]] | None:
        """The old parts that each new axis takes; None if one would be cut."""
        sizes, parts = self._sizes(), self._parts()
        new: list[list[Part]] = [[] for _ in shape]
        for old, axes in regroup(self.shape, shape) or [([], [])]:
            left = [n for d in old for n in parts[d] if sizes[n] > 1]
            for d in axes:
                while left and math.prod(sizes[n] for n in new[d]) < shape[d]:
                    new[d].append(left.pop(0))
                if math.prod(sizes[n] for n in new[d]) != shape[d]:
                    return None
        taken = sum(len(own) for own in new)
        return (
            new if taken == sum(s > 1 for n, s in sizes.items() if n[0] >= 0) else None
        )

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice the factors along the axes that they hold whole."""
        by = strides or (1,) * self.ndim
        taken = {
            d: (start[d], limit[d], by[d])
            for d, n in enumerate(self.shape)
            if (start[d], limit[d], by[d]) != (0, n, 1)
        }
        if not all(map(self._whole, taken)):
            return NotImplemented

        def act(x: Array, own: Labels) -> Array:
            cuts = [
                taken.get(d, (0, n, 1)) for (d, _), n in zip(own, x.shape, strict=True)
            ]
            return lax.slice(x, *zip(*cuts, strict=True)) if cuts else x

        return self._each(ask.slice_(self.w, start, limit, strides), act)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same at traced positions."""
        taken = {d for d, n in enumerate(self.shape) if sizes[d] != n}
        if not all(map(self._whole, taken)):
            return NotImplemented

        def act(x: Array, own: Labels) -> Array:
            for axis, (d, _) in enumerate(own):
                if d in taken:
                    x = lax.dynamic_slice_in_dim(x, starts[d], sizes[d], axis)
            return x

        return self._each(ask.dynamic_slice(self.w, starts, sizes), act)

    def reverse(self, dims: Dims) -> Any:
        """Reverse every part of the axes: the digits of an index, backwards."""

        def act(x: Array, own: Labels) -> Array:
            return lax.rev(x, [i for i, (d, _) in enumerate(own) if d in dims])

        return self._each(ask.reverse(self.w, dims), act)

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the factors follow in the product."""
        w = ask.cast(self.w, dtype)
        return w if ask.declined(w) else self.replace(w=w)

    def scaled(self, factor: Any) -> Any:
        """Scale the base and the scale."""
        w = ask.scaled(self.w, factor)
        scale = self.scale * jnp.asarray(factor, self.scale.dtype)
        return w if ask.declined(w) else self.replace(w=w, scale=scale)

    def add(self, other: Array) -> Any:
        """Add to the base."""
        w = ask.add(self.w, other)
        return w if ask.declined(w) else self.replace(w=w)

    def unstack(self) -> Any:
        """Axis 0 of every factor that holds it; the others are shared by all slices."""
        inner = ask.unstack(self.w)
        if ask.declined(inner) or not self._whole(0):
            return NotImplemented
        top = (0, 0)
        stacked = {
            i: jnp.moveaxis(factor, own.index(top), 0)
            for i, (factor, own) in enumerate(self._pairs())
            if top in own
        }
        shift = {d: d - 1 for d in range(self.ndim)} | {INNER: INNER}
        labels = tuple(
            tuple((shift[d], p) for d, p in own if (d, p) != top) for own in self.labels
        )

        def rebuild(part: Any) -> Operator:
            own = tuple(part[1].get(i, f) for i, f in enumerate(self.factors))
            return self.replace(w=inner[1](part[0]), factors=own, labels=labels)

        return (inner[0], stacked), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """A factor is split as the axes that it holds whole."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))

        def act(x: Array, own: Labels) -> PartitionSpec:
            del x
            whole = (d != INNER and self._whole(d) for d, _ in own)
            return PartitionSpec(
                *(full[d] if w else None for (d, _), w in zip(own, whole, strict=True))
            )

        specs = self._each(ask.partition(self.w, spec), act)
        return specs if ask.declined(specs) else specs.replace(scale=PartitionSpec())

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and each factor as the axes that it holds."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        w, specs = ask.constrain(self.w, sharding), self.partition(sharding.spec)
        if ask.declined(w, specs):
            return NotImplemented
        factors = tuple(
            lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, own))
            for x, own in zip(self.factors, specs.factors, strict=True)
        )
        return self.replace(w=w, factors=factors)
