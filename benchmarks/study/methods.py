"""The methods of the studies: transforms, what they train, and the masks compared."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks.study.encoder import Cut, kernels

SCALE = 2.0  # alpha / rank, as in the authors' scripts
ATTENTION = "/attention/"


class Method(NamedTuple):
    """A method of the tables.

    Attributes:
        title: What tables call it.
        kind: Which transform it trains: a key of `MAKERS`.
        trains_a: Whether `A` is trained.
        mask: How its mask on `B` is found, or an empty string for none.
        density: Share of `B` that the mask keeps.
        steps: Its steps, as a multiple of the others'.
        rank: Rank that it trains; 0 for the rank of the study.
        only: A pattern that a path must hold to be trained; empty for all.
        fresh_a: Whether its `A` is drawn anew after its mask was found.
        draw: How its `A` is drawn, a key of `DRAWS`; empty for LoRA's own uniform one.
        shared_a: Whether all tasks of a seed have one `A`.
    """

    title: str
    kind: str = "lora"
    trains_a: bool = False
    mask: str = ""
    density: float = 1.0
    steps: int = 1
    rank: int = 0
    only: str = ""
    fresh_a: bool = False
    draw: str = ""
    shared_a: bool = False


HEADLINE = {
    "lora": Method("LoRA", trains_a=True),
    "lori-d": Method("LoRI-D"),
    "lori-s": Method("LoRI-S: largest |B|, all layers", mask="model", density=0.1),
    "random-leaf": Method("random, same counts per matrix", mask="leaf", density=0.1),
    "random": Method("random, anywhere", mask="random", density=0.1),
    "smallest": Method("smallest |B|", mask="smallest", density=0.1),
    "gradient": Method("largest |gradient| at init", mask="gradient", density=0.1),
    "other-task": Method("another task's mask", mask="other", density=0.1),
    "kept": Method("LoRI's mask, B kept", mask="kept", density=0.1),
    "redrawn": Method(
        "LoRI's mask, A drawn anew", mask="model", density=0.1, fresh_a=True
    ),
    "lora-small": Method(
        "LoRA, rank 1, attention only", trains_a=True, rank=1, only=ATTENTION
    ),
    "lora-twice": Method("LoRA, twice the steps", trains_a=True, steps=2),
    "lori-d-twice": Method("LoRI-D, twice the steps", steps=2),
    "dora": Method("DoRA", kind="dora", trains_a=True),
    "full": Method("full fine-tuning", kind="full"),
}
DENSITIES = (0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.01)
SWEEP = {
    **{
        f"density-{density:g}": Method(
            f"LoRI-S, density {density:g}", mask="model", density=density
        )
        for density in DENSITIES
    },
    **{
        f"scope-{scope}": Method(
            f"LoRI-S, scope {scope}", mask=f"scope-{scope}", density=0.1
        )
        for scope in ("projection", "layer", "matrix")
    },
}
DRAW_TITLES = {
    "": "uniform",
    "gaussian": "Gaussian",
    "orthogonal": "orthogonal",
    "hadamard": "subsampled Hadamard",
}
PROJECTION = {
    f"lori-d{'-' * bool(draw)}{draw}{'-shared' * shared}": Method(
        f"{title}, {'one for all tasks' if shared else 'one for each task'}",
        draw=draw,
        shared_a=shared,
    )
    for draw, title in DRAW_TITLES.items()
    for shared in (False, True)
}
# What to adapt with about as many numbers, and how many ranks: LoRA's own questions.
PLACES = {
    "query": ("query", "self/query", 8),
    "key": ("key", "self/key", 8),
    "value": ("value", "self/value", 8),
    "out": ("attention's output", "attention/output", 8),
    "query-value": ("query and value", "self/(query|value)", 4),
    "attention": ("all of attention", ATTENTION, 2),
    "wide": ("both feed-forward matrices", r"\d/(intermediate|output)/", 2),
    "all": ("all six", "", 1),
}
RANKS = (1, 2, 4, 8, 64)
QUESTIONS = {
    f"{name}-r{rank}": Method(
        f"{PLACES[name][0]}, rank {rank}",
        trains_a=True,
        rank=rank,
        only=PLACES[name][1],
    )
    for name, rank in (
        *((name, rank) for name, (_, _, rank) in PLACES.items()),
        *((name, rank) for name in ("query-value", "all") for rank in RANKS),
    )
}
SMALLER = {"lora-r2": Method("LoRA, rank 2", trains_a=True, rank=2)}
STORED = ("lora", "lori-d", "lori-s", *PROJECTION, "all-r4", "all-r8", "all-r64")
METHODS = (
    HEADLINE
    | SWEEP
    | SMALLER
    | QUESTIONS
    | {name: method for name, method in PROJECTION.items() if name not in HEADLINE}
)


def _network(cut: Cut, rank: int) -> lrk.Transform:
    """A network behind each product that writes into the residual stream."""
    del cut
    ends = r"^layer/\d+/(attention/output|output)/dense/kernel$"
    return lrk.bottleneck(
        rank,
        activation=jax.nn.gelu,
        bias=lambda path: path.replace("kernel", "bias"),
        select=lrk.matching(ends),
    )


def _scaled(make: Any) -> Callable[[Cut, int], lrk.Transform]:
    return lambda cut, rank: make(rank, alpha=SCALE * rank, select=kernels(cut))


MAKERS: dict[str, Callable[[Cut, int], lrk.Transform]] = {
    "lora": _scaled(lrk.lora),
    "dora": _scaled(lrk.dora),
    "full": lambda cut, _: lrk.full(select=kernels(cut)),
    "bottleneck": _network,
}


def transform(method: Method, cut: Cut, rank: int) -> lrk.Transform:
    """The transform that a method trains."""
    return MAKERS[method.kind](cut, rank)


def keep(method: Method, trainable: Any, mask: Mapping[str, Any] | None) -> Any:
    """What multiplies the gradient of each trainable leaf: 0 where it is frozen."""
    if method.kind != "lora":
        return jax.tree.map(lambda _: np.float32(1), trainable)
    found = {}
    for path, own in trainable.items():
        used = np.float32(re.search(method.only, path) is not None)
        a = np.ones_like(own["a"]) * np.float32(method.trains_a) * used
        b = np.ones_like(own["b"]) * used
        if method.rank:
            a, b = (
                a * _first(a.shape[1], method.rank),
                b * _first(b.shape[0], method.rank)[:, None],
            )
        if mask is not None:
            b = b * np.asarray(mask[path], np.float32)
        found[path] = {"a": a, "b": b}
    return found


def _first(number: int, kept: int) -> np.ndarray:
    return (np.arange(number) < kept).astype(np.float32)


def _gaussian(key: Any, n: int, rank: int) -> Any:
    return jax.random.normal(key, (n, rank)) / jnp.sqrt(3.0 * n)


def _orthogonal(key: Any, n: int, rank: int) -> Any:
    q, r = jnp.linalg.qr(jax.random.normal(key, (n, rank)))
    return q * jnp.sign(jnp.diagonal(r))[None] / jnp.sqrt(3.0)


def _hadamard(key: Any, n: int, rank: int) -> Any:
    """Some entries of a Hadamard matrix of the next power of two, rows signed."""
    keys, size = jax.random.split(key, 3), 2 ** int(np.ceil(np.log2(n)))
    rows = jax.random.permutation(keys[0], size)[:n]
    columns = jax.random.permutation(keys[1], size)[:rank]
    signs = jax.random.rademacher(keys[2], (n, 1), jnp.float32)
    odd = jax.lax.population_count(rows[:, None] & columns[None]) % 2
    return signs * (1 - 2 * odd) / jnp.sqrt(3.0 * n)


DRAWS = {"gaussian": _gaussian, "orthogonal": _orthogonal, "hadamard": _hadamard}
# Each gives every column of A the mean square length 1/3 of LoRA's uniform draw.


def drawn(method: Method, state: lrk.State, key: Any) -> lrk.State:
    """The state with `A` as the method draws it."""
    if not method.draw:
        return state
    found = {}
    for i, (path, own) in enumerate(state.trainable.items()):
        n, rank = own["a"].shape
        a = DRAWS[method.draw](jax.random.fold_in(key, i), n, rank)
        found[path] = {**own, "a": np.asarray(a, np.float32)}
    return state._replace(trainable=found)


def start(method: Method, state: lrk.State, mask: Any, dense: lrk.State | None) -> Any:
    """What a method's training starts from; factors that it leaves out are zero."""
    state = jax.tree.map(np.asarray, state)
    if method.kind != "lora":
        return state
    own = keep(method._replace(trains_a=True), state.trainable, mask)
    found = {}
    for path, leaf in state.trainable.items():
        a, b = leaf["a"] * (own[path]["a"] != 0), leaf["b"]
        if method.mask == "kept" and dense is not None:
            b = np.asarray(dense.trainable[path]["b"]) * own[path]["b"]
        found[path] = {"a": a, "b": b}
    return state._replace(trainable=found)


