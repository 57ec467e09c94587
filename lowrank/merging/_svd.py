"""The best approximation of a sum of adapters at a given rank, from factors alone."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, Path, PyTree
from lowrank.linalg import factored_svd, leading_vectors
from lowrank.merging._common import weights_by_path
from lowrank.merging._factors import Matrices, Plain, assemble, factored
from lowrank.operators._dispatch import scaled

Leaves = Mapping[Path, tuple[Matrices | Plain, Sequence[Any]]]


def side_by_side(
    a: Sequence[Array], b: Sequence[Array], weights: Sequence[Any]
) -> tuple[Array, Array]:
    """Factors `[*stack, n, R]` and `[*stack, R, m]` of `sum_t w_t a_t b_t`."""
    heavy = [scaled(own, w) for own, w in zip(b, weights, strict=True)]
    return jnp.concatenate(a, axis=-1), jnp.concatenate(heavy, axis=-2)


def truncated(a: Array, b: Array, rank: int) -> tuple[Array, Array]:
    """The best approximation of `a b` of a rank, as `u_r` and `u_r^T a b`.

    The second factor is `diag(s_r) vt_r`, so written that the derivative of the product
    is right also where singular values repeat.
    """
    u = leading_vectors(a, b, rank)
    return u, (jnp.matrix_transpose(u) @ a) @ b


def svd(trees: Sequence[PyTree], weights: Any = None, *, rank: int) -> PyTree:
    """The sum of adapters at a given rank, as near to the exact sum as can be.

    With `X = sum_t w_t s_t A_t B_t = U S V^T` the result stands for
    `W + U_r S_r V_r^T`, the matrix of rank `r` next to `X` in the Frobenius norm. The
    SVD comes from thin factors: a QR of `[A_1 ... A_T]`, a QR of the `B_t`, and the SVD
    of a matrix that is as wide as the ranks together; no array of the size of a weight
    is formed. Plain deltas of matrices count as part of `X`; those of other leaves are
    summed.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        rank: Rank of the result, at least 1. More than the ranks together, or than a
            side of the weight, gives the exact sum at that smaller rank.

    Returns:
        One adapted tree over the same base, in float32 or wider: `A = U_r`, with
        orthonormal columns, and `B = S_r V_r^T`. A product as wide as an unstacked
        weight becomes a plain delta. What was cut off tells `discarded_energy`.

    Raises:
        TypeError: If `trees` is no list, or `rank` is no int.
        ValueError: If `rank < 1`, the bases differ, a term is neither low-rank nor a
            plain delta, factors of a leaf hold different axes, or the weights do not
            fit.

    Example:
        >>> params, tx = {"w": jnp.ones((6, 5))}, lrk.lori(2)
        >>> keys = jax.random.split(jax.random.key(0), 2)
        >>> trees = [tx.apply(params, tx.init(key, params)) for key in keys]
        >>> merged = lrk.merging.svd(trees, [0.5, 0.5], rank=3)
        >>> merged["w"].a.shape, merged["w"].b.shape
        ((6, 3), (3, 5))

    Notes:
        Gradients are always finite. They are those of the result where singular values
        `r` and `r + 1` differ, whatever repeats among the others, and wherever nothing
        is cut off; elsewhere the truncation itself has none. Second derivatives want
        all singular values distinct.

        Since the signs of singular vectors are arbitrary, `A` and `B` may differ from
        one backend to the next; their product does not.

        PEFT's `svd` forms the weight, and until 0.19.1 multiplied its result by the
        scale of the adapters twice.

    References:
        Eckart and Young, The approximation of one matrix by another of lower rank,
        1936. PEFT's `add_weighted_adapter` with `combination_type="svd"`.
    """
    check_rank("svd", rank)
    merged = {}
    for path, (leaf, own) in _weighted("svd", trees, weights).items():
        if isinstance(leaf, Plain):
            merged[path] = leaf.operator(own)
        else:
            pair = truncated(*side_by_side(leaf.a, leaf.b, own), rank)
            merged[path] = leaf.operator(*pair)
    return assemble("svd", trees[0], merged)


def discarded_energy(
    trees: Sequence[PyTree], weights: Any = None, *, rank: int
) -> dict[Path, Array]:
    """What `svd` cuts off at a rank, as a share of the exact sum.

    For singular values `s_i` of the weighted sum of a leaf it is
    `sum_{i > r} s_i^2 / sum_i s_i^2`: the squared relative error in the Frobenius norm.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        rank: The rank kept, at least 1.

    Returns:
        By path, a number in [0, 1], or one for each stack index, `[*stack]`; zero where
        the sum is zero. Leaves that are summed as they are, such as biases, are left
        out. It runs under `jit`.

    Raises:
        TypeError: If `trees` is no list, or `rank` is no int.
        ValueError: As `svd`.

    Example:
        >>> w, b = jnp.zeros((2, 2)), jnp.eye(2)
        >>> trees = [{"w": lrk.LowRank(w, b, b * jnp.array([[3.0], [1.0]]))}]
        >>> lrk.merging.discarded_energy(trees, rank=1)["w"].round(3)
        Array(0.1, dtype=float32)
    """
    check_rank("discarded_energy", rank)
    return {
        path: _share_after(rank, *side_by_side(leaf.a, leaf.b, own))
        for path, (leaf, own) in _weighted("discarded_energy", trees, weights).items()
        if isinstance(leaf, Matrices)
    }


def _share_after(rank: int, a: Array, b: Array) -> Array:
    """Share of the squared singular values of `a b` after the first `rank`."""
    s = factored_svd(a, b)[1]
    energy = jnp.square(s)
    total = jnp.sum(energy, axis=-1)
    rest = jnp.sum(energy[..., rank:], axis=-1)
    return rest / jnp.where(total == 0, 1, total)


def check_rank(who: str, rank: Any) -> None:
    """Refuse what is no rank.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is less than 1.
    """
    if not isinstance(rank, int) or isinstance(rank, bool):
        raise TypeError(f"{who}: expected an int as rank, got {rank!r}.")
    if rank < 1:
        raise ValueError(f"{who}: rank must be at least 1, got {rank}.")


def _weighted(who: str, trees: Sequence[PyTree], weights: Any) -> Leaves:
    """Each adapted leaf as thin matrices, with the weights of the trees."""
    leaves = factored(who, trees)
    numbers = weights_by_path(who, weights, len(trees), leaves)
    return {path: (leaf, numbers[path]) for path, leaf in leaves.items()}
