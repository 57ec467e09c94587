"""The two networks of `speed/rram`, written once: how a layer multiplies is a hook."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import lowrank as lrk
from benchmarks.stats import generator

Params = Mapping[str, Mapping[str, Any]]
DIMENSIONS = ("NHWC", "HWIO", "NHWC")
KERNEL = lrk.Axes((), (0, 1, 2), (3,))


class Products(Protocol):
    """How a network multiplies: plainly, or through something that disturbs it."""

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        """`x @ W` of a layer."""
        ...

    def conv(self, name: str, x: jax.Array, padding: str) -> jax.Array:
        """The convolution of a layer."""
        ...


class Plain(NamedTuple):
    """The products as they are."""

    params: Params

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        """`x @ W`."""
        return x @ self.params[name]["w"]

    def conv(self, name: str, x: jax.Array, padding: str) -> jax.Array:
        """`x * W`."""
        w = self.params[name]["w"]
        return lax.conv_general_dilated(
            x, w, (1, 1), padding, dimension_numbers=DIMENSIONS
        )


def mlp(products: Products, params: Params, x: jax.Array) -> jax.Array:
    """784-512-10 with ReLU, on flat images."""
    h = jax.nn.relu(products.dense("fc1", x) + params["fc1"]["b"])
    return products.dense("fc2", h) + params["fc2"]["b"]


def lenet(products: Products, params: Params, x: jax.Array) -> jax.Array:
    """LeNet-5 with ReLU and mean pooling, on images `[n, 28, 28, 1]`."""
    h = jax.nn.relu(products.conv("conv1", x, "SAME") + params["conv1"]["b"])
    h = jax.nn.relu(products.conv("conv2", _pool(h), "VALID") + params["conv2"]["b"])
    h = _pool(h).reshape(x.shape[0], -1)
    h = jax.nn.relu(products.dense("fc1", h) + params["fc1"]["b"])
    h = jax.nn.relu(products.dense("fc2", h) + params["fc2"]["b"])
    return products.dense("fc3", h) + params["fc3"]["b"]


def _pool(x: jax.Array) -> jax.Array:
    """Means of 2 x 2."""
    n, h, w, c = x.shape
    return x.reshape(n, h // 2, 2, w // 2, 2, c).mean((2, 4))


FORWARD: dict[str, Callable[..., jax.Array]] = {"mlp": mlp, "lenet": lenet}
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "mlp": {"fc1": (784, 512), "fc2": (512, 10)},
    "lenet": {
        "conv1": (5, 5, 1, 6),
        "conv2": (5, 5, 6, 16),
        "fc1": (400, 120),
        "fc2": (120, 84),
        "fc3": (84, 10),
    },
}
TITLES = {"mlp": "MLP 784-512-10", "lenet": "LeNet-5"}


@dataclasses.dataclass(frozen=True)
class Problem:
    """One network with random weights and images.

    Attributes:
        name: `mlp` or `lenet`.
        params: `{layer: {"w", "b"}}`, float32.
        x: Images of one batch of training.
        y: Their labels.
        rows: Images of the evaluation of a chip.
        labels: Their labels.
        tile: Rows of a tile: None where one tile holds every layer.
    """

    name: str
    params: dict[str, dict[str, np.ndarray]]
    x: np.ndarray
    y: np.ndarray
    rows: np.ndarray
    labels: np.ndarray
    tile: int | None

    @property
    def axes(self) -> dict[str, lrk.Axes]:
        """How convolutions lie on a crossbar; matrices need not be named."""
        convs = [name for name, layer in self.params.items() if layer["w"].ndim == 4]
        return {f"{name}/w": KERNEL for name in convs}

    def apply(self, params: Params, x: jax.Array) -> jax.Array:
        """The network as anyone would write it."""
        return FORWARD[self.name](Plain(params), params, x)

    def forward(self, products: Products, params: Params, x: jax.Array) -> jax.Array:
        """The network with other products."""
        return FORWARD[self.name](products, params, x)


def problem(
    name: str, batch: int, rows: int, tile: int, seed: int, shrink: int = 1
) -> Problem:
    """A network and its images, all random: the time does not depend on the values.

    Args:
        name: `mlp` or `lenet`.
        batch: Images of a training step.
        rows: Images of the evaluation of one chip.
        tile: Rows of a tile. Where every layer has fewer, there is one tile.
        seed: Of weights, images and labels.
        shrink: Divides the hidden width of the MLP, for tests.

    Returns:
        A problem.
    """
    draw = generator(seed)
    shapes = dict(SHAPES[name])
    if name == "mlp":
        shapes = {"fc1": (784, 512 // shrink), "fc2": (512 // shrink, 10)}
    params = {}
    for layer, shape in shapes.items():
        fan = int(np.prod(shape[:-1]))
        w = draw.standard_normal(shape) / np.sqrt(fan)
        params[layer] = {
            "w": w.astype(np.float32),
            "b": np.zeros(shape[-1], np.float32),
        }
    images = (784,) if name == "mlp" else (28, 28, 1)
    x = draw.random((batch, *images), dtype=np.float32)
    many = draw.random((rows, *images), dtype=np.float32)
    sizes = [int(np.prod(shape[:-1])) for shape in shapes.values()]
    return Problem(
        name,
        params,
        x,
        draw.integers(0, 10, batch).astype(np.int32),
        many,
        draw.integers(0, 10, rows).astype(np.int32),
        tile if max(sizes) > tile else None,
    )


def loss_of(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Mean cross entropy."""
    picked = jnp.take_along_axis(jax.nn.log_softmax(logits), y[:, None], -1)
    return -picked.mean()


def accuracy_of(logits: jax.Array, y: jax.Array) -> jax.Array:
    """Share of rows whose largest logit is the label's."""
    return (logits.argmax(-1) == y).mean()


class Noise(NamedTuple):
    """The noise set of every row; shares are of the largest weight of a column.

    Attributes:
        levels: Conductances that a cell can be programmed to.
        write: Lognormal write noise, standard deviation of `ln G`.
        p_lrs: Share of cells stuck at low resistance.
        p_hrs: Share of cells stuck at high resistance.
        weight: Standard deviation of the fresh noise, referred to a weight.
        bits: Of both converters.
        input_limit: Largest input that is converted.
        output_limit: Largest sum that is converted, with inputs and weights in [-1, 1].
        output_noise: Standard deviation of the noise on such a sum.
    """

    levels: int = 64
    write: float = 0.2
    p_lrs: float = 0.1
    p_hrs: float = 0.1
    weight: float = 0.05
    bits: int = 8
    input_limit: float = 3.0
    output_limit: float = 10.0
    output_noise: float = 0.04

    @property
    def steps(self) -> int:
        """Steps of a converter on each side of zero."""
        return 2 ** (self.bits - 1) - 1


NOISE = Noise()
