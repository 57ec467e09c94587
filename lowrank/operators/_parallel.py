"""A parallel adapter: a small network beside a product, fed with the same input."""

from typing import Any

from lowrank._base import Array
from lowrank.operators import _dispatch as ask
from lowrank.operators._bottleneck import Bottleneck
from lowrank.operators._inside import Dims


class Parallel(Bottleneck):
    """A weight with a small network beside it that reads the same input.

    With `down: [*stack, *in, r]` and `up: [*stack, r, *out]` it multiplies as
    `x w + scale * (f(x down + down_bias) up + up_bias)`. That is no linear function of
    `x`, so there is no dense form, and only a product that sums all inputs and keeps
    all outputs has an answer.

    Args:
        w: The base: an array or an operator.
        down: Weights of the first layer; they read the inputs of `w`.
        up: Weights of the second layer.
        down_bias: Biases of the first layer, `[*stack, r]`; None for zeros.
        up_bias: Biases of the second layer, `[*stack, *out]`; None for zeros.
        scale: A scalar.
        activation: As for `Bottleneck`.
        a_dims: Axes of `w` that are inputs, stack axes first.
        b_dims: Axes of `w` that are outputs, stack axes first.

    Returns:
        An operator: a pytree node with children `w, down, up, down_bias, up_bias,
        scale`.

    Raises:
        ValueError: If the parts do not fit `w`.

    Example:
        >>> op = lrk.operators.Parallel(
        ...     jnp.ones((2, 3)), jnp.ones((2, 1)), jnp.ones((1, 3)), scale=4.0
        ... )
        >>> lrk.lift(jnp.matmul)(jnp.array([[1.0, 1.0], [-1.0, 0.0]]), op).tolist()
        [[10.0, 10.0, 10.0], [-1.0, -1.0, -1.0]]

    References:
        He et al., 2021, arXiv:2110.04366: table 1, the scaled parallel adapter.
    """

    fields = Bottleneck.fields
    static = Bottleneck.static

    @property
    def read(self) -> Dims:
        """Axes of `w` that the first layer reads."""
        return self.a_dims

    @property
    def cuttable(self) -> Dims:
        """Outputs do not meet each other: they and a stack may be sliced."""
        return self.b_dims

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with `w`, and what the network makes of the same input."""
        y, spots = ask.contract(self.w, x, spec), self.spots(x, spec)
        if ask.declined(y) or spots is None or not set(spots.stack) <= set(spots.out):
            return NotImplemented
        seen = x.astype(ask.common_dtype(x, self))
        return y + self.network(seen, spots.x, spots, spec.options).astype(y.dtype)
