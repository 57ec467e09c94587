"""The contenders that need no peer: `lift`, layers by hand, and the references."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.speed._networks import Network, Scanned

Tree = Any

Factors = dict[str, dict[str, np.ndarray]]

ALPHA = 16.0


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to run a network, and how to compare its gradient.

    Attributes:
        loss: `loss(trainable, probe, frozen, batch)`, a scalar.
        trainable: What is trained; empty for the references.
        probe: What the loss is also differentiated in, or None.
        frozen: What is not trained.
        batch: Data.
        factors: Turns a gradient in `trainable`, of NumPy arrays, into one in the
            factors by name; None where there is none.
        differentiate: Whether a step takes a gradient at all.
    """

    loss: Callable[[Tree, Tree, Tree, Tree], jax.Array]
    trainable: Tree
    probe: Tree
    frozen: Tree
    batch: Tree
    factors: Callable[[Tree], Factors] | None = None
    differentiate: bool = True


def scale_of(network: Network | Scanned) -> float:
    """The scale of the adapters, `alpha / rank`."""
    return ALPHA / network.rank


def plain_loss(network: Network) -> Callable[[Tree, Tree, Tree, Tree], jax.Array]:
    """The network as anybody writes it, on a dict of kernels."""

    def loss(kernels: Tree, probe: Tree, rest: Tree, batch: Tree) -> jax.Array:
        def linear(name: str, x: jax.Array) -> jax.Array:
            return x @ kernels[name]

        return network.loss(linear, rest, probe, batch)

    return loss


def merged(network: Network | Scanned) -> dict[str, jax.Array]:
    """Kernels with the factors added: every contender starts from the same function."""
    scale, found = np.float32(scale_of(network)), {}
    for name, w in network.kernels.items():
        a, b = (np.asarray(network.factors[name][which]) for which in ("a", "b"))
        found[name] = jnp.asarray(np.asarray(w) + scale * (a @ b))
    return found


def naive(w: jax.Array, factor: Tree, scale: float, x: jax.Array) -> jax.Array:
    """A LoRA layer as it is usually written; `x` keeps its axes."""
    return x @ w + scale * ((x @ factor["a"]) @ factor["b"])


def flattened(w: jax.Array, factor: Tree, scale: float, x: jax.Array) -> jax.Array:
    """A LoRA layer with all tokens on one axis, and the scale on the small factor."""
    flat = x.reshape(-1, x.shape[-1])
    y = flat @ w + (flat @ factor["a"]) @ (scale * factor["b"])
    return y.reshape(*x.shape[:-1], w.shape[-1])


def materialised(w: jax.Array, factor: Tree, scale: float, x: jax.Array) -> jax.Array:
    """The weight is formed, then used."""
    return x @ (w + scale * (factor["a"] @ factor["b"]))


LAYERS: dict[str, Callable[..., jax.Array]] = {
    "flat": flattened,
    "naive": naive,
    "materialised": materialised,
}


