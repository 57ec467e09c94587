"""The contenders of `speed/peers` that run on JAX: one model, adapted in six ways."""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import lowrank as lrk
from benchmarks.speed._contenders import flattened, naive
from benchmarks.speed._measure import build
from benchmarks.speed._peers import quiet
from benchmarks.speed._peers_nets import Factors, Problem, paths

Tree = Any
LEARNING_RATE = 1e-4
DECAY = 0.9
ADAM = optax.adam(LEARNING_RATE, b1=DECAY)


@dataclasses.dataclass(frozen=True)
class Contender:
    """One way to train the adapters of a model.

    Attributes:
        loss: `loss(trainable, frozen, batch)`, a scalar.
        trainable: What Adam updates, in float32.
        frozen: What it does not.
        factors: Turns a gradient in `trainable` into one in the factors by path.
    """

    loss: Callable[[Tree, Tree, Tree], jax.Array]
    trainable: Tree
    frozen: Tree
    factors: Callable[[Tree], Factors]


def lowrank(problem: Problem) -> Contender:
    """The unmodified model under `lrk.lift`."""
    apply, params = problem.params()
    select = lrk.matching(problem.net.pattern + "/kernel$")
    tx = lrk.lora(problem.rank, alpha=problem.alpha, select=select)
    fixed = tx.init(jax.random.key(0), params).fixed

    def plain(params: Tree, batch: Tree) -> jax.Array:
        return problem.loss(partial(apply, params), batch)

    def loss(trainable: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        state = lrk.State(trainable, frozen["fixed"])
        return lrk.lift(plain)(tx.apply(frozen["params"], state), batch)

    frozen = {"params": params, "fixed": fixed}
    return Contender(loss, problem.factors, frozen, lambda grads: grads)


def full(problem: Problem) -> Contender:
    """The unmodified model, all of it trained, from the same function."""
    apply, params = problem.params()
    params = jax.tree.map(lambda x: x.astype(jnp.float32), params)
    frozen = {"pooler": params.pop("pooler")} if "pooler" in params else {}
    for path, factor in problem.factors.items():
        *parts, last = path.split("/")
        node = params
        for part in parts:
            node = node[part]
        change = np.float32(problem.scale) * (factor["a"] @ factor["b"])
        node[last] = node[last] + change

    def loss(trainable: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        return problem.loss(partial(apply, trainable | frozen), batch)

    def factors(grads: Tree) -> Factors:
        found = {}
        for path, factor in problem.factors.items():
            node = grads
            for part in path.split("/"):
                node = node[part]
            a, b = factor["a"], factor["b"]
            both = {"a": node @ b.T, "b": a.T @ node}
            found[path] = {n: problem.scale * x for n, x in both.items()}
        return found

    return Contender(loss, params, frozen, factors)


class ByHand(nnx.Module):
    """A dense layer with an adapter, its product written in plain JAX."""

    def __init__(self, linear: Any, factor: Any, product: Any, problem: Problem):
        """Takes over the weights of a dense layer."""
        self.kernel, self.bias = linear.kernel, linear.bias
        self.a, self.b = (nnx.LoRAParam(jnp.asarray(factor[n])) for n in ("a", "b"))
        self.product, self.scale = product, problem.scale
        self.dtype = jnp.dtype(problem.dtype)

    def __call__(self, x: jax.Array) -> jax.Array:
        """The product and the bias."""
        factor = {n: getattr(self, n)[...].astype(self.dtype) for n in ("a", "b")}
        y = self.product(self.kernel[...], factor, self.scale, x)
        return y if self.bias is None else y + self.bias[...].reshape(1, 1, -1)


def by_hand(product: Callable[..., jax.Array], problem: Problem) -> Contender:
    """The model with layers written by hand in the place of its dense ones."""

    def make(linear: Any, factor: Any) -> ByHand:
        return ByHand(linear, factor, product, problem)

    return _from_module(problem, _replaced(problem, make))


def nnx_lora(problem: Problem) -> Contender:
    """The model with `nnx.LoRA` around its dense layers; the scale is folded in `a`."""
    rank, scale = problem.rank, problem.scale

    def make(linear: Any, factor: Any) -> nnx.LoRA:
        n, m = linear.kernel.shape
        layer = nnx.LoRA(
            n, rank, m, base_module=linear, dtype=problem.dtype, rngs=nnx.Rngs(0)
        )
        layer.lora_a[...] = jnp.asarray(scale * factor["a"])
        layer.lora_b[...] = jnp.asarray(factor["b"])
        return layer

    return _from_module(problem, _replaced(problem, make), folded=scale)


def qwix_lora(problem: Problem) -> Contender:
    """The model under qwix's `LoraProvider`.

    Its adapters have the type of the kernel and are not cast: where products are not
    in float32, the factors are cast before they are handed to it.
    """
    import qwix

    provider = qwix.LoraProvider(
        module_path=problem.net.pattern, rank=problem.rank, alpha=problem.alpha
    )
    ids = problem.batch["ids"]
    with quiet():
        rngs = nnx.Rngs(0)
        model: Any = qwix.apply_lora_to_model(problem.model, provider, ids, rngs=rngs)
    for path, (_, layer) in paths(model, problem.net.pattern).items():
        for which in ("a", "b"):
            factor = problem.factors[f"{path}/kernel"][which]
            name = f"kernel_lora_{which}"
            setattr(layer, name, nnx.LoRAParam(jnp.asarray(factor)))
    return _from_module(problem, model)


def _replaced(problem: Problem, make: Callable[[Any, Any], Any]) -> nnx.Module:
    """A copy of the model with other modules in the place of its dense layers."""
    model = nnx.clone(problem.model)
    for path, (parts, linear) in paths(model, problem.net.pattern).items():
        node: Any = model
        for part in parts[:-1]:
            node = getattr(node, part) if isinstance(part, str) else node[part]
        setattr(node, parts[-1], make(linear, problem.factors[f"{path}/kernel"]))
    return model


def _from_module(problem: Problem, model: Any, folded: float = 1.0) -> Contender:
    """A contender from a module that holds its factors as `nnx.LoRAParam`."""
    graph, trainable, frozen = nnx.split(model, nnx.LoRAParam, ...)

    def loss(trainable: Tree, frozen: Tree, batch: Tree) -> jax.Array:
        cast = jax.tree.map(lambda x: x.astype(problem.dtype), trainable)
        merged = nnx.merge(graph, cast, frozen)
        with quiet():
            return problem.loss(merged, batch)

    def factors(grads: Tree) -> Factors:
        found: Factors = {}
        for parts, leaf in nnx.to_flat_state(grads):
            *parts, last = map(str, parts)
            path, which = "/".join(parts), last[-1]
            value = leaf[...] * (folded if which == "a" else 1.0)
            found.setdefault(f"{path}/kernel", {})[which] = value
        return found

    return Contender(loss, trainable, frozen, factors)


MAKERS: dict[str, Callable[[Problem], Contender]] = {
    "flat": partial(by_hand, flattened),
    "lowrank": lowrank,
    "naive": partial(by_hand, naive),
    "nnx": nnx_lora,
    "qwix": qwix_lora,
    "full": full,
}


class Running:
    """A compiled training step with its state, which each call moves on.

    Attributes:
        factors: See `Contender`.
    """

    def __init__(self, contender: Contender, batch: Tree) -> None:
        """Compiles value, gradient and Adam, in place."""
        gradient = jax.value_and_grad(contender.loss)

        def step(trainable: Tree, memory: Tree, frozen: Tree, batch: Tree) -> Any:
            loss, grads = gradient(trainable, frozen, batch)
            updates, memory = ADAM.update(grads, memory)
            return optax.apply_updates(trainable, updates), memory, loss

        self._trained = jax.tree.map(jnp.array, contender.trainable)  # to be donated
        self._memory: Any = ADAM.init(self._trained)
        self._rest = (contender.frozen, batch)
        args = (self._trained, self._memory, *self._rest)
        program = build(step, args, donate_argnums=(0, 1))
        self._compiled, self._costs = program.compiled, program.costs
        self.factors = contender.factors

    def __call__(self) -> jax.Array:
        """One step; gives the loss before it."""
        args = (self._trained, self._memory, *self._rest)
        self._trained, self._memory, loss = self._compiled(*args)
        return jax.block_until_ready((loss, self._trained, self._memory))[0]

    def costs(self) -> dict[str, float]:
        """What it took to make the program, and what it needs."""
        memory = self._compiled.memory_analysis()
        argument = memory.argument_size_in_bytes / 1e6
        return self._costs | {"argument_mb": argument}

    def gradient(self) -> Factors:
        """The gradient of the first step, when no other has been made.

        Adam's first moment is then `1 - DECAY` times it.
        """
        adam, *_ = self._memory
        found = self.factors(jax.device_get(adam.mu))
        return {
            path: {n: np.asarray(x) / (1 - DECAY) for n, x in own.items()}
            for path, own in found.items()
        }
