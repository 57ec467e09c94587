"""LeNet-5 for 28 x 28 images."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax.typing import ArrayLike, DTypeLike


class LeNet5(nnx.Module):
    """LeNet-5 without padding, with relu and max pooling: 44,426 parameters.

    `[batch, 28, 28, 1]` -> conv 6 @ 5x5 -> `[24, 24, 6]` -> pool 2 -> conv 16 @ 5x5 ->
    `[8, 8, 16]` -> pool 2 -> 256 -> 120 -> 84 -> `classes`. Counts for ten classes:
    `conv1` 156, `conv2` 2,416, `fc1` 30,840, `fc2` 10,164, `fc3` 850. Convolution
    kernels are `[5, 5, in, out]`, dense ones `[in, out]`.

    Args:
        classes: Number of outputs, at least 1.
        dtype: Compute dtype.
        param_dtype: Dtype of the parameters.
        rngs: Random streams for the initial kernels (LeCun normal); biases are 0.

    Raises:
        ValueError: If `classes` is below 1, or at the call if the images are not
            `[batch, 28, 28, 1]`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from flax import nnx
        >>> from lowrank.models import LeNet5
        >>> model = LeNet5(rngs=nnx.Rngs(0))
        >>> model(jnp.ones((2, 28, 28, 1))).shape
        (2, 10)
        >>> sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
        44426

    Notes:
        LeCun et al. pad the image to 32 x 32, connect the second convolution to part of
        the first one's maps, and use scaled tanh, trainable subsampling and radial
        basis outputs (some 60,000 parameters). This is the form that measurements
        of intrinsic dimension use (D = 44,426).

    References:
        LeCun et al., Gradient-Based Learning Applied to Document Recognition, 1998:
        section II.B.
        Li et al., Measuring the Intrinsic Dimension of Objective Landscapes, 2018,
        arXiv:1804.08838: table 1.
    """

    def __init__(
        self,
        *,
        classes: int = 10,
        dtype: DTypeLike = jnp.float32,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        """Build the layers; see the class."""
        if classes < 1:
            raise ValueError(
                f"LeNet5: wrong classes: expected at least 1, got {classes}. "
                "Pass the number of outputs."
            )

        def conv(n: int, m: int) -> nnx.Conv:
            return nnx.Conv(
                n,
                m,
                (5, 5),
                padding="VALID",
                dtype=dtype,
                param_dtype=param_dtype,
                rngs=rngs,
            )

        def dense(n: int, m: int) -> nnx.Linear:
            return nnx.Linear(n, m, dtype=dtype, param_dtype=param_dtype, rngs=rngs)

        self.conv1 = conv(1, 6)
        self.conv2 = conv(6, 16)
        self.fc1 = dense(256, 120)
        self.fc2 = dense(120, 84)
        self.fc3 = dense(84, classes)

    def __call__(self, images: ArrayLike) -> jax.Array:
        """Map `[batch, 28, 28, 1]` to logits `[batch, classes]`."""
        hidden = jnp.asarray(images)
        if hidden.ndim != 4 or hidden.shape[1:] != (28, 28, 1):
            raise ValueError(
                "LeNet5: wrong images: expected shape (batch, 28, 28, 1), got "
                f"{hidden.shape}. Reshape with x.reshape(-1, 28, 28, 1)."
            )
        for conv in (self.conv1, self.conv2):
            hidden = nnx.max_pool(jax.nn.relu(conv(hidden)), (2, 2), strides=(2, 2))
        hidden = hidden.reshape(hidden.shape[0], 256)
        hidden = jax.nn.relu(self.fc1(hidden))
        hidden = jax.nn.relu(self.fc2(hidden))
        return self.fc3(hidden)
