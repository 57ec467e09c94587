"""The plain operator: a weight plus an array of its own shape."""

from typing import Any

import jax.numpy as jnp
from jax import lax

from lowrank import _compat
from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._premerged import premerged


class Delta(Operator):
    """A weight that stands for `w + d`.

    Over an array it is formed once, where `lift` meets it: nothing is gained by
    waiting. Over another operator the two stay apart, and a product is the sum of two
    products.

    Args:
        w: The base: an array or an operator.
        d: An array of the same shape.

    Returns:
        An operator: a pytree node with children `w, d`.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> op = lrk.Delta(jnp.ones(3), jnp.ones(3))
        >>> lrk.lift(lambda b: 2 * b)(op).tolist()
        [4.0, 4.0, 4.0]
    """

    fields = ("w", "d")
    additive = True

    w: Any
    d: Array

    def __init__(self, w: Any, d: Array) -> None:
        object.__setattr__(self, "w", w)
        object.__setattr__(self, "d", d)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Delta: {reason}.")

    def mismatch(self) -> str | None:
        """Why `d` does not fit `w`, or None."""
        if tuple(self.d.shape) == self.shape:
            return self.w.mismatch() if isinstance(self.w, Operator) else None
        return (
            f"an array of {tuple(self.d.shape)} does not fit a weight of {self.shape}"
        )

    @property
    def aval(self) -> Any:
        """Abstract value of `w`, varying as `d` varies."""
        return _compat.join_varying(ask.aval(self.w), [self.d])

    def delta(self) -> Array:
        """The array that is added, in its own dtype."""
        return self.d

    def dense(self) -> Array:
        """`w + d` in the dtype of `w`."""
        return ask.total(ask.dense(self.w), self.d)

    def settle(self) -> Operator | Array:
        """`w + d`, unless `w` stays an operator."""
        w = ask.settle(self.w)
        op = self.replace(w=w)
        return op if isinstance(w, Operator) else op.dense()

    def _both(self, w: Any, d: Any) -> Any:
        return w if ask.declined(w) else self.replace(w=w, d=d)

    def _sum(self, y: Any, term: Array) -> Any:
        return y if ask.declined(y) else y + term.astype(y.dtype)

    def contract(self, x: Array, spec: Any) -> Any:
        """The sum of two products."""
        y = ask.contract(self.w, x, spec)
        return self._sum(y, self.term(x, spec))

    def term(self, x: Array, spec: Any) -> Array:
        """What the array adds to a product."""
        return spec(x, self.d.astype(self.dtype))

    def premerge(self) -> Any:
        """Merged once, with gradients for the array."""
        return premerged(self)

    def conv(self, x: Array, spec: Any) -> Any:
        """The sum of two convolutions."""
        return self._sum(ask.conv(self.w, x, spec), spec(x, self.d.astype(self.dtype)))

    def gather(self, indices: Array, spec: Any) -> Any:
        """The sum of two look-ups; the base says what is filled in."""
        w = ask.gather(self.w, indices, spec)
        if ask.declined(w):
            return w
        axis = spec.axis(self.shape)
        if axis is None:
            return NotImplemented
        rows = spec.take(self.d, axis, indices)
        depth = indices.ndim - 1
        dims = spec.out_dims(self.shape, indices.ndim)
        batch, rest = iter(range(depth)), iter(range(depth, rows.ndim))
        d = jnp.transpose(rows, [next(batch if k is None else rest) for k in dims])
        return self._both(w, d) if isinstance(w, Operator) else self._sum(w, d)

    def transpose(self, permutation: tuple[int, ...]) -> Any:
        """The same of both."""
        w = ask.transpose(self.w, permutation)
        return self._both(w, lax.transpose(self.d, permutation))

    def reshape(self, shape: tuple[int, ...]) -> Any:
        """The same of both."""
        return self._both(ask.reshape(self.w, shape), self.d.reshape(shape))

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """The same of both."""
        w = ask.slice_(self.w, start, limit, strides)
        return self._both(w, lax.slice(self.d, start, limit, strides))

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same of both."""
        w = ask.dynamic_slice(self.w, starts, sizes)
        return self._both(w, lax.dynamic_slice(self.d, starts, sizes))

    def reverse(self, dims: tuple[int, ...]) -> Any:
        """The same of both."""
        return self._both(ask.reverse(self.w, dims), lax.rev(self.d, dims))

    def cast(self, dtype: Any) -> Any:
        """Cast the base; the array follows in the product."""
        return self._both(ask.cast(self.w, dtype), self.d)

    def scaled(self, factor: Any) -> Any:
        """The same of both."""
        return self._both(ask.scaled(self.w, factor), ask.scaled(self.d, factor))

    def add(self, other: Array) -> Any:
        """Add to the base."""
        return self._both(ask.add(self.w, other), self.d)

    def unstack(self) -> Any:
        """The same of both."""
        inner = ask.unstack(self.w)
        if ask.declined(inner):
            return inner

        def rebuild(part: Any) -> Operator:
            return self.replace(w=inner[1](part[0]), d=part[1])

        return (inner[0], self.d), rebuild

    def partition(self, spec: Any) -> Any:
        """The same of both."""
        return self._both(ask.partition(self.w, spec), spec)

    def constrain(self, sharding: Any) -> Any:
        """The same of both."""
        w = ask.constrain(self.w, sharding)
        return self._both(w, lax.with_sharding_constraint(self.d, sharding))