def mask_of(
    method: Method, dense: lrk.State | None, scores: Any, key: Any
) -> dict[str, np.ndarray] | None:
    """The mask on `B` of a method.

    Args:
        method: The method.
        dense: The trained LoRI-D state that masks are read off: of another task for the
            mask of another task.
        scores: For the gradient's mask, the gradient at the start.
        key: For random masks.
    """
    if not method.mask:
        return None
    how, density = method.mask, method.density
    if how == "gradient":
        size = jax.tree.map(jnp.abs, scores)
        return _host(lrk.score_mask(size, density=density))
    if dense is None:
        raise ValueError(
            f"mask_of: mask {how!r} is read off a trained state: none given."
        )
    own = {p: {"b": jnp.asarray(x["b"])} for p, x in dense.trainable.items()}
    if how == "smallest":
        small = jax.tree.map(lambda b: -jnp.abs(b), own)
        return _host(lrk.score_mask(small, density=density))
    scope = how.removeprefix("scope-") if how.startswith("scope-") else "model"
    mask = lrk.lori_mask(lrk.State(own, {}), density=density, scope=scope)
    if how in ("leaf", "random"):
        scope = "matrix" if how == "leaf" else "model"
        mask = lrk.random_mask(key, mask, scope=scope)
    return _host(mask)


def _host(mask: Mapping[str, Any]) -> dict[str, np.ndarray]:
    return {path: np.asarray(own) for path, own in mask.items()}


def trained_numbers(method: Method, trainable: Any, mask: Any) -> int:
    """How many numbers of the adapter a method trains."""
    own = keep(method, trainable, mask)
    sizes = jax.tree.map(
        lambda k, x: int(np.sum(np.broadcast_to(k, np.shape(x)) != 0)), own, trainable
    )
    return sum(jax.tree.leaves(sizes))


def kept_shares(mask: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Share of each matrix's entries that a mask keeps, by layer and projection."""
    shares: dict[str, dict[str, float]] = {}
    for path, kept in mask.items():
        layer, _, name = path.removeprefix("layer/").partition("/")
        own = shares.setdefault(layer, {})
        own[name.removesuffix("/kernel")] = float(np.mean(np.asarray(kept)))
    return shares
