"""How far several adapters over one base stand in each other's way."""

from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank import _tree
from lowrank._adapted import split
from lowrank._axes import MATRIX
from lowrank._base import Array, Operator, Path, PyTree, is_operator
from lowrank.analysis._change import (
    Pair,
    check_count,
    check_finite,
    check_share,
    inner,
    length,
    mt,
    nothing,
    of_terms,
    ratio,
    wide,
)
from lowrank.linalg import factored_svd, support
from lowrank.operators import Delta, LowRank


class Leaf(NamedTuple):
    """One leaf of all trees: its shape, and each tree's terms."""

    shape: tuple[int, ...]
    terms: tuple[tuple[Operator, ...], ...]

    @property
    def is_matrix(self) -> bool:
        """Whether its changes have inputs and outputs."""
        low = any(isinstance(t, LowRank) for own in self.terms for t in own)
        return low or len(self.shape) == 2


def together(
    who: str,
    trees: Sequence[PyTree],
    fewest: int = 2,
    only: Collection[Path] | None = None,
) -> dict[Path, Leaf]:
    """The leaves that at least one tree adapts, or those of them that are asked for.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If there are too few trees, their paths or shapes differ, a leaf is
            adapted by anything but low-rank terms and plain deltas, or none is adapted;
            all such leaves are named.
    """
    if not isinstance(trees, list | tuple):
        got = type(trees).__name__
        raise TypeError(f"{who}: expected a list of adapted trees, got {got}.")
    if len(trees) < fewest:
        raise ValueError(
            f"{who}: expected at least {fewest} adapted trees, got {len(trees)}."
        )
    leaves = same_leaves(who, trees)
    if only is not None:
        leaves = {path: own for path, own in leaves.items() if path in only}
    found, bad = {}, []
    for path, own in leaves.items():
        apart = [split(leaf) for leaf in own]
        terms = tuple(terms for _, terms in apart)
        kinds = [t for own in terms for t in own if not isinstance(t, LowRank | Delta)]
        kinds += [base for base, own in apart if is_operator(base) and not own]
        kinds = [op for op in kinds if op.trained]
        if kinds:
            bad.append(f"'{path}' ({type(kinds[0]).__name__})")
        elif any(terms):
            found[path] = Leaf(tuple(own[0].shape), terms)
    if bad:
        raise ValueError(
            f"{who}: cannot take the change at {', '.join(bad)}: it is no additive "
            "term. Compare low-rank terms and plain deltas."
        )
    if not found:
        raise ValueError(
            f"{who}: none of {len(leaves)} leaves is adapted. Pass what a transform's "
            "apply returned."
        )
    return found


def same_leaves(who: str, trees: Sequence[PyTree]) -> dict[Path, list[Any]]:
    """The leaves of all trees by path.

    Raises:
        ValueError: If their paths or shapes differ; all such paths are named.
    """
    leaves = [_tree.leaves(who, tree) for tree in trees]
    paths = dict.fromkeys(path for own in leaves for path in own)
    bad = [
        f"'{p}': not in every tree" for p in paths if any(p not in x for x in leaves)
    ]
    for path in paths:
        shapes = [tuple(own[path].shape) for own in leaves if path in own]
        if len(set(shapes)) > 1:
            bad.append(f"'{path}': expected one shape, got {shapes}")
    if bad:
        raise ValueError(
            f"{who}: the trees are not adapted from one base: {'; '.join(bad)}. Apply "
            "each transform to the same parameters."
        )
    return {path: [own[path] for own in leaves] for path in paths}


def pairs_of(who: str, found: dict[Path, Leaf]) -> dict[Path, list[Pair]]:
    """Each tree's change of each matrix, as factors.

    Raises:
        ValueError: If factors of a leaf hold different axes, no leaf is a matrix, or
            (where they can be read) numbers are not finite; all are named.
    """
    pairs, bad = {}, []
    for path, leaf in found.items():
        if not leaf.is_matrix:
            continue
        whole = of_terms(leaf.shape, [t for own in leaf.terms for t in own])
        if isinstance(whole, str):
            bad.append(f"'{path}': {whole}")
            continue
        axes = MATRIX if whole.axes is None else whole.axes
        own = [
            of_terms(leaf.shape, terms, axes)
            if terms
            else nothing(whole.stack, *whole.sides)
            for terms in leaf.terms
        ]
        pairs[path] = [x._replace(axes=None) for x in own if isinstance(x, Pair)]
    if bad:
        raise ValueError(f"{who}: {'; '.join(bad)}. Make the adapters with one axes=.")
    if not pairs:
        raise ValueError(
            f"{who}: none of the adapted leaves ({_tree.quoted(list(found)[:8])}) is a "
            "matrix. Adapt kernels too."
        )
    check_finite(who, {f"'{p}'": [(x.a, x.b) for x in own] for p, own in pairs.items()})
    return pairs


