"""The fully connected network."""

from collections.abc import Callable, Sequence
from itertools import pairwise

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike


class MLP(nnx.Module):
    """Dense layers with an activation between them.

    `h_0 = x`, `h_{i+1} = act(h_i W_i + b_i)` with `W_i: [sizes[i], sizes[i+1]]`, and
    no activation after the last layer. Parameters: `layers/0/kernel`,
    `layers/0/bias`, ...

    Args:
        sizes: Widths from input to output, two or more, each at least 1.
        activation: Function between layers.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial kernels (LeCun normal); biases are 0.

    Raises:
        ValueError: If there are fewer than two sizes or one is below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import MLP
        >>> model = MLP((784, 200, 200, 10), rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 784))).shape
        (2, 10)
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        199210

    Notes:
        With sizes 784-200-200-10 this is the network of 199,210 parameters whose
        intrinsic dimension on MNIST is 750.

    References:
        Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, 2018,
        arXiv:1804.08838: section 3.1.
    """

    def __init__(
        self,
        sizes: Sequence[int],
        *,
        activation: Callable[[jax.Array], jax.Array] = jax.nn.relu,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        if len(sizes) < 2 or min(sizes) < 1:
            raise ValueError(
                f"MLP: wrong sizes: expected two or more, each at least 1, got "
                f"{tuple(sizes)}. Pass input, hidden and output widths."
            )
        self.activation = activation
        self.layers = nnx.List(
            nnx.Linear(n, m, dtype=dtype, param_dtype=param_dtype, rngs=rngs)
            for n, m in pairwise(sizes)
        )

    def __call__(self, x: ArrayLike) -> jax.Array:
        """Map `[..., sizes[0]]` to `[..., sizes[-1]]`."""
        hidden = jnp.asarray(x)
        *inner, last = self.layers
        for layer in inner:
            hidden = self.activation(layer(hidden))
        return last(hidden)
