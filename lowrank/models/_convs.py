"""Convolutions and frozen batch norms, which the convolutional networks share."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models._layers import Factory

HE = jax.nn.initializers.variance_scaling(2.0, "fan_out", "truncated_normal")
# One input feature for each output: the window alone is summed.
HE_DEPTHWISE = jax.nn.initializers.variance_scaling(2.0, "fan_in", "truncated_normal")


class FrozenNorm(nnx.Module):
    """Batch norm in inference form: `x * scale + bias` for each feature.

    With the running mean `m` and variance `v` of training, `scale = gamma / sqrt(v +
    eps)` and `bias = beta - m scale`: the same function, and no state.
    """

    def __init__(self, width: int, dtype: DTypeLike, param_dtype: DTypeLike):
        self.dtype = dtype
        self.scale = nnx.Param(jnp.ones(width, param_dtype))
        self.bias = nnx.Param(jnp.zeros(width, param_dtype))

    def __call__(self, x: jax.Array) -> jax.Array:
        ones = (1,) * (x.ndim - 1)
        scale, bias = (
            leaf.get_value().astype(self.dtype).reshape(*ones, -1)
            for leaf in (self.scale, self.bias)
        )
        return x * scale + bias


class ConvFactory(Factory):
    """Makes convolutions without bias and their norms."""

    def __init__(self, dtype: DTypeLike, param_dtype: DTypeLike, rngs: nnx.Rngs):
        super().__init__(0.01, dtype, param_dtype, rngs)

    def conv(
        self, n: int, m: int, window: tuple[int, ...], stride: int = 1, **how: Any
    ) -> nnx.Conv:
        return nnx.Conv(
            n,
            m,
            window,
            strides=(stride,) * len(window),
            use_bias=False,
            kernel_init=HE_DEPTHWISE if "feature_group_count" in how else HE,
            **how,
            **self.kwargs,
        )

    def norm(self, width: int) -> FrozenNorm:
        return FrozenNorm(width, self.kwargs["dtype"], self.kwargs["param_dtype"])
