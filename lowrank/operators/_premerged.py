"""A low-rank weight merged once, with gradients that reach its factors alone."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from lowrank._base import Array, Operator
from lowrank.operators import _dispatch as ask
from lowrank.operators._lowrank import LowRank
from lowrank.operators._specs import Contraction


class Premerged(Operator):
    """A `LowRank` whose products use the merged weight `m = w + scale * a b`.

    The forward product is `x m`; backward, `dx = g mᵀ`, `dB = (x A)ᵀ g` and
    `dA = xᵀ(g Bᵀ)`, so the gradient of the full weight is never formed. Gradients are
    exact at every reverse order; forward mode raises. Convolutions and look-ups fall
    back to the factored form.

    Args:
        m: The merged weight; a constant for differentiation.
        op: The `LowRank` that it came from.
    """

    fields = ("m", "op")
    base_fields = ()

    m: Array
    op: LowRank

    @classmethod
    def of(cls, op: Operator) -> Operator:
        """Merge a `LowRank`; other operators stay as they are."""
        if not isinstance(op, LowRank):
            return op
        merged = cls._make(m=lax.stop_gradient(op.dense()), op=op)
        return merged

    @property
    def aval(self) -> Any:
        """Abstract value of the weight."""
        return self.op.aval

    def dense(self) -> Array:
        """`w + scale * a b`, with its exact gradient."""
        return self.op.dense()

    def contract(self, x: Array, spec: Any) -> Any:
        """`x m`, with gradients for `x` and the factors."""

        @jax.custom_vjp
        def product(x: Array, own: Premerged) -> Array:
            return spec(x, own.m)

        def forward(x: Array, own: Premerged) -> tuple[Array, Any]:
            return product(x, own), (x, own)

        def backward(kept: Any, g: Array) -> tuple[Array, Any]:
            x, own = kept
            xl, wl, out = spec.labels(x.ndim, own.ndim)

            def low(a: Array, b: Array, scale: Array) -> Array:
                op = own.op.replace(a=a, b=b, scale=scale)
                return op.term(x, xl, wl, out, spec.options).astype(g.dtype)

            _, pull = jax.vjp(low, own.op.a, own.op.b, own.op.scale)
            da, db, dscale = pull(g)
            zeros = jax.tree.map(jnp.zeros_like, own)
            inner = zeros.op.replace(a=da, b=db, scale=dscale)
            return _dx(g, own, spec, x), zeros.replace(op=inner)

        product.defvjp(forward, backward)
        return product(x, self)

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

    def cast(self, dtype: Any) -> Any:
        """The same of both."""
        return self._both(self.m.astype(dtype), self.op.cast(dtype))

    def scaled(self, factor: Any) -> Any:
        """The factored form: the factor may need a gradient."""
        return self.op.scaled(factor)

    def unstack(self) -> Any:
        """The same of both."""
        inner = self.op.unstack()
        if ask.declined(inner):
            return inner

        def rebuild(part: Any) -> Operator:
            return self.replace(m=part[0], op=inner[1](part[1]))

        return (self.m, inner[0]), rebuild


def _dx(g: Array, own: Premerged, spec: Contraction, x: Array) -> Array:
    """`g mᵀ`, itself a premerged product, so that it can be differentiated again."""
    xl, wl, out = spec.labels(x.ndim, own.ndim)
    batch = [n for n in out if n in xl and n in wl]
    summed = [n for n in out if n in wl and n not in xl]
    where = tuple(
        (tuple(out.index(n) for n in names), tuple(wl.index(n) for n in names))
        for names in (summed, batch)
    )
    y = own.contract(g, Contraction(where, False, spec.precision))
    have = batch + [n for n in out if n not in wl]
    have += [n for n in wl if n not in out]
    return jnp.transpose(y, [have.index(n) for n in xl]).astype(x.dtype)