def sign_conflicts(trees: Sequence[PyTree]) -> dict[Path, Array]:
    """On which share of the entries adapters pull in opposite directions.

    Of the entries of a leaf that at least two trees change, the share that two of them
    change in opposite directions. Random signs give `1 - 2^(1 - T)` for `T` trees.

    Args:
        trees: Adapted trees over one base, at least two; ranks may differ.

    Returns:
        By path, for leaves that any tree adapts: a number in [0, 1], or one for each
        stack index, `[*stack]`; zero where no two trees change an entry. It runs under
        `jit`. This forms the changes, one leaf at a time.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If there are fewer than two trees, their paths or shapes differ, a
            leaf holds anything but low-rank terms and plain deltas, none is adapted, or
            numbers are not finite.

    Example:
        >>> w, one = jnp.zeros((2, 2)), jnp.ones((2, 2))
        >>> other = one.at[0, 0].set(-1.0)
        >>> trees = [{"w": lrk.Delta(w, d)} for d in (one, other)]
        >>> float(lrk.analysis.sign_conflicts(trees)["w"])
        0.25

    Notes:
        For two trees it is what `lrk.merging.interference(trees, signs=True)` counts
        pair by pair. TIES counts after trimming: trim with `lrk.merging.magnitude`.

    References:
        Yadav et al., TIES-merging, 2023, arXiv:2306.01708: section 3.
    """
    found = together("sign_conflicts", trees)
    result = {}
    for path, leaf in found.items():
        deltas = [_formed(terms) for terms in leaf.terms if terms]
        check_finite("sign_conflicts", {f"'{path}'": deltas})
        low = [t for own in leaf.terms for t in own if isinstance(t, LowRank)]
        stack = low[0].stack if low else ()
        result[path] = _opposed(deltas, stack)
    return result


def _formed(terms: Sequence[Any]) -> Array:
    """What some terms add, in the leaf's own layout."""
    deltas = [wide(term.delta()) for term in terms]
    return sum(deltas[1:], deltas[0])


def _opposed(deltas: Sequence[Array], stack: tuple[int, ...]) -> Array:
    """The share of the entries changed by two or more whose signs differ."""
    ups = sum((d > 0).astype(jnp.int32) for d in deltas)
    downs = sum((d < 0).astype(jnp.int32) for d in deltas)
    axes = tuple(i for i in range(deltas[0].ndim) if i not in stack)
    common = jnp.sum(ups + downs >= 2, axis=axes)
    opposed = jnp.sum((ups > 0) & (downs > 0), axis=axes)
    return opposed / jnp.maximum(common, 1)


def alignment_ratio(
    trees: Sequence[PyTree], merged: PyTree | None = None, *, error: ArrayLike = 0.05
) -> dict[Path, Array]:
    """SAR: which part of each task's change lies where the merged change acts.

    With `V_k` the leading output directions of the merged change `M`,

        `SAR_t = |D_t V_k V_k^T|_F / |D_t|_F`

    and `k` the least number for which `|M - M V_k V_k^T|_F <= error |M|_F`.

    Args:
        trees: Adapted trees over one base, at least one.
        merged: One adapted tree, what a merge made of them; None for their sum.
        error: Relative error at which `M` is cut, in (0, 1]. May be traced.

    Returns:
        By path, for matrices that any tree adapts, `[*stack, T]` in [0, 1]; zero for a
        tree that leaves the leaf alone. It comes from factors, and runs under `jit`.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: As `sign_conflicts`, for the trees and the merged one; or if no
            matrix is adapted, or `error` lies outside (0, 1].

    Example:
        >>> w = jnp.zeros((2, 2))
        >>> trees = [{"w": lrk.Delta(w, jnp.diag(d))} for d in jnp.eye(2)]
        >>> found = lrk.analysis.alignment_ratio(trees, trees[0])
        >>> found["w"].round(4).tolist()
        [1.0, 0.0]

    Notes:
        The paper projects on left singular vectors of `[out, in]` weights: our kernels
        are `[in, out]`, so those are the right ones here. That the ratio goes with
        merged accuracy is the paper's finding on its own tasks.

    References:
        Marczak et al., No task left behind, 2025, arXiv:2502.04959: the subspace
        alignment ratio (equation numbers not compared).
    """
    check_share("alignment_ratio", "error", error)
    trees = list(trees) if isinstance(trees, list | tuple) else trees
    whole = [merged] if merged is not None and isinstance(trees, list) else []
    for own in (trees, whole) if whole else (trees,):
        together("alignment_ratio", own, 1)
    found = together("alignment_ratio", [*trees, *whole], 1)
    result: dict[Path, Array] = {}
    for path, own in pairs_of("alignment_ratio", found).items():
        tasks = own[: len(trees)]
        target = own[-1] if whole else side_by_side(tasks)
        result[path] = _aligned(tasks, target, error)
    return result