def by_hand(network: Network, layer: Callable[..., jax.Array]) -> Contender:
    """A network of hand-written layers."""
    scale = scale_of(network)

    def loss(factors: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        def linear(name: str, x: jax.Array) -> jax.Array:
            return layer(frozen["kernels"][name], factors[name], scale, x)

        return network.loss(linear, frozen["rest"], probe, batch)

    frozen = {"kernels": network.kernels, "rest": network.rest}
    return Contender(
        loss, network.factors, network.probe, frozen, network.batch, lambda grads: grads
    )


def lifted(network: Network) -> Contender:
    """The plain network under `lrk.lift`."""
    tx = lrk.lora(network.rank, alpha=ALPHA)
    fixed = tx.init(jax.random.key(0), network.kernels).fixed
    plain = plain_loss(network)

    def loss(trainable: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        state = lrk.State(trainable, frozen["fixed"])
        adapted = tx.apply(frozen["kernels"], state)
        return lrk.lift(plain)(adapted, probe, frozen["rest"], batch)

    frozen = {"kernels": network.kernels, "rest": network.rest, "fixed": fixed}
    return Contender(
        loss, network.factors, network.probe, frozen, network.batch, lambda grads: grads
    )


def full(network: Network) -> Contender:
    """Full fine-tuning of the same kernels, and of nothing else."""
    plain, scale = plain_loss(network), scale_of(network)

    def in_factors(grads: Tree) -> Factors:
        found = {}
        for name, dw in grads.items():
            a, b = (np.asarray(network.factors[name][which]) for which in ("a", "b"))
            found[name] = {"a": scale * dw @ b.T, "b": scale * a.T @ dw}
        return found

    return Contender(
        plain, merged(network), network.probe, network.rest, network.batch, in_factors
    )


def forward(network: Network) -> Contender:
    """The loss of the frozen network."""
    return dataclasses.replace(_reference(network, network.probe), differentiate=False)


def to_input(network: Network) -> Contender:
    """Backward to the input through frozen weights: the least that training needs."""
    return _reference(network, network.input)


def _reference(network: Network, probe: Tree) -> Contender:
    plain = plain_loss(network)

    def loss(trainable: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        del trainable
        return plain(frozen["kernels"], probe, frozen["rest"], batch)

    frozen = {"kernels": merged(network), "rest": network.rest}
    return Contender(loss, {}, probe, frozen, network.batch)


def own(network: Network) -> dict[str, Contender]:
    """The contenders of this file, by name."""
    return {
        "lowrank": lifted(network),
        **{name: by_hand(network, layer) for name, layer in LAYERS.items()},
        "full": full(network),
        "forward": forward(network),
        "input": to_input(network),
    }


def _scanned_by_hand(network: Scanned, layer: Callable[..., jax.Array]) -> Contender:
    scale = scale_of(network)

    def loss(factors: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        del probe

        def linear(own: Tree, x: jax.Array) -> jax.Array:
            return layer(own["w"], own, scale, x)

        weights = {
            name: {"w": w, **factors[name]} for name, w in frozen["kernels"].items()
        }
        return network.loss(linear, weights, frozen["rest"], batch)

    frozen = {"kernels": network.kernels, "rest": network.rest}
    return Contender(loss, network.factors, None, frozen, network.batch, lambda g: g)


def _times(w: jax.Array, x: jax.Array) -> jax.Array:
    return x @ w


def _scanned_merged(network: Scanned) -> Contender:
    """The stacked weights are formed before the loop."""
    scale = scale_of(network)

    def loss(factors: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        del probe
        weights = {
            name: w + scale * (factors[name]["a"] @ factors[name]["b"])
            for name, w in frozen["kernels"].items()
        }
        return network.loss(_times, weights, frozen["rest"], batch)

    frozen = {"kernels": network.kernels, "rest": network.rest}
    return Contender(loss, network.factors, None, frozen, network.batch, lambda g: g)


def _scanned_lifted(network: Scanned) -> Contender:
    def plain(kernels: Tree, rest: Tree, batch: Tree) -> jax.Array:
        return network.loss(_times, kernels, rest, batch)

    axes = lrk.trace_axes(plain, network.kernels, network.rest, network.batch)
    tx = lrk.lora(network.rank, alpha=ALPHA, select=_all, axes=axes)
    fixed = tx.init(jax.random.key(0), network.kernels).fixed

    def loss(trainable: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        del probe
        adapted = tx.apply(frozen["kernels"], lrk.State(trainable, frozen["fixed"]))
        return lrk.lift(plain)(adapted, frozen["rest"], batch)

    frozen = {"kernels": network.kernels, "rest": network.rest, "fixed": fixed}
    return Contender(loss, network.factors, None, frozen, network.batch, lambda g: g)


def _all(path: str, leaf: Any) -> bool:
    del path, leaf
    return True


def _scanned_full(network: Scanned) -> Contender:
    def loss(kernels: Tree, probe: Tree, rest: Tree, batch: Tree) -> jax.Array:
        del probe
        return network.loss(_times, kernels, rest, batch)

    return Contender(loss, merged(network), None, network.rest, network.batch)


def scanned(network: Scanned) -> dict[str, Contender]:
    """Contenders under scan and remat, by name."""
    return {
        "lowrank": _scanned_lifted(network),
        "flat": _scanned_by_hand(network, flattened),
        "naive": _scanned_by_hand(network, naive),
        "materialised": _scanned_merged(network),
        "materialised in the loop": _scanned_by_hand(network, materialised),
        "full": _scanned_full(network),
    }


def step(contender: Contender) -> Callable[..., Any]:
    """Value and gradient, as a function of `(trainable, probe, frozen, batch)`."""
    if not contender.differentiate:
        return contender.loss
    return jax.value_and_grad(contender.loss, argnums=(0, 1))


def many_tasks(
    network: Network, tasks: int
) -> tuple[Callable[..., Any], tuple[Any, ...]]:
    """A step of many adapters at once under `vmap`, and what to call it with.

    Each task has factors, a probe and a batch of its own; the base is shared.
    """
    contender = lifted(network)

    def several(tree: Tree) -> Tree:
        return jax.tree.map(lambda x: jnp.stack([x] * tasks), tree)

    args = (
        jax.tree.map(
            lambda x: jnp.stack([x * (1 + i / tasks) for i in range(tasks)]),
            contender.trainable,
        ),
        several(contender.probe),
        contender.frozen,
        several(contender.batch),
    )
    return jax.vmap(step(contender), in_axes=(0, 0, None, 0)), args
