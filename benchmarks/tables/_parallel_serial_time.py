"""Times of the adapted layers: bare, and with every adapter, merged and not."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

import lowrank as lrk
from benchmarks.study.encoder import load_cut
from benchmarks.study.placed import PLACED
from benchmarks.study.tasks import LENGTHS
from benchmarks.timing import combine, compare, in_processes

BARE, MERGED = "bare", "merged"


def times(given: Mapping[str, Any]) -> dict[str, Any]:
    """Medians and ratios to the bare layers, over fresh processes."""
    names = ("batch", "layers", "synthetic", "sizes", "rounds")
    args = {name: given[name] for name in names}
    where = "benchmarks.tables._parallel_serial_time:measure"
    return combine(in_processes(where, args, given["processes"])).metrics()


def measure(
    batch: int, layers: int, synthetic: bool, sizes: dict[str, int], rounds: int
) -> dict[str, Any]:
    """Times all of them side by side in this process."""
    cut = load_cut(layers, synthetic=synthetic)
    length = LENGTHS["tasks"]
    hidden = jax.random.normal(jax.random.key(0), (batch, length, cut.width))
    mask = jnp.ones((batch, length), jnp.int8)

    def ready(tx: lrk.Transform | None, state: Any) -> Any:
        """A jitted run of the layers; what was adapted is an argument."""

        def run(params: Any, state: Any, hidden: Any, mask: Any) -> Any:
            if tx is None:
                return cut.pool(params, hidden, mask)
            return lrk.lift(cut.pool)(tx.apply(params, state), hidden, mask)

        program = jax.jit(run)

        def with_own(params: Any) -> Any:
            """With weights of its own: those that others read too stay in caches."""
            own = jax.tree.map(jnp.copy, params)
            return lambda: program(own, state, hidden, mask)

        return with_own

    callables = {BARE: ready(None, ())(cut.params)}
    for name, size in sizes.items():
        tx = PLACED[name].make(cut, size)
        state = jax.jit(tx.init)(jax.random.key(1), cut.params)
        callables[name] = ready(tx, state)(cut.params)
        if PLACED[name].dense:
            plain = jax.jit(lambda p, s, tx=tx: lrk.materialize(tx.apply(p, s)))
            merged = plain(cut.params, state)
            callables[f"{name}-{MERGED}"] = ready(None, ())(merged)
    return compare(callables, rounds, baseline=BARE).as_dict()
