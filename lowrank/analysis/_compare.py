"""One row for each layer that two adapters change: how alike the changes are."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from lowrank._base import Array, Path, PyTree
from lowrank._select import Select
from lowrank.analysis._change import Pair, check_count, identity_beside, mt, ratio
from lowrank.analysis._rows import Item, chosen, measured
from lowrank.analysis._similarity import angles, directions, shared
from lowrank.analysis._table import Table
from lowrank.analysis._tasks import Leaf, pairs_of, same_leaves, together
from lowrank.linalg import factored_svd, support

NAMES = ("path", "shape", "rank_1", "rank_2", "norm_1", "norm_2", "cosine", "inputs")
NAMES += ("outputs", "overlap", "smallest_angle", "largest_angle", "sign_conflict")


@functools.partial(jax.jit, static_argnames="rank")
def _measure(
    a1: Array, b1: Array, a2: Array, b2: Array, rank: int | None
) -> dict[str, Array]:
    """All columns of some layers of one shape, `[layers]` each."""
    u, s, vt = _spectrum(a1, b1)
    x, t, yt = _spectrum(a2, b2)
    least = min(s.shape[-1], t.shape[-1])
    k = least if rank is None else min(rank, least)
    norms = [jnp.sqrt(jnp.sum(jnp.square(v), axis=-1)) for v in (s, t)]
    common = (mt(u) @ x) * (vt @ mt(yt)) * s[..., :, None] * t[..., None, :]
    along = jnp.sum(common, axis=(-2, -1))
    theta = angles(_columns(a1), _columns(a2))
    return {
        "norm_1": norms[0],
        "norm_2": norms[1],
        "cosine": jnp.clip(ratio(along, norms[0] * norms[1]), -1, 1),
        "inputs": shared(u, x, k, k),
        "outputs": shared(mt(vt), mt(yt), k, k),
        "overlap": jnp.maximum(jnp.cos(theta[..., 0]), 0),
        "smallest_angle": theta[..., 0],
        "largest_angle": theta[..., -1],
        "sign_conflict": _conflict(a1 @ b1, a2 @ b2),
    }


def _spectrum(a: Array, b: Array) -> tuple[Array, Array, Array]:
    """The SVD of `a b` without the directions that it lacks."""
    u, s, vt = factored_svd(a, b)
    kept = support(s, max(a.shape[-2], b.shape[-1])).astype(s.dtype)
    return u * kept[..., None, :], s * kept, vt * kept[..., :, None]


def _columns(a: Array) -> Array:
    """An orthonormal basis of the columns of one factor."""
    return directions(a, identity_beside(a))


def _conflict(one: Array, two: Array) -> Array:
    """Share of the entries that both change where their signs differ."""
    both = jnp.sign(one) * jnp.sign(two)
    opposed, common = (jnp.sum(x, axis=(-2, -1)) for x in (both < 0, both != 0))
    return opposed / jnp.maximum(common, 1)


def compare(
    adapted1: PyTree,
    adapted2: PyTree,
    *,
    select: Select | None = None,
    rank: int | None = None,
) -> Table:
    """Compare two adapters, layer by layer.

    With `D_1 = A_1 B_1` and `D_2 = A_2 B_2` the changes of a layer:

    - `rank_1`, `rank_2`, `norm_1`, `norm_2`: of each
    - `cosine`: of the two changes, as vectors
    - `inputs`, `outputs`: `subspace_similarity` of their leading `rank` left and right
      singular vectors, the input and the output directions
    - `overlap`: largest cosine of the principal angles between the columns of `A_1` and
      `A_2`, as `lrk.merging.overlap`: 1 if they were started from one key
    - `smallest_angle`, `largest_angle`: of the same, in radians
    - `sign_conflict`: of the entries that both change, the share with opposite signs

    Args:
        adapted1: A tree with low-rank terms or plain deltas.
        adapted2: Another over the same parameters; ranks may differ.
        select: Which leaves to look at, as `select(path, leaf)`; None for all.
        rank: How many directions `inputs` and `outputs` take, at least 1; None, or more
            than there are, for as many as both changes have.

    Returns:
        A table of Python numbers, one row for each layer of each matrix that either
        adapts; a leaf that stacks layers has a row for each, called `path[i]`. Where
        only one adapts it, ranks say which, and the rest is None. A change without
        factors counts as `A = 1` if it has no more inputs than outputs. The signs form
        the changes; all else comes from factors.

    Raises:
        TypeError: If `select` is no predicate, or `rank` no int.
        ValueError: If paths or shapes of the trees differ, no leaf is selected or no
            matrix adapted, a leaf holds anything but low-rank terms and plain deltas,
            factors hold different axes, leaves are traced, or numbers are not finite.

    Example:
        >>> w, b = jnp.zeros((3, 2)), jnp.ones((1, 2))
        >>> trees = [{"w": lrk.LowRank(w, a[:, None], b)} for a in jnp.eye(3)]
        >>> row = lrk.analysis.compare(*trees[:2]).rows[0]
        >>> row["cosine"], round(row["outputs"], 4), round(row["overlap"], 4)
        (0.0, 1.0, 0.0)

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: section 7.2. Bjorck and Golub, 1973,
        on principal angles.
    """
    if rank is not None:
        check_count("compare", "rank", rank, 2**31 - 1)
    trees = [adapted1, adapted2]
    both = same_leaves("compare", trees)
    only = [
        chosen("compare", {p: pair[i] for p, pair in both.items()}, select)
        for i in (0, 1)
    ][0]
    found = together("compare", trees, only=only)
    rows = _rows(found, pairs_of("compare", found), rank)
    note = f"inputs and outputs of {'all' if rank is None else rank} directions"
    return Table("Comparison", tuple({n: r.get(n) for n in NAMES} for r in rows), note)


def _rows(
    found: dict[Path, Leaf], pairs: dict[Path, list[Pair]], rank: int | None
) -> list[dict[str, Any]]:
    items, alone = [], []
    for path, (one, two) in pairs.items():
        ranks = [p.a.shape[-1] or None for p in (one, two)]
        facts = {"shape": one.sides, "rank_1": ranks[0], "rank_2": ranks[1]}
        item = Item(path, (one.a, one.b, two.a, two.b), facts)
        (alone if None in ranks else items).append(item)
    rows = measured(items, lambda *own: _measure(*own, rank))
    for item in alone:
        rows[item.path] = [{"path": name} | item.facts for name in item.names()]
    return [row for path in found for row in rows.get(path, ())]
