"""LeNet-5 whose convolutions are products with banded matrices.

Training one chip after another puts convolutions into a compiled loop, where XLA's CPU
backend runs them several times slower than outside of one. A convolution is also a
product: of stacked rows of the image with a matrix that holds the kernel along a band.
The same function of the same parameters; a test says so.
"""

from typing import Any

import jax
import jax.numpy as jnp


def apply(params: Any, x: jax.Array) -> jax.Array:
    """`[batch, 28, 28, 1]` to `[batch, classes]`, as `lowrank.models.LeNet5`."""
    hidden = x
    for name in ("conv1", "conv2"):
        hidden = pooled(jax.nn.relu(convolved(hidden, **params[name])))
    hidden = hidden.reshape(hidden.shape[0], -1)
    for name in ("fc1", "fc2"):
        hidden = jax.nn.relu(dense(hidden, **params[name]))
    return dense(hidden, **params["fc3"])


def dense(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """`x W + b`."""
    return x @ kernel + bias[None]


def convolved(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    """A convolution without padding: `[n, h, w, in]` to `[n, h', w', out]`."""
    size, _, _, out = kernel.shape
    n, h, w, channels = x.shape
    high, wide = h - size + 1, w - size + 1
    lines = x.reshape(n, h, w * channels)
    stacked = jnp.concatenate([lines[:, i : i + high] for i in range(size)], axis=-1)
    made = stacked.reshape(n * high, -1) @ band(kernel, w)
    return made.reshape(n, high, wide, out) + bias[None, None, None]


def band(kernel: jax.Array, w: int) -> jax.Array:
    """`[size w in, w' out]`: entry `(i, u, c), (v, o)` is `kernel[i, u - v, c, o]`."""
    size, _, channels, out = kernel.shape
    wide = w - size + 1
    # Rows of w + 1 read as rows of w: each one is shifted by one more place.
    padded = jnp.pad(kernel, ((0, 0), (0, w + 1 - size), (0, 0), (0, 0)))
    tiled = jnp.tile(padded[:, None], (1, wide, 1, 1, 1))
    flat = tiled.reshape(size, wide * (w + 1), channels, out)[:, : wide * w]
    shifted = flat.reshape(size, wide, w, channels, out)
    return shifted.transpose(0, 2, 3, 1, 4).reshape(size * w * channels, wide * out)


def pooled(x: jax.Array) -> jax.Array:
    """The largest of each 2 x 2 pixels."""
    n, h, w, channels = x.shape
    pairs = x.reshape(n, h // 2, 2, w // 2, 2, channels)
    lines = jnp.maximum(pairs[:, :, 0], pairs[:, :, 1])
    return jnp.maximum(lines[:, :, :, 0], lines[:, :, :, 1])
