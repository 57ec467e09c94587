"""The small nets that go onto chips: trained once, and kept."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lowrank as lrk
from benchmarks.data.images import as_float, fashion_mnist, mnist
from benchmarks.runner import Session
from benchmarks.stats import generator
from lowrank.models import MLP, LeNet5, functional

SIZES, TWIN = (784, 512, 10), (784, 48, 10)  # of made-up images: seconds
NETS = ("mlp", "lenet")
DATASETS = {"mnist": mnist, "fashion": fashion_mnist}
EPOCHS = {"mlp": 6, "lenet": 8}
TWIN_EPOCHS = 30  # of a few batches each
BATCH, RATE = 128, 1e-3
SCORED = 1000  # images of a product when a net is scored

Pair = tuple[np.ndarray, np.ndarray]


class Net(NamedTuple):
    """A trained net and its data.

    Attributes:
        name: `mlp` or `lenet`, and the data set: `mlp-mnist`.
        apply: `apply(params, images) -> logits`; of LeNet-5, `lenet_apply`.
        params: Trained parameters, NumPy float32.
        axes: How each kernel is used, as factories take it.
        train: Images and labels; float32 as the net wants them, int32.
        valid: The same, for choices.
        test: The same, for what is reported.
    """

    name: str
    apply: Callable[[Any, Any], jax.Array]
    params: dict[str, Any]
    axes: Mapping[str, Any]
    train: Pair
    valid: Pair
    test: Pair


def load(
    name: str,
    dataset: str,
    store: Session,
    *,
    synthetic: bool = False,
    seed: int = 0,
    log: Callable[[str], object] | None = None,
) -> Net:
    """A net with its data; it is trained the first time, and then read.

    Args:
        name: `mlp`, which is 784-512-10 (784-48-10 for made-up images), or `lenet`,
            which is LeNet-5.
        dataset: `mnist` or `fashion`.
        store: Keeps the weights: `session.beside("chips")`.
        synthetic: Take a small made-up twin of the data.
        seed: Of the initial weights and of the order of batches.
        log: Is told how long training took; None says nothing.

    Returns:
        The net. Its last few training epochs have a falling rate.

    Raises:
        ValueError: If the net or the data set is unknown.
    """
    if name not in NETS or dataset not in DATASETS:
        raise ValueError(
            f"nets: no net {name!r} on {dataset!r}: expected one of {NETS} on one of "
            f"{tuple(DATASETS)}."
        )
    data = DATASETS[dataset](synthetic=synthetic)
    splits = [
        (images(name, part.x), np.asarray(part.y, np.int32))
        for part in (data.train, data.valid, data.test)
    ]
    apply, first = functional(model(name, seed, TWIN if synthetic else SIZES))
    epochs = TWIN_EPOCHS if synthetic else EPOCHS[name]
    given = {
        "net": name,
        "sizes": TWIN if synthetic else SIZES,
        "dataset": data.name,
        "synthetic": synthetic,
        "seed": seed,
        "epochs": epochs,
        "batch": BATCH,
        "rate": RATE,
        "examples": len(splits[0][1]),
    }
    kind = "twin" if synthetic else "full"
    file = f"{name}-{dataset}-{kind}-s{seed}"
    run = lenet_apply if name == "lenet" else apply
    params = store.load_arrays(file, config=given)
    if params is None:
        params = train(run, first, splits[0], epochs, seed)
        store.save_arrays(file, params, config=given)
        if log is not None:
            log(f"nets: {file} trained")
    params = jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
    axes = lrk.trace_axes(apply, params, splits[0][0][:2])
    own = {path: axes[path] for path in axes if path.endswith("kernel")}
    return Net(f"{name}-{dataset}", run, params, own, *splits)


def model(name: str, seed: int, sizes: tuple[int, ...] = SIZES) -> nnx.Module:
    """A net that knows nothing; the sizes are those of an MLP."""
    rngs = nnx.Rngs(seed)
    return MLP(sizes, rngs=rngs) if name == "mlp" else LeNet5(rngs=rngs)


def images(name: str, x: np.ndarray) -> np.ndarray:
    """Bytes as a net wants them."""
    images = as_float(x)
    return images.reshape(len(images), -1) if name == "mlp" else images


def lenet_apply(params: Any, images: Any) -> jax.Array:
    """LeNet-5 as products of patches, with the images on the last axis.

    The same function of the same parameters; inside a compiled loop on a CPU its step
    takes a third of the time of convolutions and pooling windows.
    """
    x = jnp.moveaxis(jnp.asarray(images), 0, -1).reshape(1, 28, 28, -1)
    x = _patched(params["conv2"], _patched(params["conv1"], x))
    x = x.transpose(3, 1, 2, 0).reshape(len(images), -1)
    for layer in (params["fc1"], params["fc2"]):
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"][None])
    return x @ params["fc3"]["kernel"] + params["fc3"]["bias"][None]


def _patched(layer: Mapping[str, Any], x: jax.Array) -> jax.Array:
    """A convolution, relu and pooling of `[channels, height, width, images]`."""
    kernel = layer["kernel"]
    size, out = kernel.shape[0], kernel.shape[-1]
    n, m = x.shape[1] - size + 1, x.shape[2] - size + 1
    seen = jnp.concatenate(
        [x[:, i : i + n, j : j + m] for i in range(size) for j in range(size)]
    )
    met = jnp.einsum(
        "ko,km->om", kernel.reshape(-1, out), seen.reshape(seen.shape[0], -1)
    )
    met = (met + layer["bias"][:, None]).reshape(out, n // 2, 2, m // 2, 2, -1)
    return jax.nn.relu(met.max((2, 4)))


def loss(
    apply: Callable[[Any, Any], jax.Array], params: Any, x: Any, y: Any
) -> jax.Array:
    """Mean cross-entropy."""
    own = optax.softmax_cross_entropy_with_integer_labels(apply(params, x), y)
    return own.mean()


def train(
    apply: Callable[[Any, Any], jax.Array],
    params: Any,
    data: Pair,
    epochs: int,
    seed: int,
) -> dict[str, Any]:
    """Adam with a rate that falls to zero; one compiled step, a loop on the host."""
    x, y = data
    size = min(BATCH, len(y))
    count = max(1, len(y) // size)
    tx = optax.adam(optax.cosine_decay_schedule(RATE, epochs * count))

    @jax.jit
    def step(params: Any, memory: Any, x: Any, y: Any) -> tuple[Any, Any]:
        grads = jax.grad(lambda p: loss(apply, p, x, y))(params)
        updates, memory = tx.update(grads, memory, params)
        return optax.apply_updates(params, updates), memory

    memory, draws = tx.init(params), generator(seed)
    for _ in range(epochs):
        order = draws.permutation(len(y))
        for i in range(count):
            part = order[i * size : (i + 1) * size]
            params, memory = step(params, memory, x[part], y[part])
    return jax.tree.map(np.asarray, params)


def accuracy(
    apply: Callable[[Any, Any], jax.Array],
    params: Any,
    x: Any,
    y: Any,
    batch: int = SCORED,
) -> jax.Array:
    """The share of images whose largest logit is their label's; may be jitted.

    Args:
        apply: `apply(params, images)`; lifted, if there are operators in `params`.
        params: Parameters, or an adapted tree.
        x: Images.
        y: Labels.
        batch: Images of one product; the last one may have fewer.

    Returns:
        A number in [0, 1].
    """
    size = min(batch, len(y))
    whole = len(y) // size * size

    def right(part: tuple[Any, Any]) -> jax.Array:
        guesses = jnp.argmax(apply(params, part[0]), axis=-1)
        return jnp.sum(guesses == part[1], dtype=jnp.int32)

    parts = [a[:whole].reshape(-1, size, *a.shape[1:]) for a in (x, y)]
    total = jnp.sum(jax.lax.map(right, (parts[0], parts[1])))
    if whole < len(y):
        total = total + right((x[whole:], y[whole:]))
    return total / len(y)
