"""The merges of lowrank that are timed, each compiled once on factors alone."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.stats import generator

PATH = "kernel"
TRIMMED = 0.2
DROPPED = 0.5
Merge = Callable[[list[Any], Any, int], Any]


@dataclasses.dataclass(frozen=True)
class Problem:
    """Adapters over one kernel `[size, size]`, on the host.

    Attributes:
        size: Width of the kernel.
        rank: Rank of each adapter, and of a truncated merge.
        factors: For each adapter `a: [size, rank]` and `b: [rank, size]`; the adapter
            adds `a b`.
        weights: One number for each adapter.
    """

    size: int
    rank: int
    factors: list[tuple[np.ndarray, np.ndarray]]
    weights: list[float]


def problem(size: int, adapters: int, rank: int, seed: int) -> Problem:
    """Adapters with normal factors, and weights between 0.3 and 0.7."""
    draw = generator(seed)

    def factor(*shape: int) -> np.ndarray:
        return draw.standard_normal(shape).astype(np.float32) / rank**0.5

    factors = [(factor(size, rank), factor(rank, size)) for _ in range(adapters)]
    weights = np.linspace(0.3, 0.7, adapters).tolist()
    return Problem(size, rank, factors, weights)


def _named(name: str, **options: Any) -> Merge:
    """A merge of the library, looked up when it is run."""

    def run(trees: list[Any], weights: Any, rank: int) -> Any:
        own = dict(options)
        if name == "svd":
            own["rank"] = rank
        if name == "dare":
            own["key"] = jax.random.key(0)
        return getattr(lrk.merging, name)(trees, weights, **own)

    return run


def _then_svd(first: Merge) -> Merge:
    """A merge whose result is truncated."""

    def run(trees: list[Any], weights: Any, rank: int) -> Any:
        return lrk.merging.svd([first(trees, weights, rank)], rank=rank)

    return run


def _core_space(trees: list[Any], weights: Any, rank: int) -> Any:
    """A sum in the core, so that the way there and back is what is timed."""
    del rank
    return lrk.merging.core_space(trees, weights, merge=lrk.merging.task_arithmetic)


_PARTS = {"conformance": "peft"}
_WHOLE = {"conformance": "peft_svd"}
_TRIM = {"density": TRIMMED}
_DROP = {"density": DROPPED}

# By the name in the report; the part before the comma is the name in the library.
METHODS: Mapping[str, Merge] = {
    "svd": _named("svd"),
    "concat": _named("concat"),
    "task_arithmetic": _named("task_arithmetic"),
    "linear": _named("linear"),
    "ties": _named("ties", **_TRIM, **_PARTS),
    "magnitude": _named("magnitude", **_TRIM, **_PARTS),
    "dare": _named("dare", **_DROP, **_PARTS),
    "dare with election": _named("dare", elect=True, **_DROP, **_PARTS),
    "ties, svd": _then_svd(_named("ties", **_TRIM, **_WHOLE)),
    "magnitude, svd": _then_svd(_named("magnitude", **_TRIM, **_WHOLE)),
    "dare, svd": _then_svd(_named("dare", **_DROP, **_WHOLE)),
    "dare with election, svd": _then_svd(_named("dare", elect=True, **_DROP, **_WHOLE)),
    "knots": _named("knots", density=TRIMMED),
    "core_space": _core_space,
    "tsv": _named("tsv"),
    "iso": _named("iso"),
}
# Those that form nothing of the size of a weight.
FACTORED = (
    "svd", "concat", "task_arithmetic", "linear", "ties", "magnitude", "dare",
    "dare with election", "knots", "core_space", "tsv", "iso",
)  # fmt: skip


def absent(name: str) -> str | None:
    """Why a merge cannot be run, or None."""
    function = name.replace(",", " ").split()[0]
    return None if hasattr(lrk.merging, function) else f"no merging.{function}"


def arguments(given: Problem) -> tuple[Any, Any, Any]:
    """Base, factors and weights on the device."""
    factors = [(jnp.asarray(a), jnp.asarray(b)) for a, b in given.factors]
    base = jnp.zeros((given.size, given.size))
    return base, factors, jnp.asarray(given.weights, jnp.float32)


def compiled(name: str, given: Problem) -> Any:
    """The merge, compiled from base, factors and weights to the merged terms.

    No merge reads the base, so the compiled program does not take it.
    """

    def run(base: Any, factors: Any, weights: Any) -> Any:
        trees = [{PATH: lrk.LowRank(base, a, b)} for a, b in factors]
        merged = METHODS[name](trees, weights, given.rank)[PATH]
        return lrk.split(merged)[1]

    return jax.jit(run).lower(*arguments(given)).compile()


def change(terms: Any) -> np.ndarray:
    """What merged terms add to the base, `[in, out]`."""
    return np.asarray(sum(term.delta() for term in terms))
