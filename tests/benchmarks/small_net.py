"""A net of two layers and its made-up points, for tests of broken chips."""

import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.chips.nets import Net
from benchmarks.stats import generator


def apply(params, x):
    a, b = params["a"], params["b"]
    hidden = jnp.maximum(x @ a["kernel"] + a["bias"][None], 0.0)
    return hidden @ b["kernel"] + b["bias"][None]


def tiny_net():
    """A net that is right about made-up points around four centres."""
    draw = generator(0)
    y = np.arange(64, dtype=np.int32) % 4
    x = np.eye(4, 6, dtype=np.float32)[y] * 3
    x = x + 0.1 * draw.normal(size=x.shape).astype(np.float32)
    wide = np.concatenate([np.eye(6), -np.eye(6)], axis=1)[:, :8].astype(np.float32)
    kernels = {"a": wide, "b": np.eye(8, 4, dtype=np.float32)}
    params = {
        name: {"kernel": w, "bias": np.zeros(w.shape[1], np.float32)}
        for name, w in kernels.items()
    }
    axes = {f"{layer}/kernel": lrk.Axes((), (0,), (1,)) for layer in "ab"}
    return Net("mlp-mnist", apply, params, axes, (x, y), (x, y), (x, y))
