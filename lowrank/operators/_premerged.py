"""A weight merged once, with gradients that reach its additive terms alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank._adapted import split
from lowrank._base import Array, Operator, is_operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._specs import Contraction


def premerged(op: Operator) -> Any:
    """Form the weight of an additive operator once.

    Declines where the base holds trained parts: they would get no gradient.
    """
    base, _ = split(op)
    if is_operator(base) and base.trained:
        return NotImplemented
    return Premerged._make(m=lax.stop_gradient(op.dense()), op=op)


class Premerged(Operator):
    """An additive operator whose products use the merged weight `m`.

    For a `LowRank`, `m = w + scale * a b`, the forward product is `x m` and backward
    `dx = g mᵀ`, `db = (x a)ᵀ g` and `da = xᵀ(g bᵀ)`: the gradient of the full weight is
    never formed. Every additive term down to the base gets its gradient, the base none,
    so it must be an array or an operator with no trained part.
    Gradients are exact at every reverse order; forward mode raises. Convolutions,
    look-ups and operations other than a rearrangement fall back to the factored form.

    Args:
        m: The merged weight; a constant for differentiation.
        op: The operator that it came from.
    """

    fields = ("m", "op")
    base_fields = ()

    m: Array
    op: Any

    @property
    def aval(self) -> Any:
        """Abstract value of the weight."""
        return self.op.aval

    def dense(self) -> Array:
        """The weight, with its exact gradient."""
        return self.op.dense()

    def contract(self, x: Array, spec: Any) -> Any:
        """`x m`, with gradients for `x` and the terms."""
        base, terms = split(self.op)

        @jax.custom_vjp
        def product(x: Array, m: Array, base: Any, terms: Any) -> Array:
            del base, terms
            return spec(x, m)

        def forward(x: Array, m: Array, base: Any, terms: Any) -> tuple[Array, Any]:
            return product(x, m, base, terms), (x, m, base, terms)

        def backward(kept: Any, g: Array) -> tuple[Any, ...]:
            x, m, base, terms = kept

            def low(terms: tuple[Any, ...]) -> Array:
                parts = [t.replace(w=m).term(x, spec).astype(g.dtype) for t in terms]
                return sum(parts[1:], parts[0])

            _, pull = jax.vjp(low, terms)
            own = Premerged._make(m=m, op=_joined(base, terms))
            return _dx(g, own, spec, x), None, None, *pull(g)

        product.defvjp(forward, backward)
        return product(x, self.m, base, terms)

    def conv(self, x: Array, spec: Any) -> Any:
        """The factored form."""
        return self.op.conv(x, spec)

    def gather(self, indices: Array, spec: Any) -> Any:
        """The factored form."""
        return self.op.gather(indices, spec)

    def _both(self, m: Any, op: Any) -> Any:
        return op if ask.declined(op) else self.replace(m=m, op=op)

    def transpose(self, permutation: Any) -> Any:
        """The same of both."""
        m = lax.transpose(self.m, permutation)
        return self._both(m, self.op.transpose(permutation))

    def reshape(self, shape: Any) -> Any:
        """The same of both."""
        return self._both(self.m.reshape(shape), self.op.reshape(shape))

    def slice(self, start: Any, limit: Any, strides: Any) -> Any:
        """The same of both."""
        m = lax.slice(self.m, start, limit, strides)
        return self._both(m, self.op.slice(start, limit, strides))

    def dynamic_slice(self, starts: Any, sizes: Any) -> Any:
        """The same of both."""
        m = lax.dynamic_slice(self.m, starts, sizes)
        return self._both(m, self.op.dynamic_slice(starts, sizes))

    def reverse(self, dims: Any) -> Any:
        """The same of both."""
        return self._both(lax.rev(self.m, dims), self.op.reverse(dims))

    def cast(self, dtype: Any) -> Any:
        """The same of both."""
        return self._both(self.m.astype(dtype), self.op.cast(dtype))

    def scaled(self, factor: Any) -> Any:
        """The factored form: the factor may need a gradient."""
        return self.op.scaled(factor)

    def add(self, other: Array) -> Any:
        """The factored form: what is added may need a gradient."""
        return self.op.add(other)

    def partition(self, spec: Any) -> Any:
        """The same of both."""
        return self._both(spec, self.op.partition(spec))

    def constrain(self, sharding: Any) -> Any:
        """The same of both."""
        m = lax.with_sharding_constraint(self.m, sharding)
        return self._both(m, self.op.constrain(sharding))

    def unstack(self) -> Any:
        """The same of both."""
        inner = self.op.unstack()
        if ask.declined(inner):
            return inner

        def rebuild(part: Any) -> Operator:
            return self.replace(m=part[0], op=inner[1](part[1]))

        return (self.m, inner[0]), rebuild


def _joined(base: Any, terms: tuple[Any, ...]) -> Any:
    """Terms back on their base."""
    for term in reversed(terms):
        base = term.replace(w=base)
    return base


def _dx(g: Array, own: Operator, spec: Contraction, x: Array) -> Array:
    """`g mᵀ`, itself a premerged product, so that it can be differentiated again."""
    xl, wl, out = spec.labels(x.ndim, own.ndim)
    batch = [n for n in out if n in xl and n in wl]
    summed = [n for n in out if n in wl and n not in xl]
    where = tuple(
        (tuple(out.index(n) for n in names), tuple(wl.index(n) for n in names))
        for names in (summed, batch)
    )
    (gs, ws), (gb, wb) = where
    y = own.contract(g, Contraction(((gs, ws), (gb, wb)), False, spec.precision))
    have = batch + [n for n in out if n not in wl]
    have += [n for n in wl if n not in out]
    return jnp.transpose(y, [have.index(n) for n in xl]).astype(x.dtype)
