"""A weight with columns of trained length: DoRA's magnitude and direction."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator, is_operator
from lowrank.linalg import regroup
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta
from lowrank.operators._norms import norms

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


class Magnitude(Operator):
    """A weight that stands for `m * w / norm`, each output with a length of its own.

    With `w: [*stack, *in, *out]` and `m, norm: [*stack, *out]` it multiplies as
    `(x w) * (m / norm)`; `norm` is that of each column of `w`, over the input axes. It
    is taken once, when the operator is made, from the factors where `w` is an array
    plus low-rank terms. Columns of zeros stay zeros.

    Args:
        w: The base: an array or an operator that has a dense form.
        m: The length of each column.
        dims: Axes of `w` that `m` holds, in its order; by default the last ones.
        detach: Whether the norm is a constant for differentiation, so that gradients
            are DoRA's and not the exact ones. They are the same in every plan.

    Attributes:
        norm: The norms of the columns of `w`, in float32.

    Returns:
        An operator: a pytree node with children `w, m, norm`.

    Raises:
        ValueError: If `m` does not fit `w`, or the norm of `w` cannot be told.

    Example:
        >>> op = lrk.operators.Magnitude(jnp.array([[3.0], [4.0]]), jnp.array([10.0]))
        >>> lrk.materialize(op).tolist()
        [[6.0], [8.0]]

    References:
        Liu et al., DoRA, 2024, arXiv:2402.09353: eq. 5, and section 4.3 for `detach`
        (transposed: our kernels are `[in, out]`).
    """

    fields = ("w", "m", "norm")
    static = ("dims", "detach")

    w: Any
    m: Array
    norm: Array
    dims: Dims
    detach: bool

    def __init__(
        self,
        w: Any,
        m: ArrayLike,
        *,
        dims: Dims | None = None,
        detach: bool = True,
    ) -> None:
        m = jnp.asarray(m)
        ndim = len(w.shape)
        dims = tuple(range(ndim))[ndim - m.ndim :] if dims is None else tuple(dims)
        if not knows_norm(w):
            raise ValueError(
                f"Magnitude: {type(w).__name__} has no dense form, so its norm cannot "
                "be told. Put the magnitude below what acts inside the product."
            )
        values = {"w": w, "m": m, "norm": m, "dims": dims, "detach": detach}
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Magnitude: {reason}.")
        object.__setattr__(self, "norm", column_norms(w, dims, detach))

    @property
    def exact_grad(self) -> bool:
        """Whether gradients are exact: not while the norm counts as a constant."""
        return not self.detach and super().exact_grad

    def mismatch(self) -> str | None:
        """Why `m` does not fit `w`, or None."""
        shape = self.shape
        known = len(set(self.dims)) == len(self.dims) and set(self.dims) <= set(
            range(len(shape))
        )
        wanted = tuple(shape[d] for d in self.dims) if known else None
        if wanted == tuple(self.m.shape) == tuple(self.norm.shape):
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        return (
            f"a magnitude of {tuple(self.m.shape)} does not fit a weight of "
            f"{tuple(shape)} with dims={self.dims}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the magnitude varies."""
        return _compat.join_varying(ask.aval(self.w), (self.m, self.norm))

    @property
    def ratio(self) -> Array:
        """What each column is multiplied by."""
        positive = self.norm > 0
        safe = jnp.where(positive, self.norm, jnp.ones_like(self.norm))
        ratio = self.m.astype(safe.dtype) / safe
        return jnp.where(positive, ratio, jnp.zeros_like(ratio))

    def dense(self) -> Array:
        """The weight, with the gradient that products have."""
        return times(
            ask.dense(self.w), aligned(self.ratio, self.dims, range(self.ndim))
        )

    def settle(self) -> Operator | Array:
        """A plain array, if `m` is as large as the weight."""
        w = ask.settle(self.w)
        op = self.replace(w=w)
        summed = [n for d, n in enumerate(self.shape) if d not in self.dims]
        return op if is_operator(w) or max(summed, default=1) > 1 else op.dense()

    def describe_axes(self) -> str:
        """Which axes of the weight the magnitude holds."""
        return f"m{list(self.dims)}"

    # Products.

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, its outputs rescaled; or `x` where they are summed."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        own = [wl[d] for d in self.dims]
        if set(own) <= set(out):
            y = ask.contract(self.w, x, spec)
            return y if ask.declined(y) else times(y, aligned(self.ratio, own, out))
        if set(own) <= set(xl):
            return ask.contract(self.w, times(x, aligned(self.ratio, own, xl)), spec)
        return NotImplemented

    def conv(self, x: Array, spec: Any) -> Any:
        """The convolution with `w`, its output features rescaled."""
        numbers = spec.dimension_numbers
        if self.dims != (numbers.rhs_spec[0],):
            return NotImplemented
        y = ask.conv(self.w, x, spec)
        if ask.declined(y):
            return y
        labels = [0 if d == numbers.out_spec[1] else None for d in range(y.ndim)]
        return times(y, aligned(self.ratio, [0], labels))

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

    # Structure: the same of `w`, and of the arrays over its columns.

    def _with(self, w: Any, act: Act, dims: Dims | None = None) -> Any:
        if ask.declined(w):
            return w
        dims = self.dims if dims is None else dims
        return self.replace(w=w, m=act(self.m), norm=act(self.norm), dims=dims)

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        where = {old: new for new, old in enumerate(permutation)}
        dims = tuple(where[d] for d in self.dims)
        return self._with(ask.transpose(self.w, permutation), lambda x: x, dims)

    def reshape(self, shape: Dims) -> Any:
        """Split or merge axes that `m` holds, or axes that it does not."""
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
        """Slice `m` along the axes that it holds; the norm stays that of whole `w`."""
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
        """Reverse `m` along the axes that it holds."""
        own = [i for i, d in enumerate(self.dims) if d in dims]
        return self._with(ask.reverse(self.w, dims), lambda x: lax.rev(x, own))

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the lengths follow in the product."""
        return self._with(ask.cast(self.w, dtype), lambda x: x)

    def scaled(self, factor: Any) -> Any:
        """Scale the lengths."""
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
        own = (self.m, self.norm)
        stacked = [jnp.moveaxis(x, self.dims.index(0), 0) for x in own if held]

        def rebuild(part: Any) -> Operator:
            m, norm = part[1] if held else own
            return self.replace(w=inner[1](part[0]), m=m, norm=norm, dims=dims)

        return (inner[0], stacked), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """The lengths are split as the axes that they hold."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))
        own = PartitionSpec(*(full[d] for d in self.dims))
        return self._with(ask.partition(self.w, spec), lambda _: own)

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and the lengths as the axes that they hold."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        specs = self.partition(sharding.spec)
        if ask.declined(specs):
            return specs
        own = NamedSharding(sharding.mesh, specs.m)
        w = ask.constrain(self.w, sharding)
        return self._with(w, lambda x: lax.with_sharding_constraint(x, own))


def knows_norm(w: Any) -> bool:
    """Whether the norm of a weight can be told: its terms are known, and its base."""
    while is_operator(w) and w.additive:
        w = w.w
    return not is_operator(w) or w.has_dense


def column_norms(w: Any, dims: Dims, detach: bool) -> Array:
    """Norms for a `Magnitude`, a constant for differentiation if detached."""
    return norms(jax.tree.map(lax.stop_gradient, w) if detach else w, dims)
