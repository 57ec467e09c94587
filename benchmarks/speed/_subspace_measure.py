"""What one fresh process measures of subspaces: agreement, then times side by side."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.speed._rram_measure import pin
from benchmarks.timing import compare

PASSES = "fastfood, log2 passes"
TOLERANCE = 1e-4


def step(
    widths: Sequence[int], batch: int, d: int, dense_d: int, rounds: int, seed: int
) -> dict[str, Any]:
    """Times a training step of every contender.

    Args:
        widths: Widths of the net, input first.
        batch: Images of a step.
        d: Dimensions.
        dense_d: Dimensions of the dense projection.
        rounds: Rounds of the comparison.
        seed: Of everything.

    Returns:
        The comparison as plain lists, the number of weights, and how far the moves of
        the two Fastfoods are apart, relative to the largest.
    """
    _start()
    key = jax.random.key(seed)
    params = _net(widths, jax.random.fold_in(key, 1))
    x = jax.random.normal(jax.random.fold_in(key, 2), (batch, widths[0]))
    txs = transforms(d, dense_d)
    states = {name: jax.jit(tx.init)(key, params) for name, tx in txs.items()}
    difference = _difference(txs, states["fastfood"], params, d)
    if difference > TOLERANCE:
        raise RuntimeError(f"speed/subspace: the Fastfoods differ by {difference}.")
    calls = {"all weights": _stepper(lrk.full(select=_every), params, x, key)}
    states[PASSES] = states["fastfood"]  # its own passes, the same numbers
    calls |= {n: _stepper(tx, params, x, key, states[n]) for n, tx in txs.items()}
    times = compare(calls, rounds, baseline="all weights", seed=seed).as_dict()
    weights = sum(x.size for x in jax.tree.leaves(params))
    return {"times": times, "weights": weights, "difference": difference}


def growth(bits: Sequence[int], d: int, rounds: int, seed: int) -> dict[str, Any]:
    """Times `P z` with its transpose for nets of `2^bits` weights.

    Args:
        bits: log2 of the sizes.
        d: Dimensions.
        rounds: Rounds of the comparison.
        seed: Of everything.

    Returns:
        The comparison as plain lists; its names are `layout 2^bits`.
    """
    _start()
    layouts = {
        "fastfood": lrk.subspace.fastfood(),
        "fastfood_stacked": lrk.subspace.fastfood_stacked(),
    }
    calls = {
        f"{name} 2^{n}": _there_and_back(projection, 2**n, d, seed)
        for name, projection in layouts.items()
        for n in bits
    }
    return {"times": compare(calls, rounds, seed=seed).as_dict()}


def transforms(d: int, dense_d: int) -> dict[str, lrk.Transform]:
    """The contenders that train `z` alone."""
    own = lrk.subspace
    named = {
        "fastfood": own.fastfood(),
        "fastfood_stacked": own.fastfood_stacked(),
        "sparse": own.sparse(),
        "gather": own.gather(),
        PASSES: by_passes(),
    }
    made = {n: own.random(d, p, select=_every) for n, p in named.items()}
    return made | {"dense": own.random(dense_d, own.dense(), select=_every)}


def by_passes() -> lrk.subspace.Projection:
    """Fastfood over the whole net with butterflies, on the state of `fastfood`."""
    base = lrk.subspace.fastfood()

    def apply(fixed: Any, z: jax.Array, sizes: Any) -> dict[str, jax.Array]:
        shared = fixed["subspace"]
        gain = shared["gain"].reshape(-1)
        width = 1 << (z.size - 1).bit_length()
        mixed = butterflies(jnp.pad(z * shared["flip"], (0, width - z.size)))
        order = shared["order"].reshape(-1)
        vector = butterflies(gain * mixed[order])
        ends = np.cumsum(list(sizes.values()))
        parts = jnp.split(vector, ends)[: len(ends)]
        return {
            path: part * fixed[path]["scale"]
            for path, part in zip(sizes, parts, strict=True)
        }

    return base._replace(apply=apply)


def butterflies(x: jax.Array) -> jax.Array:
    """The Walsh-Hadamard transform of a vector in `log2 L` passes of sums."""
    half = 1
    while half < x.size:
        pairs = x.reshape(-1, 2, half)
        top, low = pairs[:, 0], pairs[:, 1]
        x = jnp.stack([top + low, top - low], axis=1).reshape(-1)
        half *= 2
    return x


def _start() -> None:
    pin(1)
    jax.config.update("jax_enable_compilation_cache", False)


def _every(path: str, leaf: Any) -> bool:
    del path, leaf
    return True


def _net(widths: Sequence[int], key: jax.Array) -> dict[str, jax.Array]:
    shapes = zip(widths[:-1], widths[1:], strict=True)
    return {
        f"w{i}": jax.random.normal(jax.random.fold_in(key, i), s) * (2 / s[0]) ** 0.5
        for i, s in enumerate(shapes)
    }


def _model(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    *hidden, last = params.values()
    for w in hidden:
        x = jax.nn.relu(x @ w)
    return x @ last


def _stepper(
    tx: lrk.Transform,
    params: Any,
    x: jax.Array,
    key: jax.Array,
    state: lrk.State | None = None,
) -> Callable[[], Any]:
    """A step of Adam that keeps its own state between calls."""
    trainable, fixed = state or jax.jit(tx.init)(key, params)
    optimizer = optax.adam(1e-3, b2=0.99)

    def loss(trainable: Any, params: Any, fixed: Any) -> jax.Array:
        adapted = tx.apply(params, lrk.State(trainable, fixed))
        return jnp.mean(jax.nn.logsumexp(lrk.lift(_model)(adapted, x), axis=-1))

    @jax.jit
    def one(trainable: Any, moments: Any, params: Any, fixed: Any) -> Any:
        grads = jax.grad(loss)(trainable, params, fixed)
        updates, moments = optimizer.update(grads, moments, trainable)
        return optax.apply_updates(trainable, updates), moments

    held = [trainable, optimizer.init(trainable)]

    def call() -> Any:
        held[:] = one(*held, params, fixed)
        return held

    return call


def _difference(
    txs: dict[str, lrk.Transform], state: lrk.State, params: Any, d: int
) -> float:
    """How far the moves by products and by passes are apart."""
    z = jnp.sin(jnp.arange(1.0, d + 1))
    moved = state._replace(trainable={"subspace": {"z": z}})
    one, other = (
        jax.tree.map(
            jnp.subtract, lrk.materialize(txs[name].apply(params, moved)), params
        )
        for name in ("fastfood", PASSES)
    )
    gaps = jax.tree.map(lambda a, b: jnp.max(jnp.abs(a - b)), one, other)
    sizes = jax.tree.map(lambda a: jnp.max(jnp.abs(a)), one)
    return float(max(jax.tree.leaves(gaps)) / max(jax.tree.leaves(sizes)))


def _there_and_back(
    projection: lrk.subspace.Projection, total: int, d: int, seed: int
) -> Callable[[], Any]:
    """One product and one with the transpose."""
    sizes = {"w": total}
    fixed = jax.jit(lambda key: projection.draw(key, sizes, d))(jax.random.key(seed))
    z = jnp.sin(jnp.arange(1.0, d + 1))

    @jax.jit
    def both(fixed: Any, z: jax.Array) -> Any:
        move, back = jax.vjp(lambda z: projection.apply(fixed, z, sizes)["w"], z)
        return back(move)

    return lambda: both(fixed, z)
