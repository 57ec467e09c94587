"""Low rank with several heads behind one factor, weighted for each input."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowrank._base import Array
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._inside import RANK, Dims, Inside, Spots, beside

HEAD = "head"
_OWN = ("a", "b", "router", "scale")


class Routed(Inside):
    """A weight with low-rank heads that a router mixes anew for each input.

    With `a: [*stack, *in, r]`, `b: [*stack, heads, r, *out]` and `router: [*stack, *in,
    heads]` it multiplies as `x w + scale * sum_i softmax(x router)_i (x a) b_i`. That
    is no linear function of `x`, so there is no dense form, and only a product that
    sums all inputs has an answer. The softmax is taken in float32.

    Args:
        w: The base: an array or an operator.
        a: Factor over the inputs, shared by the heads; its last axis is the rank.
        b: One factor over the outputs for each head.
        router: Weights of the router; its last axis is that of the heads.
        scale: A scalar.
        a_dims: Axes of `w` that `a` and `router` hold, stack axes first.
        b_dims: Axes of `w` that `b` holds, stack axes first.

    Returns:
        An operator: a pytree node with children `w, a, b, router, scale`.

    Raises:
        ValueError: If the factors do not fit `w`.

    Example:
        >>> op = lrk.operators.Routed(
        ...     jnp.zeros((2, 3)), jnp.ones((2, 1)), jnp.ones((4, 1, 3)),
        ...     jnp.zeros((2, 4)),
        ... )
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[2.0, 2.0, 2.0]]

    References:
        Tian et al., HydraLoRA, 2024, arXiv:2404.19245: eqs. 2 to 4 (transposed: our
        kernels are `[in, out]`).
    """

    fields = ("w", *_OWN)
    arrays = _OWN

    a: Array
    b: Array
    router: Array
    scale: Array

    def __init__(
        self,
        w: Any,
        a: ArrayLike,
        b: ArrayLike,
        router: ArrayLike,
        scale: Any = 1.0,
        *,
        a_dims: Dims = (0,),
        b_dims: Dims = (1,),
    ) -> None:
        arrays = (jnp.asarray(x) for x in (a, b, router, scale))
        values = dict(zip(_OWN, arrays, strict=True))
        self._set(w=w, **values, a_dims=tuple(a_dims), b_dims=tuple(b_dims))

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """For each array, the axis of `w` that each of its axes is."""
        depth = len(self.stack)
        return {
            "a": (*self.a_dims, RANK),
            "b": (*self.b_dims[:depth], HEAD, RANK, *self.b_dims[depth:]),
            "router": (*self.a_dims, HEAD),
            "scale": (),
        }

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, and the heads as the router weighs them."""
        y, spots = ask.contract(self.w, x, spec), self.spots(x, spec)
        if ask.declined(y) or spots is None:
            return NotImplemented
        return y + self.term(x, spots, spec.options).astype(y.dtype)

    def term(self, x: Array, spots: Spots, options: dict[str, Any]) -> Array:
        """What the heads add to a product."""
        dtype, own = ask.common_dtype(x, self), spots.own
        kept = beside(spots.x, spots.inputs, spots.stack) + spots.stack
        wide = self.router.astype(ask.common_dtype(self.router, np.float32(0)))
        logits = labelled_product(
            x.astype(wide.dtype), spots.x, wide, own["router"], [*kept, HEAD]
        )
        gates = jax.nn.softmax(logits, axis=-1).astype(dtype)
        low = labelled_product(
            x.astype(dtype),
            spots.x,
            self.a.astype(dtype),
            own["a"],
            [*kept, RANK],
            **options,
        ).astype(dtype)
        # One product over heads and rank together: no head's output is formed.
        low = gates[..., :, None] * low[..., None, :]
        b = (self.b * self.scale.astype(self.b.dtype)).astype(dtype)
        return labelled_product(
            low, [*kept, HEAD, RANK], b, own["b"], spots.out, **options
        )
