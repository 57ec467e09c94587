"""Iso-C and Iso-CTS: merges with one singular value for all directions."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, Operator, Path, PyTree
from lowrank.linalg import factored_polar
from lowrank.merging._common import check_number, weights_by_path
from lowrank.merging._factors import Matrices, Plain, assemble, factored
from lowrank.merging._spectra import (
    Spectral,
    nearest_isometry,
    of_whole,
    plain,
    present,
    spectral,
    total,
)
from lowrank.operators._dispatch import scaled


def isotropic_factors(a: Array, b: Array) -> tuple[Array, Array]:
    """Factors of `a b` with every singular value of its support at their mean."""
    u, s, vt = factored_polar(a, b)
    return u * _mean(s, (s > 0).astype(s.dtype)), vt


def isotropic_whole(a: Array, b: Array) -> tuple[Array, Array]:
    """Factors of `a b` with all `min(n, m)` singular values at their mean."""
    found = of_whole(a, b)
    return found.u * _mean(found.s, found.kept), found.vt


def _mean(s: Array, kept: Array) -> Array:
    """The mean of what is kept, `[*stack, 1, 1]`; zero if nothing is."""
    count = jnp.maximum(jnp.sum(kept, axis=-1), 1)
    return (jnp.sum(s, axis=-1) / count)[..., None, None]


def shares(size: int, tasks: int, common: float) -> tuple[int, int]:
    """How many of `size` directions are common, and how many each task adds."""
    own = min(round((size - int(size * common)) / tasks), size // tasks)
    return size - own * tasks, own


def iso(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    scale: Any = 1.0,
    conformance: str | None = None,
) -> PyTree:
    """Iso-C: add up the changes, then give all directions one singular value.

    With `sum_t w_t D_t = U diag(s) V^T` the merge is `scale * mean(s) U V^T`, so that
    directions which few tasks share count as much as those which dominate the sum.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        scale: Factor of the whole merge, tuned on held-out data by the authors. May be
            traced.
        conformance: None for the support: the directions that the sum has, and the
            mean over those. "paper" for all `min(n, m)`, null directions and all, from
            the formed sum.

    Returns:
        One adapted tree over the same base, of rank `sum_t r_t` at most, with equal
        singular values. A leaf that is no matrix gets the weighted sum, or under
        "paper" the mean, times `scale`. Without `conformance` nothing of the size of a
        weight is formed.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors hold different axes, the weights do not fit, or `scale` is no
            finite number.

    Example:
        >>> w, a, b = jnp.zeros((3, 2)), jnp.eye(3, 2), jnp.diag(jnp.array([3.0, 1.0]))
        >>> merged = lrk.merging.iso([{"w": lrk.LowRank(w, a, b)}])
        >>> jnp.diagonal(lrk.materialize(merged)["w"]).round(4).tolist()
        [2.0, 2.0]

    Notes:
        For low-rank changes the published form dilutes the mean by
        `min(n, m) / sum_t r_t`, and fills null directions that the solver picks: see
        the page on these methods.

    References:
        Marczak et al., No Task Left Behind, 2025, arXiv:2502.04959: Iso-C.
    """
    spectral("iso", conformance)
    check_number("iso", "scale", scale)
    flatten = isotropic_factors if conformance is None else isotropic_whole

    def leaf(own: Matrices, weights: Sequence[Any]) -> tuple[Array, Array]:
        return flatten(*total(own, weights))

    return _by_leaf("iso", trees, weights, leaf, scale, conformance)


def iso_cts(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    common: float = 0.8,
    scale: Any = 1.0,
    conformance: str | None = None,
) -> PyTree:
    """Iso-CTS: common directions, directions of each task, one singular value.

    Of the `R` directions of `sum_t w_t D_t` the leading `k` are kept as common; each
    task adds the leading `(R - k) / T` of its change without them,
    `w_t D_t (1 - V_k V_k^T)`. The collected directions are orthogonalised by their
    polar factors, and all get the mean of the collected singular values, times `scale`.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: As for `iso`.
        common: Share of the directions that is common, in [0, 1]; rounded so that the
            tasks get equally many of the rest.
        scale: As for `iso`.
        conformance: None for `R = min(n, m, sum_t r_t)`, from factors, null directions
            left out; "paper" for `R = min(n, m)`, from the formed changes.

    Returns:
        One adapted tree over the same base, of rank `R` at most. Where no direction is
        left to the tasks it is that of `iso`. A leaf that is no matrix is merged as by
        `iso`.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: As for `iso`; or if `common` lies outside [0, 1].

    Example:
        >>> w, keys = jnp.zeros((9, 8)), jax.random.split(jax.random.key(0), 4)
        >>> a, c = (jax.random.normal(key, (9, 2)) for key in keys[:2])
        >>> b, d = (jax.random.normal(key, (2, 8)) for key in keys[2:])
        >>> trees = [{"w": lrk.LowRank(w, *pair)} for pair in ((a, b), (c, d))]
        >>> lrk.merging.iso_cts(trees, common=0.5)["w"].rank
        4

    Notes:
        The authors take the common directions away on the output side, as here; their
        matrices are the transposes of ours. A task whose rank is below its share adds
        what it has.

    References:
        Marczak et al., No Task Left Behind, 2025, arXiv:2502.04959: Iso-CTS.
    """
    decompose = spectral("iso_cts", conformance)
    check_number("iso_cts", "scale", scale)
    if not 0 <= common <= 1:
        raise ValueError(f"iso_cts: expected common in [0, 1], got {common}.")

    def leaf(own: Matrices, weights: Sequence[Any]) -> tuple[Array, Array]:
        return _common_and_own(own, weights, common, decompose)

    return _by_leaf("iso_cts", trees, weights, leaf, scale, conformance)


def _common_and_own(
    own: Matrices, weights: Sequence[Any], common: float, decompose: Spectral
) -> tuple[Array, Array]:
    """One leaf of Iso-CTS."""
    whole = decompose(*total(own, weights))
    number, each = shares(whole.s.shape[-1], len(weights), common)
    shared = whole.first(number)
    found = [shared]
    v = jnp.matrix_transpose(shared.vt)
    for a, b, w in present(own, weights) if each else ():
        rest = scaled(b, w)
        rest = rest - (rest @ v) @ shared.vt
        found.append(decompose(a, rest, whole.s[..., :1]).first(each))
    u = nearest_isometry(jnp.concatenate([x.u for x in found], axis=-1))
    vt = nearest_isometry(jnp.concatenate([x.vt for x in found], axis=-2))
    s, kept = (
        jnp.concatenate([getattr(x, name) for x in found], axis=-1)
        for name in ("s", "kept")
    )
    return u * _mean(s, kept), vt


def _by_leaf(
    who: str,
    trees: Sequence[PyTree],
    weights: Any,
    merge: Any,
    scale: Any,
    conformance: str | None,
) -> PyTree:
    """The tree whose matrices are merged by `merge`, times `scale`."""
    found = factored(who, trees)
    numbers = weights_by_path(who, weights, len(trees), found)
    merged: dict[Path, Operator] = {}
    for path, own in found.items():
        if isinstance(own, Plain):
            merged[path] = plain(own, numbers[path], scale, conformance)
        else:
            a, b = merge(own, numbers[path])
            merged[path] = own.operator(scaled(a, scale), b)
    return assemble(who, trees[0], merged)
