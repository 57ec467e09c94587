"""One row for each adapted layer: how large its change is, and of what rank."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _tree
from lowrank._adapted import split
from lowrank._axes import MATRIX, Axes, resolve
from lowrank._base import Array, Path, PyTree, is_floating, is_operator
from lowrank._select import Select
from lowrank.analysis._amplification import amplified, frobenius, is_small
from lowrank.analysis._change import (
    Pair,
    as_matrix,
    check_count,
    check_finite,
    check_share,
    length,
    mt,
    of_matrix,
    of_terms,
    ratio,
    wide,
)
from lowrank.analysis._intruders import found_in
from lowrank.analysis._rows import Item, chosen, measured
from lowrank.analysis._spectrum import (
    effective,
    energies,
    needed,
    numerical,
    participation,
    stable,
)
from lowrank.analysis._table import Table
from lowrank.analysis._tasks import same_leaves
from lowrank.linalg import factored_svd, support
from lowrank.operators import LowRank

SPECTRAL = ("effective", "stable", "numerical", "participation")
SPECTRAL += ("energy", "energy_rank", "amplification")


@functools.partial(jax.jit, static_argnames=("rank", "k"))
def _measure(
    a: Array, b: Array, w: Array | None, energy: Any, epsilon: Any, rank: int, k: int
) -> dict[str, Array]:
    """All columns of some layers of one shape, `[layers]` each."""
    u, s, vt = factored_svd(a, b)
    sides = a.shape[-2], b.shape[-1]
    row = {"norm": length(jnp.sum(jnp.square(s), axis=-1))}
    row |= {"effective": effective(s), "stable": stable(s)}
    row |= {"numerical": numerical(s, sides), "participation": participation(s)}
    row["energy"] = jnp.minimum(jnp.sum(energies(s)[..., :rank], axis=-1), 1)
    row["energy_rank"] = needed(s, energy)
    if w is None:
        return row
    kept = support(s, max(sides)).astype(s.dtype)
    seen = (mt(u * kept[..., None, :]) @ w) @ mt(vt * kept[..., :, None])
    along = jnp.sum(jnp.diagonal(seen, axis1=-2, axis2=-1) * s, axis=-1)
    row |= _beside(row["norm"], frobenius(w), along)
    part = frobenius(seen[..., :rank, :rank])
    row["amplification"] = amplified(row["norm"], part)
    if k:
        cosine = found_in(w, a, b, min(k, *sides))[2]
        row["intruders"] = jnp.sum(cosine < epsilon, axis=-1)
    return row


def _beside(size: Array, base: Array, along: Array) -> dict[str, Array]:
    """A change of a size beside a weight of a size, with their inner product."""
    cosine = jnp.clip(ratio(along, size * base), -1, 1)
    return {"relative": amplified(size, base), "cosine": cosine}


@jax.jit
def _measure_plain(d: Array, w: Array | None) -> dict[str, Array]:
    """The columns of leaves that are no matrices: `[1, 1, entries]`."""
    row = {"norm": frobenius(d)}
    if w is None:
        return row
    return row | _beside(row["norm"], frobenius(w), jnp.sum(d * w, axis=(-2, -1)))


def report(
    adapted: PyTree,
    *,
    params: PyTree | None = None,
    select: Select | None = None,
    axes: Mapping[Path, Axes] | None = None,
    rank: int = 4,
    energy: float = 0.9,
    intruders: int = 10,
    epsilon: float = 0.5,
) -> Table:
    """Report on every adapted layer: size, spectrum, and relation to the weight.

    With `D` the change of a layer, `W` its weight and `s` the singular values of `D`:

    - `rank`: columns of the factors; None for a change that came without factors
    - `norm`: `|D|_F`; `relative`: `|D|_F / |W|_F`; `cosine`: of `D` and `W`
    - `effective`, `stable`, `numerical`, `participation`: ranks, as `effective_rank`
      and its kin tell them
    - `energy`: share of `|D|^2` in the first `rank` directions; `energy_rank`: how many
      directions hold the share `energy=`
    - `amplification`: `|D| / |U^T W V|` in the first `rank` directions
    - `intruders`: how many of the strongest directions of `W + D` are like none of `W`

    Args:
        adapted: A tree with low-rank terms or plain deltas; or, with `params`, any tree
            of the same paths, such as that of a full fine-tune.
        params: The weights before any change. None for the base that each leaf carries.
            With it, a leaf that is not factors over the very same array is compared as
            `leaf - params`, formed, and one that did not change has no row.
        select: Which leaves to look at, as `select(path, leaf)`; None for all.
        axes: Axes by path of leaves without factors that have not exactly two, as
            `lrk.trace_axes` tells them. Without it, they count as vectors.
        rank: How many directions `energy` and `amplification` take, at least 1; a
            smaller leaf takes all that it has.
        energy: The share that `energy_rank` is to reach, in (0, 1].
        intruders: How many directions are looked at for intruders; 0 leaves them out,
            which saves the two SVDs of a whole weight that each layer costs.
        epsilon: As for `lrk.analysis.intruders`.

    Returns:
        A table of Python numbers, with one row for each layer: a leaf that stacks
        layers has a row for each, called `path[i]`. What does not apply is None: the
        spectrum of a bias, or what needs `W` where the base has no dense form (a chip
        with converters) or more than 2^24 entries. Layers of one shape are measured in
        one compiled call, from factors where there are any.

    Raises:
        TypeError: If `select` is no predicate, or a count no int.
        ValueError: If no leaf is selected or adapted, a leaf is trained but has no
            additive term (DoRA's magnitude: pass `params`) or no dense form to compare
            with `params`, `params` has other paths or shapes, a number is out of range,
            leaves are traced, or weights are not finite. All such leaves are named.

    Example:
        >>> w, b = jnp.eye(4), 2 * jnp.ones((1, 4))
        >>> tree = {"w": lrk.LowRank(w, jnp.ones((4, 1)), b), "bias": jnp.zeros(4)}
        >>> found = lrk.analysis.report(tree)
        >>> [(row["path"], row["rank"], row["norm"]) for row in found.records()]
        [('w', 1, 8.0)]

    References:
        Those of the functions named.
    """
    check_count("report", "rank", rank, 2**31 - 1)
    check_share("report", "energy", energy)
    check_share("report", "epsilon", epsilon)
    if intruders:
        check_count("report", "intruders", intruders, 2**31 - 1)
    leaves = chosen("report", _tree.leaves("report", adapted), select)
    items, plain = _items(leaves, _originals(adapted, params), axes)
    _check_found(leaves, items + plain)
    found = measured(
        items, lambda a, b, w: _measure(a, b, w, energy, epsilon, rank, intruders)
    )
    found |= measured(plain, _measure_plain)
    rows = [row for path in leaves for row in found.get(path, ())]
    names = ["path", "shape", "rank", "norm", "relative", "cosine", *SPECTRAL]
    names += ["intruders"] if intruders else []
    note = f"energy and amplification of {rank} directions, energy_rank for {energy:g}"
    if intruders:
        note += f", intruders of {intruders} below {epsilon:g}"
    return Table("Report", tuple({n: r.get(n) for n in names} for r in rows), note)


def _originals(adapted: PyTree, params: PyTree | None) -> dict[Path, Any] | None:
    """The leaves of `params`, which are those of the adapted tree."""
    if params is None:
        return None
    return {p: pair[1] for p, pair in same_leaves("report", [adapted, params]).items()}


def _check_found(leaves: Mapping[Path, Any], items: list[Item]) -> None:
    """Refuse a report without rows, and numbers that are not finite.

    Raises:
        ValueError: If there are any.
    """
    if not items:
        raise ValueError(
            f"report: none of {len(leaves)} leaves is adapted. Pass an adapted tree, "
            "or params= to compare with."
        )
    check_finite("report", {f"'{item.path}'": item.arrays for item in items})


def _items(
    leaves: Mapping[Path, Any],
    originals: Mapping[Path, Any] | None,
    axes: Mapping[Path, Axes] | None,
) -> tuple[list[Item], list[Item]]:
    """Leaves to be measured as matrices, and as vectors.

    Raises:
        ValueError: If a leaf cannot be measured; all are named.
    """
    items, plain, bad = [], [], []
    for path, leaf in leaves.items():
        own = None
        if axes and path in axes:
            own = resolve("report", {path: leaf}, axes)[path]
        before = None if originals is None else originals[path]
        found = _change(leaf, before, own)
        if isinstance(found, str):
            bad.append(f"{_tree.describe(path, leaf)}: {found}")
        elif found is not None:
            change, w = found
            facts: dict[str, Any] = {"shape": tuple(leaf.shape)}
            if isinstance(change, Pair):
                facts["shape"] = change.sides
                facts["rank"] = None if change.d is not None else change.a.shape[-1]
                items.append(Item(path, (change.a, change.b, w), facts))
            else:
                row = None if w is None else wide(w).reshape(1, -1)
                plain.append(Item(path, (change.reshape(1, -1), row), facts))
    if bad:
        raise ValueError(
            f"report: cannot take the change of {'; '.join(bad)}. Pass params= to "
            "compare formed weights, or leave them out with select=."
        )
    return items, plain


def _change(leaf: Any, before: Any, axes: Axes | None) -> Any:
    """The change of one leaf and its weight; None if there is none, or why not."""
    base, terms = split(leaf)
    if before is None or (terms and _is_one(base, before)):
        if not terms:
            trained = is_operator(base) and base.trained
            return f"{type(base).__name__} is no additive term" if trained else None
        weight = base if before is None else before
        if is_operator(weight):
            weight = weight.dense() if is_small(weight) else None
        return _with(leaf.shape, terms, weight, axes)
    if not is_floating(leaf) or leaf is before:
        return None
    if stuck := [x for x in (leaf, before) if is_operator(x) and not is_small(x)]:
        return f"{type(stuck[0]).__name__} has no small dense form"
    now, weight = (wide(x.dense() if is_operator(x) else x) for x in (leaf, before))
    if not is_operator(leaf) and bool(jnp.array_equal(now, weight)):
        return None
    return _dense(now - weight, weight, axes)


def _is_one(base: Any, before: Any) -> bool:
    """Whether two bases are one weight."""
    if base is before:
        return True
    if is_operator(base) or is_operator(before) or base.dtype != before.dtype:
        return False
    return bool(jnp.array_equal(base, before))


def _with(shape: tuple[int, ...], terms: Any, weight: Any, axes: Axes | None) -> Any:
    """A change by terms, with factors where there are any."""
    low = any(isinstance(t, LowRank) for t in terms)
    if not low and axes is None and len(shape) != 2:
        deltas = [wide(t.delta()) for t in terms]
        return sum(deltas[1:], deltas[0]), weight
    pair = of_terms(shape, terms, axes)
    if isinstance(pair, str):
        return pair
    return pair, None if weight is None else as_matrix(weight, pair.axes)


def _dense(d: Array, weight: Array, axes: Axes | None) -> Any:
    """A formed change."""
    if axes is None and d.ndim != 2:
        return d, weight
    axes = MATRIX if axes is None else axes
    return of_matrix(as_matrix(d, axes), axes), as_matrix(weight, axes)
