"""EfficientNet-Lite0 cut in two, and few labelled images of a class."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import lowrank as lrk
from benchmarks import data, stats

CLASSES = 10
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # the weights' own
EVAL_BATCH = 50


class Cut(NamedTuple):
    """The network, cut below its last blocks.

    Attributes:
        params: All parameters; those below the cut are read by `lower` alone.
        lower: `lower(images)`: what goes into the first block above the cut, of images
            `[batch, height, width]` of uint8.
        features: `features(params, hidden)`: pooled features `[batch, width]`.
        adapted: A pattern of the paths above the cut, to be followed by names.
        axes: Axes of the kernels, as the network uses them.
        name: Which weights these are.
    """

    params: dict[str, Any]
    lower: Callable[..., jax.Array]
    features: Callable[..., jax.Array]
    adapted: str
    axes: Any
    name: str


class Images(NamedTuple):
    """Images at the cut `[n, height, width, features]`, and their classes `[n]`."""

    hidden: Any
    labels: np.ndarray


def load_cut(blocks: int, side: int, *, synthetic: bool) -> Cut:
    """EfficientNet-Lite0 with its last `blocks` blocks above the cut; or a tiny twin.

    Args:
        blocks: Blocks above the cut; the last convolution is above it too.
        side: Height and width that images are brought to.
        synthetic: A tiny random network, with no file.

    Returns:
        The cut network.
    """
    if synthetic:
        stage = lrk.models.Stage(1, 3, 2, 2, 16)
        config = lrk.models.EfficientNetConfig(
            stages=(stage,) * (blocks + 1), stem_width=8, head_width=24, num_labels=0
        )
        net = lrk.models.EfficientNet(config, rngs=nnx.Rngs(0))
        name = "a random network of width 16"
    else:
        net = lrk.models.efficientnet_from_torch(data.efficientnet_lite0())
        name = f"EfficientNet-Lite0, last {blocks} of 16 blocks adapted"
    first = len(net.blocks) - blocks
    below, params = lrk.models.functional(net, lambda m, x: m.below(x, first))
    above, _ = lrk.models.functional(net, lambda m, x: m.above(x, first))

    def lower(images: jax.Array) -> jax.Array:
        grey = images.astype(jnp.float32)[..., None] / 255
        wide = jax.image.resize(grey, (len(images), side, side, 1), "bilinear")
        mean, spread = (jnp.asarray(x).reshape(1, 1, 1, 3) for x in (MEAN, SPREAD))
        return below(params, (jnp.repeat(wide, 3, axis=-1) - mean) / spread)

    example = jax.eval_shape(lower, jnp.zeros((2, 28, 28), jnp.uint8))
    axes = lrk.trace_axes(above, params, example)
    numbers = "|".join(str(first + i) for i in range(blocks))
    adapted = rf"^(blocks/({numbers})/\w+|head)_"
    return Cut(params, jax.jit(lower), above, adapted, axes, name)


def at_cut(cut: Cut, split: data.Split) -> Images:
    """Runs the frozen part once, in batches."""
    number, found = len(split), []
    pixels = np.asarray(split.x)
    for start in range(0, number, EVAL_BATCH):
        index = np.arange(start, start + EVAL_BATCH) % number
        found.append(np.asarray(cut.lower(pixels[index])))
    return Images(np.concatenate(found)[:number], split.y)


def few(split: data.Split, shots: int, seed: int) -> data.Split:
    """The same number of images of every class, another draw for another seed.

    Raises:
        ValueError: If a class has fewer.
    """
    draws = stats.generator(seed)
    counts = np.bincount(split.y, minlength=CLASSES)
    if counts.min() < shots:
        raise ValueError(
            f"few: expected at least {shots} images of every class, got "
            f"{counts.min()}. Lower shots."
        )
    rows = [
        draws.permutation(np.flatnonzero(split.y == label))[:shots]
        for label in range(CLASSES)
    ]
    return split.take(draws.permutation(np.concatenate(rows)))
