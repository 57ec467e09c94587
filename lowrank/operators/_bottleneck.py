"""A serial adapter: a small network behind a product, added to what it reads."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank._base import Array
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._inside import RANK, Dims, Inside, Spots, beside
from lowrank.operators._rescaled import aligned

Activation = Callable[[Array], Array]
_OWN = ("down", "up", "down_bias", "up_bias", "scale")


class Bottleneck(Inside):
    """A weight whose product passes through a small network with a skip connection.

    With `y = x w`, `down: [*stack, *out, r]` and `up: [*stack, r, *out]` it multiplies
    as `y + scale * (f(y down + down_bias) up + up_bias)`. That is no linear function of
    `x`, so there is no dense form, and only a product that sums all inputs and keeps
    all outputs has an answer.

    Args:
        w: The base: an array or an operator.
        down: Weights of the first layer; they read the outputs of `w`.
        up: Weights of the second layer.
        down_bias: Biases of the first layer, `[*stack, r]`; None for zeros.
        up_bias: Biases of the second layer, `[*stack, *out]`; None for zeros.
        scale: A scalar.
        activation: The function `f` of arrays between the layers, elementwise. It is
            compared by value as Python compares functions: a function that is defined
            once compiles once, a lambda that is made anew compiles anew.
        a_dims: Axes of `w` that are inputs, stack axes first.
        b_dims: Axes of `w` that are outputs, stack axes first.

    Returns:
        An operator: a pytree node with children `w, down, up, down_bias, up_bias,
        scale`.

    Raises:
        ValueError: If the parts do not fit `w`.

    Example:
        >>> op = lrk.operators.Bottleneck(
        ...     jnp.ones((2, 3)), jnp.ones((3, 1)), jnp.ones((1, 3))
        ... )
        >>> lrk.lift(jnp.matmul)(jnp.array([[1.0, 1.0], [-1.0, 0.0]]), op).tolist()
        [[8.0, 8.0, 8.0], [-1.0, -1.0, -1.0]]

    References:
        Houlsby et al., 2019, arXiv:1902.00751: section 2.1 and figure 2.
    """

    fields = ("w", *_OWN)
    static = ("a_dims", "b_dims", "activation")
    arrays = _OWN

    down: Array
    up: Array
    down_bias: Array
    up_bias: Array
    scale: Array
    activation: Activation

    def __init__(
        self,
        w: Any,
        down: ArrayLike,
        up: ArrayLike,
        down_bias: ArrayLike | None = None,
        up_bias: ArrayLike | None = None,
        scale: Any = 1.0,
        *,
        activation: Activation = jax.nn.relu,
        a_dims: Dims = (0,),
        b_dims: Dims = (1,),
    ) -> None:
        down, up, scale = (jnp.asarray(x) for x in (down, up, scale))
        depth = len([d for d in a_dims if d in b_dims])
        inner = (*down.shape[:depth], *down.shape[-1:])
        outer = (*up.shape[:depth], *up.shape[depth + 1 :])
        low = jnp.zeros(inner) if down_bias is None else jnp.asarray(down_bias)
        high = jnp.zeros(outer) if up_bias is None else jnp.asarray(up_bias)
        values = {"down": down, "up": up, "down_bias": low, "up_bias": high}
        dims = {"a_dims": tuple(a_dims), "b_dims": tuple(b_dims)}
        self._set(w=w, **values, scale=scale, activation=activation, **dims)

    @property
    def read(self) -> Dims:
        """Axes of `w` that the first layer reads."""
        return self.b_dims

    @property
    def labels(self) -> dict[str, tuple[Any, ...]]:
        """For each array, the axis of `w` that each of its axes is."""
        stack, outputs = self.stack, self.b_dims[len(self.stack) :]
        return {
            "down": (*self.read, RANK),
            "up": (*stack, RANK, *outputs),
            "down_bias": (*stack, RANK),
            "up_bias": (*stack, *outputs),
            "scale": (),
        }

    @property
    def cuttable(self) -> Dims:
        """Each output is read by all: only a stack may be sliced."""
        return self.stack

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, and what the network makes of it."""
        y, spots = ask.contract(self.w, x, spec), self.spots(x, spec)
        if ask.declined(y) or spots is None or not set(spots.stack) <= set(spots.out):
            return NotImplemented
        return y + self.network(y, spots.out, spots, spec.options).astype(y.dtype)

    def network(
        self, seen: Array, labels: Sequence[Any], spots: Spots, options: dict[str, Any]
    ) -> Array:
        """`scale * (f(seen down + down_bias) up + up_bias)`, in the dtype of `seen`."""
        dtype, own = seen.dtype, spots.own
        down, up, low, high = (getattr(self, n).astype(dtype) for n in _OWN[:4])
        kept = beside(labels, own["down"], spots.stack) + spots.stack
        inner = labelled_product(
            seen, labels, down, own["down"], [*kept, RANK], **options
        ).astype(dtype)
        inner = self.activation(inner + aligned(low, own["down_bias"], [*kept, RANK]))
        outer = labelled_product(
            inner, [*kept, RANK], up, own["up"], spots.out, **options
        ).astype(dtype)
        outer += aligned(high, own["up_bias"], spots.out)
        return outer * self.scale.astype(dtype)
