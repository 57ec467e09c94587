"""How far the adapters of a merge share input directions."""

import itertools
from collections.abc import Sequence

import jax.numpy as jnp

from lowrank._base import Array, Path, PyTree
from lowrank._parts import check_axes, parts
from lowrank.operators import LowRank


def column_basis(a: Array) -> Array:
    """An orthonormal basis of the column space of `[*stack, n, r]`, in float32.

    A thin QR, then an SVD of its small factor: `[*stack, n, min(n, r)]`, with zeros in
    place of the directions that a rank-deficient `a` lacks.
    """
    q, r = jnp.linalg.qr(a.astype(jnp.promote_types(a.dtype, jnp.float32)))
    u, s, _ = jnp.linalg.svd(r, full_matrices=False)
    largest = jnp.max(s, axis=-1, keepdims=True)
    kept = s > largest * max(a.shape[-2:]) * jnp.finfo(s.dtype).eps
    return (q @ u) * kept[..., None, :]


def largest_cosine(one: Array, two: Array) -> Array:
    """Cosine of the smallest principal angle between two orthonormal bases."""
    values = jnp.linalg.svd(jnp.matrix_transpose(one) @ two, compute_uv=False)
    return jnp.minimum(jnp.max(values, axis=-1), 1.0)


def overlap(trees: Sequence[PyTree]) -> dict[Path, Array]:
    """How far adapters read the same directions of their input.

    For each leaf that at least two trees adapt by low rank, the largest cosine of the
    principal angles between the column spaces of `A_s` and `A_t`, over all pairs of
    trees: `max_{s < t} ||Q_s^T Q_t||_2` with `A_t = Q_t R_t`. One means that two trees
    share a direction, as they do where two tasks of LoRI were started from one key;
    zero, that a merge by `concat` lets no input meet more than one of them.

    Args:
        trees: Adapted trees over one base, at least two. All low-rank terms that a tree
            has at a leaf count as one `A`.

    Returns:
        By path, a number in [0, 1], or one for each stack index, `[*stack]`. Leaves
        that fewer than two trees adapt by low rank are left out. Nothing of the size of
        a weight is formed, and it runs under `jit`.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If there are fewer than two trees, their bases differ, or factors
            of a leaf hold different axes.

    Example:
        >>> params, tx = {"w": jnp.ones((64, 8))}, lrk.lori(2)
        >>> keys = [jax.random.key(0), jax.random.key(0), jax.random.key(1)]
        >>> trees = [tx.apply(params, tx.init(key, params)) for key in keys]
        >>> round(float(lrk.merging.overlap(trees[:2])["w"]), 3)
        1.0
        >>> bool(lrk.merging.overlap(trees[1:])["w"] < 0.7)
        True

    Notes:
        Two independent draws of `[n, r]` have about `2 sqrt(r / n)`, for `r` much
        smaller than `n`, and never zero: compare with that.

    References:
        Bjorck and Golub, Numerical methods for computing angles between linear
        subspaces, 1973: theorem 1. Zhang et al., LoRI, 2025, arXiv:2504.07448, on
        orthogonal adapters.
    """
    found = parts("overlap", trees)
    if len(trees) < 2:
        raise ValueError("overlap: expected at least two adapted trees, got one.")
    check_axes("overlap", found)
    cosines: dict[Path, Array] = {}
    for path, leaf in found.items():
        factors = [_factor(leaf.base.shape, terms) for terms in leaf.terms]
        bases = [column_basis(a) for a in factors if a is not None]
        pairs = [largest_cosine(*pair) for pair in itertools.combinations(bases, 2)]
        if pairs:
            cosines[path] = jnp.max(jnp.stack(pairs), axis=0)
    return cosines


def _factor(shape: tuple[int, ...], terms: Sequence[object]) -> Array | None:
    """All `A` of one tree at one leaf, side by side, as `[*stack, n, r]`."""
    own = []
    for term in terms:
        if isinstance(term, LowRank):
            stack = tuple(shape[d] for d in term.stack)
            own.append(term.a.reshape(*stack, -1, term.rank))
    return jnp.concatenate(own, axis=-1) if own else None
