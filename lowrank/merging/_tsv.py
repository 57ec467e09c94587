"""TSV-M: singular vectors of the tasks, made orthogonal to one another."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank import _tree
from lowrank._base import Array, Operator, Path, PyTree
from lowrank.merging._common import weights_by_path
from lowrank.merging._factors import Matrices, Plain, assemble, factored
from lowrank.merging._spectra import (
    Spectral,
    Spectrum,
    nearest_isometry,
    plain,
    present,
    spectral,
)
from lowrank.operators._dispatch import scaled


def orthogonalised(
    found: Sequence[Spectrum], weights: Sequence[Any]
) -> tuple[Array, Array]:
    """Factors of `polar([U_t]) diag(w_t s_t) polar([V_t^T])`."""
    s = jnp.concatenate(
        [scaled(x.s, w) for x, w in zip(found, weights, strict=True)], axis=-1
    )
    left = nearest_isometry(jnp.concatenate([x.u for x in found], axis=-1))
    right = nearest_isometry(jnp.concatenate([x.vt for x in found], axis=-2))
    return left * s[..., None, :], right


def tsv(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    rank: int | None = None,
    conformance: str | None = None,
) -> PyTree:
    """TSV-M: keep each task's leading singular vectors, and decorrelate them.

    Each change is cut to `D_t = U_t diag(s_t) V_t^T` with `k` singular values, and

        D = polar([U_1 ... U_T]) diag(w_1 s_1, ..., w_T s_T) polar([V_1 ... V_T])^T

    where `polar(X)`, the orthonormal matrix nearest to `X`, takes away what the tasks'
    directions share. Tasks with orthogonal directions are added up unchanged.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. They multiply the singular values, and may be traced.
        rank: How many directions `k` each task keeps of a leaf, at least 1; None for
            as many as its factors have.
        conformance: None to decompose each change over its support, from factors;
            "paper" for the published `k = min(n, m) // T` from the formed changes,
            which takes in null directions wherever `k` exceeds a task's rank.

    Returns:
        One adapted tree over the same base, of rank `sum_t k_t` at each leaf. A leaf
        that is no matrix gets the weighted sum, or under "paper" the mean. Without
        `conformance` nothing of the size of a weight is formed.

    Raises:
        TypeError: If `trees` is no list, or `rank` no int.
        ValueError: If `rank < 1`, or is given beside `conformance="paper"`, or that
            form keeps no direction; if the bases differ, a term is neither low-rank
            nor a plain delta, factors hold different axes, or the weights do not fit.

    Example:
        >>> w, keys = jnp.zeros((6, 5)), jax.random.split(jax.random.key(0), 4)
        >>> a, c = (jax.random.normal(key, (6, 2)) for key in keys[:2])
        >>> b, d = (jax.random.normal(key, (2, 5)) for key in keys[2:])
        >>> trees = [{"w": lrk.LowRank(w, *pair)} for pair in ((a, b), (c, d))]
        >>> lrk.merging.tsv(trees)["w"].rank
        4

    Notes:
        The authors take `k = min(n, m) // T` of every change, which low-rank changes
        do not have: see the page on these methods. They average what is no matrix.

    References:
        Gargiulo et al., Task Singular Vectors, 2024, arXiv:2412.00081: TSV-Merge and
        its orthogonal Procrustes step.
    """
    decompose = spectral("tsv", conformance)
    _check_rank(rank, conformance)
    found = factored("tsv", trees)
    numbers = weights_by_path("tsv", weights, len(trees), found)
    sizes = dict.fromkeys(found, rank)
    if conformance == "paper":
        sizes = _published_sizes(found, len(trees))
    merged = {
        path: plain(own, numbers[path], 1.0, conformance)
        if isinstance(own, Plain)
        else _merge(own, numbers[path], sizes[path], decompose)
        for path, own in found.items()
    }
    return assemble("tsv", trees[0], merged)


def _merge(
    own: Matrices, weights: Sequence[Any], k: int | None, decompose: Spectral
) -> Operator:
    """One leaf, each change cut to `k` directions."""
    tasks = present(own, weights)
    cut = [decompose(a, b).first(a.shape[-1] if k is None else k) for a, b, _ in tasks]
    return own.operator(*orthogonalised(cut, [w for _, _, w in tasks]))


def _check_rank(rank: int | None, conformance: str | None) -> None:
    if rank is None:
        return
    if conformance is not None:
        raise ValueError(
            "tsv: rank and conformance='paper' exclude each other: the paper keeps "
            "min(n, m) // T directions. Pass one of them."
        )
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"tsv: expected rank as an int, got {rank!r}.")
    if rank < 1:
        raise ValueError(f"tsv: expected rank of at least 1, got {rank}.")


def _published_sizes(
    found: Mapping[Path, Matrices | Plain], number: int
) -> dict[Path, int]:
    """How many directions the paper keeps of each matrix.

    Raises:
        ValueError: If it keeps none of some; all are named.
    """
    sizes = {
        path: min(own.a[0].shape[-2], own.b[0].shape[-1]) // number
        for path, own in found.items()
        if isinstance(own, Matrices)
    }
    if none := [path for path, k in sizes.items() if not k]:
        raise ValueError(
            f"tsv: conformance='paper' keeps min(n, m) // {number} = 0 directions of "
            f"{_tree.quoted(none)}. Leave conformance out, or merge fewer trees."
        )
    return sizes
