"""The network of `speed/many`, its adapters, and the ways lowrank runs them."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.stats import generator

Tree = Any
Factors = dict[str, dict[str, np.ndarray]]
Call = Callable[[], Any]

LEARNING_RATE = 1e-3
RATE = optax.adam(LEARNING_RATE)


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of a problem.

    Attributes:
        width: Size of an activation; a kernel is `[width, width]`.
        layers: Residual layers `x + tanh(x W)`.
        rank: Rank of the adapters.
        adapters: How many there are.
        examples: Examples, of each adapter in training, of a batch in a mixed one.
        length: Tokens in an example.
    """

    width: int = 512
    layers: int = 4
    rank: int = 8
    adapters: int = 8
    examples: int = 8
    length: int = 16


@dataclasses.dataclass(frozen=True)
class Problem:
    """A base, adapters for it, and data.

    Attributes:
        sizes: Its sizes.
        params: The kernels by name.
        factors: For each adapter the factors by name, neither of them zero.
        x: Inputs `[adapters, examples, length, width]`.
        y: Targets of the same shape.
    """

    sizes: Sizes
    params: dict[str, jax.Array]
    factors: list[Factors]
    x: np.ndarray
    y: np.ndarray


def problem(sizes: Sizes, seed: int) -> Problem:
    """Random numbers in the range that training gives them."""
    draw = generator(seed)
    n, r = sizes.width, sizes.rank

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return np.asarray(scale * draw.standard_normal(shape), np.float32)

    names = [f"layer{i}" for i in range(sizes.layers)]
    params = {k: jnp.asarray(normal(n, n, scale=n**-0.5)) for k in names}
    factors = [
        {
            k: {
                "a": normal(n, r, scale=n**-0.5),
                "b": normal(r, n, scale=0.1 * n**-0.5),
            }
            for k in names
        }
        for _ in range(sizes.adapters)
    ]
    shape = (sizes.adapters, sizes.examples, sizes.length, n)
    return Problem(sizes, params, factors, normal(*shape), normal(*shape))


def model(params: Tree, x: jax.Array) -> jax.Array:
    """Residual layers; the axes in front of the last are examples and tokens."""
    for kernel in params.values():
        x = x + jnp.tanh(x @ kernel)
    return x


def loss(params: Tree, batch: Tree, key: Any) -> jax.Array:
    """Mean square error."""
    del key
    x, y = batch
    return jnp.mean((model(params, x) - y) ** 2)


def transform(given: Problem) -> lrk.Transform:
    """LoRA of all kernels, with a scale of 1."""
    return lrk.lora(given.sizes.rank)


def states(given: Problem) -> list[lrk.State]:
    """The states of all adapters."""
    fixed = {k: {"scale": np.float32(1)} for k in given.params}
    return [lrk.State(own, fixed) for own in given.factors]


def trees(given: Problem) -> list[Tree]:
    """The adapted trees."""
    tx = transform(given)
    return [tx.apply(given.params, state) for state in states(given)]


def trainer(given: Problem, method: str) -> Call:
    """Steps of all adapters in one program; each call is one step and gives losses."""
    return _trainers(given, method, [slice(None)])[0]


def one_by_one(given: Problem) -> Call:
    """The same, one adapter after another in a program for one, as `fit` makes it."""
    parts = [slice(i, i + 1) for i in range(given.sizes.adapters)]
    calls = _trainers(given, "auto", parts)
    return lambda: jnp.concatenate([call() for call in calls])


def _trainers(given: Problem, method: str, parts: Sequence[slice]) -> list[Call]:
    """Steps of some adapters at a time; one compiled program for all parts."""
    one = lrk.training.step(loss, transform(given), RATE, method=method)
    update = jax.jit(one.update, donate_argnums=2)

    def part(rows: slice) -> Call:
        own = lrk.stack(states(given)[rows])
        read, carry = one.init(own, steps=np.iinfo(np.int32).max)
        held = [jax.tree.map(jnp.array, carry)]  # it will be donated
        batch = jnp.asarray(given.x[rows]), jnp.asarray(given.y[rows])

        def run() -> jax.Array:
            held[0], metrics = update(given.params, read, held[0], batch)
            return metrics["loss"]

        return run

    return [part(rows) for rows in parts]


def ids_of(given: Problem, seed: int) -> np.ndarray:
    """Which adapter each example of a mixed batch has: all of them, in any order."""
    number = np.arange(given.sizes.examples) % given.sizes.adapters
    return generator(seed).permutation(number).astype(np.int32)


def mixed(given: Problem, ids: np.ndarray) -> dict[str, Call]:
    """Ways to run a batch forward; `routed` and `in turn` serve all adapters."""
    x, own = jnp.asarray(given.x[0]), trees(given)
    bank, where = lrk.bank(own), jnp.asarray(ids)
    lifted = jax.jit(lrk.lift(model))
    groups = [np.flatnonzero(ids == i) for i in range(len(own))]
    parts = [
        (tree, x[rows]) for tree, rows in zip(own, groups, strict=True) if len(rows)
    ]

    @jax.jit
    def routed(bank: lrk.Bank, ids: jax.Array, x: jax.Array) -> jax.Array:
        tree = lrk.route(bank, ids)
        return jax.vmap(lrk.lift(model), in_axes=(lrk.in_axes(tree), 0))(tree, x)

    plain = jax.jit(model)
    return {
        "single": lambda: lifted(own[0], x),
        "routed": lambda: routed(bank, where, x),
        "in turn": lambda: [lifted(tree, part) for tree, part in parts],
        "base": lambda: plain(given.params, x),
    }


