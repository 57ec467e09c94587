"""A gate of the input between what a weight gives and what its adapters make of it."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowrank._base import Array, Operator
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._inside import Dims, Inside, Spots, beside
from lowrank.operators._rescaled import aligned

_OWN = ("gate", "gate_bias")


class Gated(Inside):
    """A weight whose outermost operators count as much as a gate of the input says.

    Let `w` be `depth` operators over a base, `y0 = x base` and `y1 = x w`. The product
    is `y0 + sigmoid(x gate + gate_bias) (y1 - y0)`: a gate of 0 gives the base, a gate
    of 1 what `w` gives. The base is multiplied once. There is no dense form, and only a
    product that sums all inputs and keeps all outputs has an answer. The sigmoid is
    taken in float32.

    Args:
        w: An operator over an array or over other operators.
        gate: Weights of the gate, `[*stack, *in]`.
        gate_bias: Bias of the gate, `[*stack]`.
        depth: How many operators, the outermost first, the gate weighs; at least 1.
        a_dims: Axes of `w` that are inputs, stack axes first.
        b_dims: Axes of `w` that are outputs, stack axes first.

    Returns:
        An operator: a pytree node with children `w, gate, gate_bias`.

    Raises:
        ValueError: If the gate does not fit `w`, or there are fewer operators.

    Example:
        >>> inner = lrk.LowRank(jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((1, 3)))
        >>> op = lrk.operators.Gated(inner, jnp.zeros(2), jnp.zeros(()))
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[1.0, 1.0, 1.0]]

    References:
        Mao et al., UniPELT, 2021, arXiv:2110.07577: section 3.
    """

    fields = ("w", *_OWN)
    static = ("a_dims", "b_dims", "depth")
    arrays = _OWN

    gate: Array
    gate_bias: Array
    depth: int

    def __init__(
        self,
        w: Any,
        gate: ArrayLike,
        gate_bias: ArrayLike = 0.0,
        *,
        depth: int = 1,
        a_dims: Dims = (0,),
        b_dims: Dims = (1,),
    ) -> None:
        values = {"gate": jnp.asarray(gate), "gate_bias": jnp.asarray(gate_bias)}
        dims = {"a_dims": tuple(a_dims), "b_dims": tuple(b_dims)}
        self._set(w=w, **values, **dims, depth=depth)

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """For each array, the axis of `w` that each of its axes is."""
        return {"gate": self.a_dims, "gate_bias": self.stack}

    def mismatch(self) -> str | None:
        """Why the gate does not fit `w`, or None."""
        op: Any = self.w
        found = 0
        while found < self.depth and isinstance(op, Operator) and "w" in op.fields:
            op, found = _below(op), found + 1
        if self.depth < 1 or found < self.depth:
            return f"a gate over {self.depth} operators, but there are {found}"
        return super().mismatch()

    @property
    def base(self) -> Any:
        """What stands below the operators that the gate weighs."""
        op = self.w
        for _ in range(self.depth):
            op = _below(op)
        return op

    def settle(self) -> Operator:
        """Stays an operator, and so do those that it weighs."""
        return self.replace(w=_over(self.w, self.depth, ask.settle(self.base)))

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with the base, and as much of the others as the gate says."""
        y, spots = ask.contract(self.base, x, spec), self.spots(x, spec)
        if ask.declined(y) or spots is None or not set(spots.stack) <= set(spots.out):
            return NotImplemented
        known = _over(self.w, self.depth, _Known(self.base, y, x, spec))
        adapted = ask.contract(known, x, spec)
        if ask.declined(adapted):
            return NotImplemented
        return y + self.opening(x, spots).astype(y.dtype) * (adapted - y)

    def opening(self, x: Array, spots: Spots) -> Array:
        """`sigmoid(x gate + gate_bias)`, with the axes of the result or 1."""
        own = spots.own
        dtype = ask.common_dtype(self.gate, np.float32(0))
        kept = beside(spots.x, spots.inputs, spots.stack) + spots.stack
        gate = self.gate.astype(dtype)
        logits = labelled_product(x.astype(dtype), spots.x, gate, own["gate"], kept)
        bias = aligned(self.gate_bias.astype(dtype), own["gate_bias"], kept)
        return aligned(jax.nn.sigmoid(logits + bias), kept, spots.out)


class _Known(Operator):
    """A base whose product with one activation is known already."""

    def __init__(self, w: Any, y: Array, x: Array, spec: Any) -> None:
        for name, value in {"w": w, "y": y, "x": x, "spec": spec}.items():
            object.__setattr__(self, name, value)

    w: Any
    y: Array
    x: Array
    spec: Any

    @property
    def aval(self) -> Any:
        """That of the base."""
        return ask.aval(self.w)

    def contract(self, x: Array, spec: Any) -> Any:
        """The known product; any other is declined."""
        return self.y if x is self.x and spec == self.spec else NotImplemented


def _below(op: Any) -> Any:
    """What an operator stands over."""
    return op.w


def _over(op: Any, depth: int, base: Any) -> Any:
    """The outermost operators over another base."""
    return base if depth == 0 else op.replace(w=_over(_below(op), depth - 1, base))
