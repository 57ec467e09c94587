"""An operator that records which inputs a weight meets."""

from typing import Any

import jax
from jax import lax

from lowrank._base import Array, Operator
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._lowrank import LowRank
from lowrank.operators._reshape import RANK


class Tap(LowRank):
    """A weight that multiplies as it is; the gradient of its `a` is a Gram matrix.

    `a: [*stack, *in, n]` is an identity over the `n` flattened inputs. A product leaves
    its result alone, but tells differentiation that the cotangent of `a` is `X^T X` for
    the inputs `X: [rows, n]` that it met, whatever the cotangent of the result. Loops,
    recomputation and several uses then add up by the rules of gradients, and `a`
    follows the axes of the weight as any factor does.

    Args:
        w: The weight: an array or an operator.
        a: The identity, `[*stack, *in, n]`.
        b: Zeros, `[*stack, n, *out]`: they only carry the axes.
        scale: As in `LowRank`; not looked at.
        a_dims: Axes of `w` that `a` holds.
        b_dims: Axes of `w` that `b` holds.
    """

    fields = ("w", "a", "b", "scale")
    static = ("a_dims", "b_dims")
    additive = False

    def dense(self) -> Array:
        """The weight alone."""
        return ask.dense(self.w)

    def settle(self) -> Operator:
        """Stays what it is; the weight may become an array."""
        return self.replace(w=ask.settle(self.w))

    def premerge(self) -> Any:
        """There is nothing to merge."""
        return NotImplemented

    def conv(self, x: Array, spec: Any) -> Any:
        """The inputs of a convolution are patches: not recorded."""
        return NotImplemented

    def contract(self, x: Array, spec: Any) -> Any:
        """`x W`, which records `X^T X`, where exactly the inputs are summed."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        summed = {d for d, n in enumerate(wl) if n in xl and n not in out}
        y = ask.contract(self.w, x, spec)
        if ask.declined(y) or summed != set(self.a_dims) - set(self.stack):
            return NotImplemented
        named = dict(enumerate(wl)) | {RANK: RANK}
        al = [named[n] for n in self.a_labels]
        kept = [n for n in xl if n not in wl] + al[: len(self.stack)] + [RANK]
        x = lax.stop_gradient(x).astype(self.a.dtype)
        high = {"precision": lax.Precision.HIGHEST}
        flat = labelled_product(x, xl, self.a, al, kept, **high)
        return _recorded(y, self.a, labelled_product(x, xl, flat, kept, al, **high))

    def gather(self, indices: Array, spec: Any) -> Any:
        """A look-up is a product with one-hot inputs; a pick from a stack stays one."""
        axis = spec.axis(self.shape)
        if axis is not None and axis in self.stack:
            return super().gather(indices, spec)
        y = ask.gather(self.w, indices, spec)
        if ask.declined(y) or isinstance(y, Operator) or self.a_dims != (axis,):
            return NotImplemented
        rows, pull = jax.vjp(lambda a: spec.take(a, 0, indices), self.a)
        return _recorded(y, self.a, pull(rows)[0])


@jax.custom_vjp
def _recorded(y: Array, a: Array, gram: Array) -> Array:
    """`y`, and `gram` as the cotangent of `a`."""
    del a, gram
    return y


def _forward(y: Array, a: Array, gram: Array) -> tuple[Array, Array]:
    del a
    return y, gram


def _backward(gram: Array, g: Array) -> tuple[Array, Array, None]:
    return g, gram, None


_recorded.defvjp(_forward, _backward)