def side_by_side(pairs: Sequence[Pair]) -> Pair:
    """The factors of a sum."""
    a = jnp.concatenate([p.a for p in pairs], axis=-1)
    return Pair(a, jnp.concatenate([p.b for p in pairs], axis=-2))


@jax.jit
def _aligned(tasks: Sequence[Pair], target: Pair, error: Any) -> Array:
    _, s, vt = factored_svd(target.a, target.b)
    square = jnp.square(s)
    total = jnp.sum(square, axis=-1, keepdims=True)
    before = jnp.cumsum(square, axis=-1) - square
    # Direction i is kept while what is left without it exceeds the error.
    left = total - before
    kept = (left > jnp.square(error) * total) & support(s, max(target.sides))
    v = mt(vt) * kept.astype(s.dtype)[..., None, :]
    parts = []
    for task in tasks:
        seen = Pair(task.a, task.b @ v)
        share = ratio(length(inner(seen, seen)), length(task.square()))
        parts.append(jnp.minimum(share, 1))
    return jnp.stack(parts, axis=-1)


def task_interference(
    trees: Sequence[PyTree], *, rank: int | None = None
) -> dict[Path, Array]:
    """STI: how much the singular vectors of several tasks overlap.

    With each change `D_t = U_t S_t V_t^T`, all side by side, `U = [U_1 ... U_T]`,

        `STI = |(U^T U - 1) S (V^T V - 1)|_1`

    the sum of the magnitudes of the entries. Zero if no two tasks share input or output
    directions.

    Args:
        trees: Adapted trees over one base, at least two; ranks may differ.
        rank: How many directions of each task count, at least 1; None for all.

    Returns:
        By path, for matrices that any tree adapts, `[*stack]`. It comes from factors,
        and runs under `jit`. It grows with the changes and their number: compare leaves
        or merges, not models.

    Raises:
        TypeError: If `trees` is no list, or `rank` no int.
        ValueError: As `sign_conflicts`; or if no matrix is adapted, or `rank < 1`.

    Example:
        >>> w, d = jnp.zeros((2, 2)), jnp.diag(jnp.array([3.0, 0.0]))
        >>> trees = [{"w": lrk.Delta(w, x)} for x in (d, d, d[::-1, ::-1])]
        >>> [float(lrk.analysis.task_interference(trees[i:])["w"]) for i in (0, 1)]
        [6.0, 0.0]

    Notes:
        Unverified: the formula is quoted from memory of the paper, with `|X|_1` read as
        the sum over entries. Only what lies between tasks counts, since the blocks of
        one task are orthonormal.

    References:
        Gargiulo et al., Task singular vectors, 2024, arXiv:2412.00081: singular task
        interference.
    """
    if rank is not None:
        check_count("task_interference", "rank", rank, 2**31 - 1)
    found = together("task_interference", trees)
    pairs = pairs_of("task_interference", found)
    return {path: _interference(own, rank) for path, own in pairs.items()}


def _interference(pairs: Sequence[Pair], rank: int | None) -> Array:
    us, ss, vts = [], [], []
    for pair in pairs:
        u, s, vt = factored_svd(pair.a, pair.b)
        kept = support(s, max(pair.sides)).astype(s.dtype)
        us.append((u * kept[..., None, :])[..., :rank])
        ss.append((s * kept)[..., :rank])
        vts.append((vt * kept[..., :, None])[..., :rank, :])
    u, s, vt = (jnp.concatenate(x, i) for x, i in ((us, -1), (ss, -1), (vts, -2)))
    sizes = [x.shape[-1] for x in ss]
    apart = 1 - jax.scipy.linalg.block_diag(*(jnp.ones((k, k)) for k in sizes))
    apart = apart.astype(s.dtype).reshape((1,) * (s.ndim - 1) + apart.shape)
    left, right = (mt(u) @ u) * apart, (vt @ mt(vt)) * apart
    return jnp.sum(jnp.abs((left * s[..., None, :]) @ right), axis=(-2, -1))
