"""Seconds of what many adapters are made of, on the machine at hand."""

import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.stats import generator
from benchmarks.tables._scaling_cost import Sizes
from benchmarks.tables._scaling_measure import _model, _shapes
from lowrank import training

VALUE, KEPT = 4, 12  # bytes a trained number: its value; with Adam's two moments


class Step(NamedTuple):
    """What a step computes.

    Attributes:
        sizes: Sizes of the base.
        tokens: Tokens of one adapter.
    """

    sizes: Sizes
    tokens: int

    @property
    def flops(self) -> float:
        """Of one adapter: forward, again in the rematerialised pass, and backward.

        Two for each number of a kernel and token in each of the three passes; the
        frozen kernels have no gradient. Attention scores are not counted.
        """
        kernels = self.sizes.layers * self.sizes.layer
        return self.tokens * (6 * kernels + 4 * self.sizes.table)


def measure(
    sizes: list[int], rank: int, batch: int, length: int, adapters: int, repeats: int
) -> dict[str, float]:
    """Times each piece, the median of some repeats; what compiles is not timed.

    Args:
        sizes: The fields of `Sizes`.
        rank: Rank of the adapters.
        batch: Texts of each adapter.
        length: Tokens in a text.
        adapters: The larger number of adapters, above 1.
        repeats: How often each piece is timed.

    Returns:
        Seconds a byte, a step and a swap; times of one adapter and of many give what
        each more of them costs.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    own = Sizes(*sizes)
    params = _filled(_shapes(own), seed=0)
    tx = lrk.lora(rank, select=lrk.matching(r"^layers.*kernel$"))
    numbers = own.adapter(rank)
    step = Step(own, batch * length)
    few, many = (
        _steps(tx, params, own.vocab, (n, batch, length), repeats)
        for n in (1, adapters)
    )
    each = (many["seconds"] - few["seconds"]) / (adapters - 1)
    saved = KEPT * numbers * (adapters - 1)
    base = sum(x.nbytes for x in jax.tree.leaves(params))
    return {
        "step_s": few["seconds"],
        "step_each_s": each,
        "flops_s": step.flops / each,
        "save_s": few["save"],
        "save_s_byte": (many["save"] - few["save"]) / saved,
        "restore_s": few["restore"],
        "restore_s_byte": (many["restore"] - few["restore"]) / saved,
        "swap_s": _swap(tx, params, adapters, repeats),
        "adapter_bytes": VALUE * numbers,
        "fingerprint_s_byte": _timed(lambda: training.fingerprint(params), repeats)
        / base,
    }


def _filled(shapes: Any, seed: int) -> Any:
    """Small random numbers in a tree of shapes."""
    draw = generator(seed)

    def fill(x: Any) -> jax.Array:
        return jnp.asarray(0.02 * draw.standard_normal(x.shape), x.dtype)

    return jax.tree.map(fill, shapes)


def _timed(run: Callable[[], Any], repeats: int) -> float:
    """The median of the seconds that a call takes, after one that is not timed."""
    found = []
    for _ in range(repeats + 1):
        start = time.perf_counter()
        jax.block_until_ready(run())
        found.append(time.perf_counter() - start)
    return statistics.median(found[1:])


def _steps(
    tx: lrk.Transform,
    params: Any,
    vocab: int,
    shape: tuple[int, int, int],
    repeats: int,
) -> dict[str, float]:
    """Seconds of a step of some adapters, and of saving and restoring them."""

    def loss(params: Any, ids: jax.Array, key: Any) -> jax.Array:
        del key
        return jax.nn.logsumexp(_model(params, ids, None), axis=-1).mean()

    one = training.step(loss, tx, optax.adam(1e-4))
    states = [tx.init(jax.random.key(i), params) for i in range(shape[0])]
    given, carry = one.init(states, steps=np.iinfo(np.int32).max)
    ids = jnp.asarray(generator(1).integers(0, vocab, shape), jnp.int32)
    update = jax.jit(one.update, donate_argnums=2)
    held = [jax.tree.map(jnp.array, carry)]

    def run() -> jax.Array:
        held[0], metrics = update(params, given, held[0], ids)
        return metrics["loss"]

    seconds = _timed(run, repeats)
    with tempfile.TemporaryDirectory() as folder:
        hash_ = training.fingerprint(params)
        with training.Checkpoint(folder, hash_, keep=1) as checkpoint:
            number = iter(range(repeats + 1))

            def save() -> None:
                checkpoint.save(next(number), held[0])
                checkpoint.wait()

            save_s = _timed(save, repeats)
            restore_s = _timed(lambda: checkpoint.restore(held[0]), repeats)
    return {"seconds": seconds, "save": save_s, "restore": restore_s}


def _swap(tx: lrk.Transform, params: Any, adapters: int, repeats: int) -> float:
    """Seconds to write one adapter in the place of another, in place."""
    states = [tx.init(jax.random.key(i), params) for i in range(adapters)]
    held = [lrk.stack(states)]

    def write(stacked: lrk.State, slot: jax.Array, new: lrk.State) -> lrk.State:
        return jax.tree.map(lambda x, own: x.at[slot].set(own), stacked, new)

    compiled, slot = jax.jit(write, donate_argnums=0), jnp.asarray(adapters - 1)

    def run() -> lrk.State:
        held[0] = compiled(held[0], slot, states[0])
        return held[0]

    return _timed(run, repeats)
