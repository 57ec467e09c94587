"""A weight plus an array over a few of its rows."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import NamedSharding, PartitionSpec
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, Operator, is_operator
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._delta import Delta
from lowrank.operators._premerged import premerged

Dims = tuple[int, ...]
_GONE = jnp.iinfo(jnp.int32).max


class RowDelta(Operator):
    """A weight some of whose rows stand for themselves plus a change.

    With `w: [n, *rest]`, `d: [k, *rest]` and `index: [k]`, row `index[i]` is
    `w[index[i]] + d[i]`. A look-up adds the changes of the rows that it meets, a
    product those of `k` rows; nothing of the size of the weight is formed. Indices
    outside of `w` are ignored.

    Args:
        w: The base: an array or an operator.
        d: The changes of the rows.
        index: Which rows; each at most once.
        axis: The axis of `w` that the rows are counted along.

    Attributes:
        size_of_axis: The number of rows of `w`, so that the change is known without it.

    Returns:
        An operator: a pytree node with children `w, d, index`.

    Raises:
        ValueError: If `d` and `index` do not fit `w`.

    Example:
        >>> w, index = jnp.zeros((4, 2)), jnp.array([3])
        >>> op = lrk.operators.RowDelta(w, jnp.ones((1, 2)), index)
        >>> lrk.lift(lambda w, i: w[i])(op, jnp.array([0, 3])).tolist()
        [[0.0, 0.0], [1.0, 1.0]]
    """

    fields = ("w", "d", "index")
    static = ("axis", "size_of_axis")
    additive = True

    w: Any
    d: Array
    index: Array
    axis: int
    size_of_axis: int

    def __init__(self, w: Any, d: ArrayLike, index: ArrayLike, axis: int = 0) -> None:
        values = {"w": w, "d": jnp.asarray(d), "index": jnp.asarray(index)}
        static = {"axis": axis, "size_of_axis": w.shape[axis]}
        for name, value in (values | static).items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"RowDelta: {reason}.")

    @property
    def rest(self) -> Dims:
        """The axes of `w` that `d` holds behind that of the rows."""
        return tuple(n for n in range(self.d.ndim) if n != self.axis)

    def mismatch(self) -> str | None:
        """Why the rows do not fit `w`, or None."""
        shape = self.shape
        same = len(shape) == self.d.ndim and shape[self.axis] == self.size_of_axis
        rows = (*self.index.shape, *(shape[n] for n in self.rest)) if same else ()
        if self.index.ndim == 1 and rows == tuple(self.d.shape):
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        return (
            f"changes {tuple(self.d.shape)} of rows {tuple(self.index.shape)} do not "
            f"fit a weight of shape {shape} along axis {self.axis}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as the changes vary."""
        return _compat.join_varying(ask.aval(self.w), [self.d])

    def _spread(self, full: Array, rows: Array, axis: int) -> Array:
        """Rows added to an array along an axis."""
        at = (*(slice(None),) * axis, self.index)
        return full.at[at].add(rows.astype(full.dtype), mode="drop")

    def delta(self) -> Array:
        """The array that is added, of the shape of the weight."""
        shape = list(self.d.shape[1:])
        shape.insert(self.axis, self.size_of_axis)
        zeros = jnp.zeros(shape, self.d.dtype)
        return self._spread(zeros, jnp.moveaxis(self.d, 0, self.axis), self.axis)

    def dense(self) -> Array:
        """The weight with its rows changed, rounded once."""
        return ask.total(ask.dense(self.w), self.delta())

    def settle(self) -> Operator | Array:
        """The same over a settled base."""
        return self.replace(w=ask.settle(self.w))

    # Products.

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, and that with the changed rows."""
        y = ask.contract(self.w, x, spec)
        if ask.declined(y):
            return y
        rows, at = self._rows(x, spec)
        if ask.declined(rows):
            return rows
        return y + rows.astype(y.dtype) if at is None else self._spread(y, rows, at)

    def term(self, x: Array, spec: Any) -> Array:
        """What the changes add to a product."""
        rows, at = self._rows(x, spec)
        shape = jax.eval_shape(spec, x, self.aval).shape
        return rows if at is None else self._spread(jnp.zeros(shape, x.dtype), rows, at)

    def _rows(self, x: Array, spec: Any) -> Any:
        """The product with the rows, and the axis of the result that counts them."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        own = wl[self.axis]
        labels = [own, *(wl[n] for n in self.rest)]
        dtype = ask.common_dtype(x, self)
        x, d = x.astype(dtype), self.d.astype(dtype)
        if own in xl and own in out:
            return NotImplemented, None
        if own in xl:  # the rows are summed over
            x = jnp.take(x, self.index, xl.index(own), mode="fill", fill_value=0)
        y = labelled_product(x, xl, d, labels, out, **spec.options)
        return y, out.index(own) if own in out else None

    def gather(self, indices: Array, spec: Any) -> Any:
        """The look-up in `w`, plus the changes of the rows that it meets."""
        w = ask.gather(self.w, indices, spec)
        if ask.declined(w) or spec.axis(self.shape) != self.axis:
            return NotImplemented
        count = jnp.arange(1, self.index.shape[0] + 1, dtype=jnp.int32)
        place = jnp.zeros(self.shape[self.axis], jnp.int32)
        place = place.at[self.index].set(count, mode="drop")
        zero = jnp.zeros_like(self.d, shape=(1, *self.d.shape[1:]))
        rows = jnp.concatenate([zero, self.d])[spec.take(place, 0, indices)]
        depth = indices.ndim - 1
        batch, rest = iter(range(depth)), iter(range(depth, rows.ndim))
        dims = spec.out_dims(self.shape, indices.ndim)
        rows = jnp.transpose(rows, [next(batch if n is None else rest) for n in dims])
        return Delta._make(w=w, d=rows) if is_operator(w) else ask.total(w, rows)

    def premerge(self) -> Any:
        """Merged once, with gradients for the changes."""
        return premerged(self)

    def describe_axes(self) -> str:
        """Along which axis the rows are counted."""
        return f"rows[{self.axis}]"

    # Structure: the same of `w`, and of the changes.

    def _with(self, w: Any, **changes: Any) -> Any:
        return w if ask.declined(w) else self.replace(w=w, **changes)

    def transpose(self, permutation: Dims) -> Any:
        """Relabel the axes."""
        order = [self.rest.index(n) + 1 for n in permutation if n != self.axis]
        d, axis = jnp.transpose(self.d, [0, *order]), permutation.index(self.axis)
        return self._with(ask.transpose(self.w, permutation), d=d, axis=axis)

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """Slice the changes, and count the rows from the first one that is kept."""
        by = strides or (1,) * self.ndim
        if by[self.axis] != 1:
            return NotImplemented
        cut = [[0, *(v[n] for n in self.rest)] for v in (start, limit, by)]
        cut[1][0], cut[2][0] = self.d.shape[0], 1
        w = ask.slice_(self.w, start, limit, strides)
        index = self._counted_from(start[self.axis])
        count = limit[self.axis] - start[self.axis]
        d = lax.slice(self.d, *cut)
        return self._with(w, d=d, index=index, size_of_axis=count)

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same at traced positions."""
        lengths = [self.d.shape[0], *(sizes[n] for n in self.rest)]
        at = [jnp.zeros_like(starts[0]), *(starts[n] for n in self.rest)]
        first = jnp.clip(starts[self.axis], 0, self.shape[self.axis] - sizes[self.axis])
        w = ask.dynamic_slice(self.w, starts, sizes)
        d = lax.dynamic_slice(self.d, at, lengths)
        index, count = self._counted_from(first), sizes[self.axis]
        return self._with(w, d=d, index=index, size_of_axis=count)

    def _counted_from(self, first: Any) -> Array:
        """The rows counted from another one; those before it point nowhere."""
        moved = self.index - jnp.asarray(first, self.index.dtype)
        return jnp.where(self.index < first, _GONE, moved).astype(self.index.dtype)

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the changes follow in the product."""
        return self._with(ask.cast(self.w, dtype))

    def scaled(self, factor: Any) -> Any:
        """The same of both."""
        return self._with(ask.scaled(self.w, factor), d=ask.scaled(self.d, factor))

    def add(self, other: Array) -> Any:
        """Add to the base."""
        return self._with(ask.add(self.w, other))

    def unstack(self) -> Any:
        """Axis 0 of both, where the rows are counted along another."""
        inner = ask.unstack(self.w)
        if ask.declined(inner) or self.axis == 0:
            return NotImplemented

        def rebuild(part: Any) -> Operator:
            return self.replace(w=inner[1](part[0]), d=part[1], axis=self.axis - 1)

        return (inner[0], jnp.moveaxis(self.d, 1, 0)), rebuild

    def partition(self, spec: PartitionSpec) -> Any:
        """The changes are split as the axes that they hold; the rows are not."""
        full = (*spec, *(None,) * (self.ndim - len(spec)))
        d = PartitionSpec(None, *(full[n] for n in self.rest))
        return self._with(ask.partition(self.w, spec), d=d, index=PartitionSpec())

    def constrain(self, sharding: Any) -> Any:
        """Constrain the base, and the changes as the axes that they hold."""
        if not isinstance(sharding, NamedSharding):
            return NotImplemented
        w, specs = ask.constrain(self.w, sharding), self.partition(sharding.spec)
        if ask.declined(w, specs):
            return NotImplemented
        own = NamedSharding(sharding.mesh, specs.d)
        return self._with(w, d=lax.with_sharding_constraint(self.d, own))