def mixed_gradients(given: Problem, ids: np.ndarray) -> dict[str, Call]:
    """Losses of one batch and gradients in the factors: of one adapter, and of all.

    All are routed in three ways: by `route` from a bank that `tx.apply` makes of the
    stacked states, by gathering the states themselves, and by `route` from a list of
    trees, each a slice of the stacked states.
    """
    x, y, tx = jnp.asarray(given.x[0]), jnp.asarray(given.y[0]), transform(given)
    own, where = states(given), jnp.asarray(ids)
    stacked, params = lrk.stack(own), given.params
    slots = lrk.in_axes(lrk.bank(trees(given)).tree)

    def apart(tree: Tree, x: jax.Array) -> jax.Array:
        return jax.vmap(lrk.lift(model), in_axes=(lrk.in_axes(tree), 0))(tree, x)

    def single(params: Tree, state: lrk.State, x: jax.Array) -> jax.Array:
        return lrk.lift(model)(tx.apply(params, state), x)

    def routed(params: Tree, state: lrk.State, x: jax.Array) -> jax.Array:
        side_by_side = jax.vmap(tx.apply, in_axes=(None, 0), out_axes=slots)
        bank = lrk.Bank(side_by_side(params, state))
        return apart(lrk.route(bank, where), x)

    def gathered(params: Tree, state: lrk.State, x: jax.Array) -> jax.Array:
        each = jax.tree.map(lambda leaf: leaf[where], state)
        return jax.vmap(single, in_axes=(None, 0, 0))(params, each, x)

    def listed(params: Tree, state: lrk.State, x: jax.Array) -> jax.Array:
        parts = [tx.apply(params, part) for part in lrk.unstack(state)]
        return apart(lrk.route(parts, where), x)

    ways = {"routed": routed, "gathered": gathered, "listed": listed}
    first = jax.tree.map(jnp.asarray, own[0])
    calls = {"single": (_slope(single), first)}
    calls |= {name: (_slope(run), stacked) for name, run in ways.items()}
    return {
        name: lambda run=run, state=state: run(*state, params, x, y)
        for name, (run, state) in calls.items()
    }


def _slope(run: Callable[..., jax.Array]) -> Callable[..., Any]:
    """Loss and gradient in the trainable part of a state, compiled."""

    def error(trainable: Tree, fixed: Tree, params: Tree, x: Tree, y: Tree) -> Any:
        return jnp.mean((run(params, lrk.State(trainable, fixed), x) - y) ** 2)

    return jax.jit(jax.value_and_grad(error))


def gradients_in_turn(given: Problem, ids: np.ndarray) -> tuple[np.ndarray, Tree]:
    """What `mixed_gradients` gives of all adapters, from each with its examples."""
    tx = transform(given)
    slope = _slope(lambda params, state, x: lrk.lift(model)(tx.apply(params, state), x))
    loss, found = 0.0, []
    for i, state in enumerate(states(given)):
        rows = np.flatnonzero(ids == i)
        share = len(rows) / len(ids)
        x, y = given.x[0][rows], given.y[0][rows]
        if not len(rows):
            found.append(jax.tree.map(np.zeros_like, state.trainable))
            continue
        own, gradient = slope(*state, given.params, x, y)
        loss += share * float(own)
        found.append(jax.tree.map(lambda g, s=share: s * np.asarray(g), gradient))
    return np.asarray(loss), jax.tree.map(lambda *gs: np.stack(gs), *found)


def swaps(given: Problem) -> dict[str, Call]:
    """All weights in place of others, and an adapter in the place of another."""
    own = trees(given)
    bank, last = lrk.bank(own), given.sizes.adapters - 1
    new = jax.tree.map(jnp.asarray, states(given)[0])
    held, slot = [lrk.stack(states(given))], jnp.asarray(last)

    @functools.partial(jax.jit, donate_argnums=0)
    def write(stacked: lrk.State, slot: jax.Array, new: lrk.State) -> lrk.State:
        return jax.tree.map(lambda x, own: x.at[slot].set(own), stacked, new)

    def in_place() -> lrk.State:
        held[0] = write(held[0], slot, new)
        return held[0]

    jitted = jax.jit(lambda bank, slot, tree: bank.set(slot, tree))
    copy = jax.jit(lambda params: jax.tree.map(jnp.copy, params))
    return {
        "full copy": lambda: copy(given.params),
        "in place": in_place,
        "set": lambda: bank.set(last, own[0]),
        "set, jitted": lambda: jitted(bank, slot, own[0]),
    }
