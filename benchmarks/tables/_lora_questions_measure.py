"""What is read off trained adapters: shared directions, and changes beside weights."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks import data
from benchmarks.study.singles import Singles

Read = Callable[[Singles, Mapping[str, Any]], dict[str, Any]]
PROJECTIONS = {"query": "self/query/", "value": "self/value/"}
SMALL, LARGE = "all-r8", "all-r64"
CHANGED = ("all-r4", "all-r64", "full")
DIRECTIONS = 8


def directions(work: Singles, given: Mapping[str, Any]) -> dict[str, Any]:
    """Input directions that two ranks share, with one seed and with two.

    Two adapters of one seed start from the same `A`, so what they share may be their
    start; only another seed tells.
    """
    task, one, two = given["task"], given["seed"], given["other"]
    rank = work.options.rank
    small = _factors(work, SMALL, task, one)
    same, other = (_factors(work, LARGE, task, seed) for seed in (one, two))
    chance = {
        path: np.asarray(jax.random.normal(jax.random.fold_in(jax.random.key(1), i), s))
        for i, (path, s) in enumerate((p, x[0].shape) for p, x in small.items())
    }
    found: dict[str, Any] = {"rank": rank}
    for name, part in PROJECTIONS.items():
        paths = [path for path in small if part in path]
        found[name] = {
            "same seed, A": _shared([(small[p][0], same[p][0]) for p in paths]),
            "other seed, A": _shared([(small[p][0], other[p][0]) for p in paths]),
            "same seed, change": _shared([(small[p], same[p]) for p in paths]),
            "other seed, change": _shared([(small[p], other[p]) for p in paths]),
            "random A": _shared([(chance[p], other[p][0]) for p in paths]),
        }
    return found


def _factors(work: Singles, name: str, task: str, seed: int) -> dict[str, Any]:
    """`(A, B)` by path, without the columns that are not trained."""
    kept = min(int(name.rpartition("-r")[2]), work.options.rank)
    trained = work.single(name, task, seed).trainable
    return {p: (x["a"][:, :kept], x["b"][:kept]) for p, x in trained.items()}


def _shared(pairs: list[tuple[Any, Any]]) -> list[float]:
    """How much of each direction of the first lies in the first eight of the second.

    Of the `i`-th, it is `i phi(i, 8) - (i - 1) phi(i - 1, 8)`; means over layers.
    """
    rows = []
    for one, two in pairs:
        grid = np.asarray(lrk.analysis.similarity_grid(one, two))
        most = min(DIRECTIONS, *grid.shape)
        counts = np.arange(1, most + 1)
        rows.append(np.diff(counts * grid[:most, most - 1], prepend=0.0))
    return np.mean(rows, axis=0).tolist()


def changes(work: Singles, given: Mapping[str, Any]) -> dict[str, Any]:
    """Every adapter's change beside its weight, by way and projection."""
    task, seed = given["task"], given["seed"]
    weights = {p: x for p, x in _flat(work.cut.params).items() if p.endswith("kernel")}
    found: dict[str, Any] = {}
    for name in CHANGED:
        state = work.state(name, work.single(name, task, seed))
        form = work.trainer.form(
            "full" if name == "full" else "lora", work.transform(name), state
        )
        moved = _flat(form)
        own = {p: np.asarray(moved[p]) - np.asarray(w) for p, w in weights.items()}
        rank = int(name.rpartition("-r")[2]) if "-r" in name else None
        found[name] = beside(weights, own, rank)
    return found


def published(work: Singles, given: Mapping[str, Any]) -> dict[str, Any]:
    """A published full fine-tune of the whole encoder, beside a random change."""
    del work
    if given["synthetic"]:
        weights = {"query/kernel": np.asarray(jax.random.normal(_key(0), (16, 16)))}
        own = {"query/kernel": np.asarray(jax.random.normal(_key(1), (16, 16))) * 0.01}
    else:
        before, _ = lrk.models.load_bert(data.minilm_dir())
        after, _ = lrk.models.load_bert(data.minilm_sre_dir())
        one, two = (_flat(lrk.models.functional(net)[1]) for net in (before, after))
        weights = {
            path: np.asarray(w)
            for path, w in one.items()
            if path.startswith("encoder/") and path.endswith("kernel")
        }
        own = {path: np.asarray(two[path]) - w for path, w in weights.items()}
    without, noise = {}, {}
    for i, (path, change) in enumerate(own.items()):
        w = weights[path]
        share = np.sum(change * w) / np.sum(w * w)
        without[path] = change - share * w
        drawn = np.asarray(jax.random.normal(_key(i), change.shape))
        noise[path] = drawn * np.linalg.norm(change) / np.linalg.norm(drawn)
    return {
        "change": beside(weights, own, None),
        "without its part along the weight": beside(weights, without, None),
        "random, of the same norms": beside(weights, noise, None),
    }


def beside(
    weights: Mapping[str, Any], changes: Mapping[str, Any], rank: int | None
) -> dict[str, float]:
    """Means over matrices of what a change is, beside its weight."""
    rows = [
        _one(jnp.asarray(weights[p]), jnp.asarray(x), rank) for p, x in changes.items()
    ]
    rows = [row for row in rows if row is not None]
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def _one(w: Any, change: Any, rank: int | None) -> dict[str, float] | None:
    """One matrix; None where nothing was changed."""
    size = float(jnp.linalg.norm(change))
    if size == 0:
        return None
    own = lrk.analysis
    width = min(w.shape)
    rank = width if rank is None else min(rank, width)
    drawn = jax.random.normal(_key(rank), w.shape)
    return {
        "norm": size,
        "relative": size / float(jnp.linalg.norm(w)),
        "cosine": float(jnp.sum(w * change) / (jnp.linalg.norm(w) * size)),
        "effective": float(own.effective_rank(change)) / width,
        "stable": float(own.stable_rank(change)) / width,
        "amplification": float(own.amplification(w, change, rank)),
        "amplification, 4": float(own.amplification(w, change, min(4, width))),
        "amplification, random": size / _seen(w, drawn, rank),
        "amplification, own": size / _seen(w, w, rank),
    }


def _seen(w: Any, other: Any, rank: int) -> float:
    """`|U^T W V|` for the directions of another matrix."""
    u, _, vt = jnp.linalg.svd(other, full_matrices=False)
    return float(jnp.linalg.norm(u[:, :rank].T @ w @ vt[:rank].T))


def _key(number: int) -> Any:
    return jax.random.fold_in(jax.random.key(3), number)


def _flat(params: Any) -> dict[str, Any]:
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    return {"/".join(str(k.key) for k in keys): x for keys, x in flat}
