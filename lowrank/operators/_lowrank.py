"""The low-rank operator: a weight plus a product of two thin factors."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._conv import factored_conv
from lowrank.operators._gather import factored_gather
from lowrank.operators._premerged import premerged
from lowrank.operators._reshape import RANK, reshaped

Dims = tuple[int, ...]


class LowRank(Operator):
    """A weight that stands for `w + scale * a b`, which is never formed.

    With `w: [*stack, *in, *out]`, `a: [*stack, *in, r]` and `b: [*stack, r, *out]` it
    multiplies as `x W = x w + (x a)(scale b)`. How many axes are stack, in and out
    follows from the numbers of axes. For other layouts `a_dims` and `b_dims` say which
    axis of `w` each factor axis holds, the rank axis left out; axes in both are stack
    axes and come first in both, in one order.

    Args:
        w: The base: an array or an operator.
        a: Factor over the inputs; its last axis is the rank.
        b: Factor over the outputs; its rank axis follows the stack axes.
        scale: Scalar, or one number for each stack index, `[*stack]`.
        a_dims: Axes of `w` that `a` holds.
        b_dims: Axes of `w` that `b` holds.

    Returns:
        An operator: a pytree node with children `w, a, b, scale`.

    Raises:
        ValueError: If the factors do not fit `w`.

    Example:
        >>> op = lrk.LowRank(jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((1, 3)), 0.5)
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[1.0, 1.0, 1.0]]

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: section 4.1, h = W0 x + (alpha/r) B A x
        (transposed: our kernels are `[in, out]`).
    """

    fields = ("w", "a", "b", "scale")
    static = ("a_dims", "b_dims")
    additive = True

    w: Any
    a: Array
    b: Array
    scale: Array
    a_dims: Dims
    b_dims: Dims

    def __init__(
        self,
        w: Any,
        a: ArrayLike,
        b: ArrayLike,
        scale: Any = 1.0,
        *,
        a_dims: Dims | None = None,
        b_dims: Dims | None = None,
    ) -> None:
        a, b = jnp.asarray(a), jnp.asarray(b)
        if (a_dims is None) != (b_dims is None):
            raise ValueError("LowRank: pass both a_dims and b_dims, or neither.")
        if a_dims is None or b_dims is None:
            stack = a.ndim + b.ndim - len(w.shape) - 2
            inputs = a.ndim - 1
            a_dims = tuple(range(inputs))
            b_dims = (*range(max(stack, 0)), *range(inputs, len(w.shape)))
        values = {"w": w, "a": a, "b": b, "scale": jnp.asarray(scale)}
        dims = {"a_dims": tuple(a_dims), "b_dims": tuple(b_dims)}
        for name, value in (values | dims).items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"LowRank: {reason}.")

    # Shapes and dims.

    @property
    def rank(self) -> int:
        """Inner size of the product."""
        return self.a.shape[-1]

    @property
    def stack(self) -> Dims:
        """Axes of `w` that both factors hold."""
        return tuple(d for d in self.a_dims if d in self.b_dims)

    @property
    def a_labels(self) -> tuple[Any, ...]:
        """For each axis of `a`, the axis of `w`, or the rank."""
        return (*self.a_dims, RANK)

    @property
    def b_labels(self) -> tuple[Any, ...]:
        """For each axis of `b`, the axis of `w`, or the rank."""
        depth = len(self.stack)
        return (*self.b_dims[:depth], RANK, *self.b_dims[depth:])

    def mismatch(self) -> str | None:
        """Why the factors do not fit `w`, or None."""
        shape, depth = self.shape, len(self.stack)
        fits = (
            set(self.a_dims) | set(self.b_dims) == set(range(len(shape)))
            and len(set(self.a_dims)) == len(self.a_dims) == self.a.ndim - 1
            and len(set(self.b_dims)) == len(self.b_dims) == self.b.ndim - 1
            and self.a_dims[:depth] == self.b_dims[:depth] == self.stack
        )
        sizes = {RANK: self.a.shape[-1]} | dict(enumerate(shape))
        if (
            fits
            and self.a.shape == tuple(sizes[n] for n in self.a_labels)
            and self.b.shape == tuple(sizes[n] for n in self.b_labels)
            and self.scale.shape in ((), tuple(shape[d] for d in self.stack))
        ):
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        return (
            f"factors {tuple(self.a.shape)} and {tuple(self.b.shape)} with scale "
            f"{tuple(self.scale.shape)} do not fit a weight of shape {tuple(shape)} "
            f"with a_dims={self.a_dims}, b_dims={self.b_dims}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the factors vary."""
        own = (self.a, self.b, self.scale)
        return _compat.join_varying(ask.aval(self.w), own)

    # Products.

    def scaled_b(self) -> Array:
        """`scale * b`, in the dtype of `b`."""
        wide = (1,) * (self.b.ndim - self.scale.ndim) if self.scale.ndim else ()
        shape = (*self.scale.shape, *wide)
        return jnp.multiply(self.b, self.scale.astype(self.b.dtype).reshape(shape))

    def factors(self, dtype: Any) -> tuple[Array, Array]:
        """`a` and `scale * b` in the dtype of a product."""
        return self.a.astype(dtype), self.scaled_b().astype(dtype)

    def delta(self) -> Array:
        """The array that the factors add, `scale * a b`, in their own dtype."""
        dims = sorted({*self.a_dims, *self.b_dims})
        return labelled_product(
            jnp.asarray(self.a), self.a_labels, self.scaled_b(), self.b_labels, dims
        )

    def dense(self) -> Array:
        """`w + scale * a b`, in the dtype of `w`, rounded once."""
        return ask.total(ask.dense(self.w), self.delta())

    def settle(self) -> Operator | Array:
        """A plain array if one factor holds no axis longer than 1: as small as it."""
        op = self.replace(w=ask.settle(self.w))
        own = [set(dims) - set(self.stack) for dims in (self.a_dims, self.b_dims)]
        thin = any(all(self.shape[d] == 1 for d in dims) for dims in own)
        return op.dense() if thin and op.has_dense else op

    def contract(self, x: Array, spec: Any) -> Any:
        """`x w + (x a) b`, or `(x b) a` where the outputs are summed."""
        y = ask.contract(self.w, x, spec)
        if ask.declined(y):
            return y
        return y + self.term(x, spec).astype(y.dtype)

    def term(self, x: Array, spec: Any) -> Array:
        """What the factors add to a product."""
        dtype = ask.common_dtype(x, self)
        x, labels = self.seen(x.astype(dtype), spec.labels(x.ndim, self.ndim))
        xl, wl, out = labels
        named = dict(enumerate(wl)) | {RANK: RANK}
        pairs = [
            (factor, [named[n] for n in names])
            for factor, names in zip(
                self.factors(dtype), (self.a_labels, self.b_labels), strict=True
            )
        ]
        summed = {n for n in wl if n in xl and n not in out}
        pairs.sort(key=lambda pair: -len(summed.intersection(pair[1])))
        (first, fl), (second, sl) = pairs
        kept = [n for n in xl if n not in fl or n in out or n in sl]
        kept += [n for n in fl if n not in xl]
        t = labelled_product(x, xl, first, fl, kept, **spec.options).astype(dtype)
        return labelled_product(t, kept, second, sl, out, **spec.options)

    def seen(self, x: Array, labels: Any) -> tuple[Array, Any]:
        """What the factors see of an activation, and the labels of its axes."""
        return x, labels

    def conv(self, x: Array, spec: Any) -> Any:
        """Two convolutions, one of which is 1 x 1."""
        y = ask.conv(self.w, x, spec)
        if ask.declined(y) or self.stack:
            return NotImplemented
        low = factored_conv(self.seen(x, None)[0], self, spec)
        return low if ask.declined(low) else y + low.astype(y.dtype)

    def gather(self, indices: Array, spec: Any) -> Any:
        """Rows of one factor times the other; or weights picked from a stack."""
        w = ask.gather(self.w, indices, spec)
        if ask.declined(w) or spec.axis(self.shape) is None:
            return NotImplemented
        return factored_gather(self, w, indices, spec)

    def premerge(self) -> Any:
        """Merged once, with gradients for the factors."""
        return premerged(self)

    def describe_axes(self) -> str:
        """Which axes of the weight each factor holds."""
        return f"a{list(self.a_dims)} b{list(self.b_dims)}"

    # Structure: the same of `w`, and axes relabelled.

    def _along(self, w: Any, act: Callable[[Any, tuple[Any, ...]], Any]) -> Any:
        """Act on each array, told which axis of `w` each of its axes is."""
        if ask.declined(w):
            return w
        stack = self.stack if self.scale.ndim else ()
        return self.replace(
            w=w,
            a=act(self.a, self.a_labels),
            b=act(self.b, self.b_labels),
            scale=act(self.scale, stack),
        )

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)}
        w = ask.transpose(self.w, permutation)
        if ask.declined(w):
            return w
        a_dims = tuple(where[d] for d in self.a_dims)
        b_dims = tuple(where[d] for d in self.b_dims)
        return self.replace(w=w, a_dims=a_dims, b_dims=b_dims)

    def reshape(self, shape: Dims) -> Any:
        """Split or merge axes that lie in the same factors."""
        w = ask.reshape(self.w, shape)
        return w if ask.declined(w) else reshaped(self, w, shape)

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice each factor along the axes that it holds."""

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            own = [n != RANK for n in labels]
            lo = [start[n] if y else 0 for n, y in zip(labels, own, strict=True)]
            hi = [
                limit[n] if y else self.rank for n, y in zip(labels, own, strict=True)
            ]
            by = [
                strides[n] if y and strides else 1
                for n, y in zip(labels, own, strict=True)
            ]
            return lax.slice(x, lo, hi, by)

        return self._along(ask.slice_(self.w, start, limit, strides), act)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """Slice each factor along the axes that it holds, at traced positions."""

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            if not labels:
                return x
            zero = jnp.zeros((), jnp.asarray(starts[0]).dtype)
            at = [zero if n == RANK else starts[n] for n in labels]
            lengths = [self.rank if n == RANK else sizes[n] for n in labels]
            return lax.dynamic_slice(x, at, lengths)

        return self._along(ask.dynamic_slice(self.w, starts, sizes), act)

    def reverse(self, dims: Dims) -> Any:
        """Reverse each factor along the axes that it holds."""

        def act(x: Array, labels: tuple[Any, ...]) -> Array:
            return lax.rev(x, [i for i, n in enumerate(labels) if n in dims])

        return self._along(ask.reverse(self.w, dims), act)

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the factors follow in the product."""
        w = ask.cast(self.w, dtype)
        return w if ask.declined(w) else self.replace(w=w)

    def scaled(self, factor: Any) -> Any:
        """Scale the base and the scale."""
        w = ask.scaled(self.w, factor)
        if ask.declined(w):
            return w
        return self.replace(
            w=w, scale=self.scale * jnp.asarray(factor, self.scale.dtype)
        )

    def add(self, other: Array) -> Any:
        """Add to the base."""
        w = ask.add(self.w, other)
        return w if ask.declined(w) else self.replace(w=w)

    def unstack(self) -> Any:
        """Axis 0 of every array that holds it; the others are shared by all slices."""
        inner = ask.unstack(self.w)
        if ask.declined(inner):
            return inner
        own = {
            "a": (self.a, self.a_labels),
            "b": (self.b, self.b_labels),
            "scale": (self.scale, self.stack if self.scale.ndim else ()),
        }
        stacked = {
            name: jnp.moveaxis(x, labels.index(0), 0)
            for name, (x, labels) in own.items()
            if 0 in labels
        }
        shared = {name: x for name, (x, _) in own.items() if name not in stacked}
        a_dims = tuple(d - 1 for d in self.a_dims if d)
        b_dims = tuple(d - 1 for d in self.b_dims if d)

        def rebuild(part: Any) -> Operator:
            values = shared | part[1] | {"a_dims": a_dims, "b_dims": b_dims}
            return self.replace(w=inner[1](part[0]), **values)

        return (inner[0], stacked), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """Each factor is split as the axes of `w` that it holds."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))

        def act(x: Array, labels: tuple[Any, ...]) -> PartitionSpec:
            del x
            return PartitionSpec(*(None if n == RANK else full[n] for n in labels))

        return self._along(ask.partition(self.w, spec), act)

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and each factor as the axes that it holds."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        w, specs = ask.constrain(self.w, sharding), self.partition(sharding.spec)
        if ask.declined(w, specs):
            return NotImplemented

        def fix(x: Array, spec: PartitionSpec) -> Array:
            return lax.with_sharding_constraint(x, NamedSharding(sharding.mesh, spec))

        own = ("a", "b", "scale")
        fixed = {n: fix(getattr(self, n), getattr(specs, n)) for n in own}
        return self.replace(w=w, **fixed)
