"""A weight some of whose axes are rescaled: a diagonal on one side of a product."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator, is_operator
from lowrank.linalg import regroup
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta

Dims = tuple[int, ...]
Act = Callable[[Any], Any]


def aligned(factor: Array, own: Sequence[Any], labels: Sequence[Any]) -> Array:
    """A factor with its axes where `labels` has them, and axes of 1 elsewhere."""
    present = [n for n in labels if n in own]
    factor = jnp.transpose(factor, [own.index(n) for n in present])
    return jnp.expand_dims(factor, [i for i, n in enumerate(labels) if n not in own])


def times(x: Array, factor: Array) -> Array:
    """A product of arrays of one number of axes, in the dtype of `x`, rounded once."""
    dtype = ask.common_dtype(x, factor)
    return (x.astype(dtype) * factor.astype(dtype)).astype(x.dtype)


class Rescaled(Operator):
    """A weight that stands for `w` times one factor for each output, or each input.

    With `w: [n, m]` and a factor for each output it multiplies as `(x w) * m`; with one
    for each input as `(x * m) w`. The rescaled weight is never formed, and `w` may act
    inside the product (a crossbar, say).

    Args:
        w: The base: an array or an operator.
        m: The factors.
        dims: Axes of `w` that `m` holds, in its order; by default the last ones.

    Returns:
        An operator: a pytree node with children `w, m`.

    Raises:
        ValueError: If `m` does not fit `w`.

    Example:
        >>> op = lrk.operators.Rescaled(jnp.ones((2, 3)), jnp.array([1.0, 2.0, 3.0]))
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[2.0, 4.0, 6.0]]
    """

    fields = ("w", "m")
    static = ("dims",)

    w: Any
    m: Array
    dims: Dims

    def __init__(self, w: Any, m: ArrayLike, *, dims: Dims | None = None) -> None:
        m = jnp.asarray(m)
        ndim = len(w.shape)
        dims = tuple(range(ndim))[ndim - m.ndim :] if dims is None else tuple(dims)
        for name, value in {"w": w, "m": m, "dims": dims}.items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"{type(self).__name__}: {reason}.")

    def mismatch(self) -> str | None:
        """Why the factors do not fit `w`, or None."""
        shape = tuple(self.shape)
        known = len(set(self.dims)) == len(self.dims) and set(self.dims) <= set(
            range(len(shape))
        )
        wanted = tuple(shape[d] for d in self.dims) if known else None
        own = [tuple(getattr(self, name).shape) for name in self.fields[1:]]
        if all(found == wanted for found in own):
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        return (
            f"a factor of {own[0]} does not fit a weight of {shape} with "
            f"dims={self.dims}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the factors vary."""
        own = [getattr(self, name) for name in self.fields[1:]]
        return _compat.join_varying(ask.aval(self.w), own)

    @property
    def ratio(self) -> Array:
        """What each entry along the rescaled axes is multiplied by."""
        return self.m

    def dense(self) -> Array:
        """The weight, with the gradient that products have."""
        return times(
            ask.dense(self.w), aligned(self.ratio, self.dims, range(self.ndim))
        )

    def settle(self) -> Operator | Array:
        """A plain array, if the factors are as many as the entries."""
        w = ask.settle(self.w)
        op = self.replace(w=w)
        summed = [n for d, n in enumerate(self.shape) if d not in self.dims]
        return op if is_operator(w) or max(summed, default=1) > 1 else op.dense()

    def describe_axes(self) -> str:
        """Which axes of the weight are rescaled."""
        return f"m{list(self.dims)}"

    # Products.

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w` and a rescaled result, or a rescaled input."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        own = [wl[d] for d in self.dims]
        if set(own) <= set(out):
            y = ask.contract(self.w, x, spec)
            return y if ask.declined(y) else times(y, aligned(self.ratio, own, out))
        if set(own) <= set(xl):
            return ask.contract(self.w, times(x, aligned(self.ratio, own, xl)), spec)
        return NotImplemented

    def conv(self, x: Array, spec: Any) -> Any:
        """The convolution with `w`, one kind of features rescaled."""
        numbers = spec.dimension_numbers
        if self.dims == (numbers.rhs_spec[1],) and spec.feature_group_count == 1:
            return ask.conv(self.w, self._features(x, numbers.lhs_spec[1]), spec)
        if self.dims != (numbers.rhs_spec[0],):
            return NotImplemented
        y = ask.conv(self.w, x, spec)
        return y if ask.declined(y) else self._features(y, numbers.out_spec[1])

    def _features(self, x: Array, axis: int) -> Array:
        """An activation with the features of one axis rescaled."""
        labels = [0 if d == axis else None for d in range(x.ndim)]
        return times(x, aligned(self.ratio, [0], labels))

    def gather(self, indices: Array, spec: Any) -> Any:
        """The look-up in `w`, rescaled."""
        axis, fill = spec.axis(self.shape), spec.fill_value
        w = ask.gather(self.w, indices, spec)
        unscaled = fill is None or fill == 0 or fill != fill  # what no factor changes
        if ask.declined(w) or axis is None or not unscaled:
            return NotImplemented
        places = spec.out_dims(self.shape, indices.ndim)
        where = {d: p for p, d in enumerate(places) if d is not None}
        held = axis in self.dims
        fresh = [p for p, d in enumerate(places) if d is None] if held else []
        dims = (*fresh, *(where[d] for d in self.dims if d != axis))

        def act(x: Array) -> Array:
            return spec.take(x, self.dims.index(axis), indices) if held else x

        if is_operator(w):
            return self._with(w, act, dims)
        ratio = aligned(act(self.ratio), dims, range(w.ndim))
        return times(w, ratio)

    # Structure: the same of `w`, and of the arrays over the rescaled axes.

    def _with(self, w: Any, act: Act, dims: Dims | None = None) -> Any:
        if ask.declined(w):
            return w
        dims = self.dims if dims is None else dims
        own = {name: act(getattr(self, name)) for name in self.fields[1:]}
        return self.replace(w=w, dims=dims, **own)

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)}
        dims = tuple(where[d] for d in self.dims)
        return self._with(ask.transpose(self.w, permutation), lambda x: x, dims)

    def reshape(self, shape: Dims) -> Any:
        """Split or merge axes that are rescaled, or axes that are not."""
        groups = regroup(self.shape, shape)
        held: list[int] = []
        for old, new in groups or ():
            long = [d for d in old if self.shape[d] > 1] or old[:1]
            kinds = {d in self.dims for d in long}
            if len(kinds) > 1:
                return NotImplemented
            held += new if kinds == {True} else []
        order = [self.dims.index(d) for d in sorted(self.dims)]
        sizes = [shape[d] for d in held]
        if groups is None:
            return NotImplemented

        def act(x: Array) -> Array:
            return jnp.transpose(x, order).reshape(sizes)

        return self._with(ask.reshape(self.w, shape), act, tuple(held))

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice the factors along the axes that they hold."""
        by = strides or (1,) * self.ndim

        def act(x: Array) -> Array:
            return lax.slice(
                x, *([v[d] for d in self.dims] for v in (start, limit, by))
            )

        return self._with(ask.slice_(self.w, start, limit, strides), act)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same at traced positions."""

        def act(x: Array) -> Array:
            own = ([v[d] for d in self.dims] for v in (starts, sizes))
            return lax.dynamic_slice(x, *own) if self.dims else x

        return self._with(ask.dynamic_slice(self.w, starts, sizes), act)

    def reverse(self, dims: Dims) -> Any:
        """Reverse the factors along the axes that they hold."""
        own = [i for i, d in enumerate(self.dims) if d in dims]
        return self._with(ask.reverse(self.w, dims), lambda x: lax.rev(x, own))

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the factors follow in the product."""
        return self._with(ask.cast(self.w, dtype), lambda x: x)

    def scaled(self, factor: Any) -> Any:
        """Scale the factors."""
        return self.replace(m=self.m * jnp.asarray(factor, self.m.dtype))

    def add(self, other: Array) -> Any:
        """A term beside the rescaled weight."""
        return Delta._make(w=self, d=other)

    def unstack(self) -> Any:
        """Axis 0 of every array that holds it."""
        inner = ask.unstack(self.w)
        if ask.declined(inner):
            return inner
        held, dims = 0 in self.dims, tuple(d - 1 for d in self.dims if d)
        own = {name: getattr(self, name) for name in self.fields[1:]}
        if held:
            at = self.dims.index(0)
            own = {name: jnp.moveaxis(x, at, 0) for name, x in own.items()}
        stacked = own if held else {}

        def rebuild(part: Any) -> Operator:
            return self.replace(w=inner[1](part[0]), dims=dims, **(own | part[1]))

        return (inner[0], stacked), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """The factors are split as the axes that they hold."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))
        own = PartitionSpec(*(full[d] for d in self.dims))
        return self._with(ask.partition(self.w, spec), lambda _: own)

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and the factors as the axes that they hold."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        specs = self.partition(sharding.spec)
        if ask.declined(specs):
            return specs
        own = NamedSharding(sharding.mesh, specs.m)
        w = ask.constrain(self.w, sharding)
        return self._with(w, lambda x: lax.with_sharding_constraint(x, own))
