"""The same networks by other libraries; each is optional.

The factors are folded where a peer has no scale: `a` then holds `scale * a`, and its
gradient is `1 / scale` of the others'.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax

from benchmarks.origin import installed
from benchmarks.speed._contenders import (
    ALPHA,
    Contender,
    Factors,
    plain_loss,
    scale_of,
)
from benchmarks.speed._networks import Network

Tree = Any


def versions() -> dict[str, str]:
    """Returns the version of each peer, or `not installed`."""
    return installed(("flax", "qwix", "quax"))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Which deprecated names a peer calls is its own affair."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


def _attribute(name: str) -> str:
    """A kernel's name as an attribute of a module."""
    return name.replace(".", "_")


def _module(network: Network, make: Callable[[int, int], Any]) -> Any:
    """An nnx module with one linear layer for each kernel, which computes the loss."""
    from flax import nnx

    class Linears(nnx.Module):
        """Every linear layer of the network."""

        def __init__(self) -> None:
            for name, w in network.kernels.items():
                layer = make(*w.shape)
                layer.kernel = nnx.Param(w)
                setattr(self, _attribute(name), layer)

        def __call__(self, rest: Tree, probe: Tree, batch: Tree) -> jax.Array:
            """The loss."""

            def linear(name: str, x: jax.Array) -> jax.Array:
                return getattr(self, _attribute(name))(x)

            return network.loss(linear, rest, probe, batch)

    return Linears()


def _from_module(
    network: Network, model: Any, factors: Callable[[Tree], Any], train: Any
) -> Contender:
    """A contender from an nnx module whose trained variables are told by a filter."""
    from flax import nnx

    graph, trainable, kernels = nnx.split(model, train, ...)

    def loss(trainable: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        merged = nnx.merge(graph, trainable, frozen["kernels"])
        with quiet():
            return merged(frozen["rest"], probe, batch)

    frozen = {"kernels": kernels, "rest": network.rest}
    return Contender(loss, trainable, network.probe, frozen, network.batch, factors)


def nnx_lora(network: Network) -> Contender:
    """`flax.nnx.LoRALinear` in the place of each linear layer."""
    from flax import nnx

    scale, rngs = scale_of(network), nnx.Rngs(0)

    def make(n: int, m: int) -> Any:
        rank = network.rank
        return nnx.LoRALinear(n, m, lora_rank=rank, use_bias=False, rngs=rngs)

    model = _module(network, make)
    for name, factor in network.factors.items():
        lora = getattr(model, _attribute(name)).lora
        lora.lora_a = nnx.LoRAParam(scale * factor["a"])
        lora.lora_b = nnx.LoRAParam(factor["b"])

    def factors(grads: Tree) -> Factors:
        found = {}
        for name in network.factors:
            lora = grads[_attribute(name)]["lora"]
            found[name] = {"a": scale * lora["lora_a"][...], "b": lora["lora_b"][...]}
        return found

    return _from_module(network, model, factors, nnx.LoRAParam)


def qwix_lora(network: Network) -> Contender:
    """The plain module under qwix's `LoraProvider`."""
    import qwix
    from flax import nnx

    def make(n: int, m: int) -> Any:
        return nnx.Linear(n, m, use_bias=False, rngs=nnx.Rngs(0))

    provider = qwix.LoraProvider(module_path=".*", rank=network.rank, alpha=ALPHA)
    inputs = (network.rest, network.probe, network.batch)
    model = qwix.apply_lora_to_model(
        _module(network, make), provider, *inputs, rngs=nnx.Rngs(0)
    )
    for name, factor in network.factors.items():
        layer = getattr(model, _attribute(name))
        for which in ("a", "b"):
            held = getattr(layer, f"kernel_lora_{which}")
            held[...] = factor[which].reshape(held.shape)

    def factors(grads: Tree) -> Factors:
        return {
            name: {
                which: grads[_attribute(name)][f"kernel_lora_{which}"][...]
                for which in ("a", "b")
            }
            for name in network.factors
        }

    return _from_module(network, model, factors, nnx.LoRAParam)


def quax_lora(network: Network) -> Contender:
    """The plain network under quax, with the `LoraArray` of its examples."""
    import equinox
    import quax
    from quax.examples.lora import LoraArray

    scale, plain = scale_of(network), plain_loss(network)
    wrapped = {
        name: LoraArray(w, rank=network.rank, key=jax.random.key(0))
        for name, w in network.kernels.items()
    }

    def loss(trainable: Tree, probe: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        kernels = {
            name: equinox.tree_at(
                lambda own: (own._w, own.a, own.b),
                held,
                (frozen["kernels"][name], trainable[name]["a"], trainable[name]["b"]),
            )
            for name, held in wrapped.items()
        }
        return quax.quaxify(plain)(kernels, probe, frozen["rest"], batch)

    folded = {
        name: {"a": scale * factor["a"], "b": factor["b"]}
        for name, factor in network.factors.items()
    }

    def factors(grads: Tree) -> Factors:
        return {n: {"a": scale * g["a"], "b": g["b"]} for n, g in grads.items()}

    frozen = {"kernels": network.kernels, "rest": network.rest}
    return Contender(loss, folded, network.probe, frozen, network.batch, factors)


PEERS: dict[str, Callable[[Network], Contender]] = {
    "nnx": nnx_lora,
    "qwix": qwix_lora,
    "quax": quax_lora,
}


def peers(
    network: Network, names: Sequence[str]
) -> tuple[dict[str, Contender], dict[str, str]]:
    """Makes what can be made.

    Args:
        network: What they run.
        names: Which are wanted.

    Returns:
        Contenders by name, and for each peer that cannot run the reason: it is not
        installed, or it refuses the network.
    """
    made, absent = {}, {}
    for name, make in PEERS.items():
        if name not in names:
            continue
        try:
            with quiet():
                made[name] = make(network)
        except ImportError as error:
            absent[name] = f"not installed ({error.name or error})"
        except Exception as error:  # a peer's own error is a result, not ours
            absent[name] = f"fails: {type(error).__name__}: {first_line(error)}"
    return made, absent


def first_line(error: BaseException) -> str:
    """The first line of an error's message."""
    return (str(error).strip().splitlines() or [""])[0][:200]
