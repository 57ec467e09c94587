"""KnOTS: merge in a basis that the singular vectors of all tasks share."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from lowrank._base import Array, PyTree
from lowrank.linalg import factored_svd
from lowrank.merging._common import weights_by_path
from lowrank.merging._coordinates import Frame, check_merge, columns, merge_cores
from lowrank.merging._factors import Matrices, factored
from lowrank.merging._ties import ties


def shared_rows(own: Matrices) -> Array:
    """Right singular vectors of `[D_1; ...; D_T]` with `D_t = a_t b_t`, from factors.

    With `a_t = Q_t L_t`, `Q_t` orthonormal, they are those of `[L_1 b_1; ...]`.
    """
    thin = [jnp.matrix_transpose(columns(a)) @ a for a in own.a]
    a = _block_diagonal(thin)
    return factored_svd(a, jnp.concatenate(own.b, axis=-2))[2]


def _block_diagonal(blocks: Sequence[Array]) -> Array:
    """Blocks `[*stack, k_t, r_t]` along the diagonal, `[*stack, sum k_t, sum r_t]`."""
    width = sum(x.shape[-1] for x in blocks)
    padded, start = [], 0
    for x in blocks:
        end = width - start - x.shape[-1]
        sides = [*[(0, 0)] * (x.ndim - 1), (start, end)]
        padded.append(jnp.pad(x, sides))
        start += x.shape[-1]
    return jnp.concatenate(padded, axis=-2)


def knots(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    merge: Callable[..., PyTree] | None = None,
    density: Any = None,
) -> PyTree:
    """KnOTS: write all changes in one basis, and merge what is left of each.

    The SVD of all changes below one another, `[D_1; ...; D_T] = [P_1; ...; P_T] V^T`
    with the singular values in the `P_t: [n, k]`, puts the tasks in one basis of the
    outputs. Another merge, TIES by default, makes one `P` of the `P_t`, and the result
    is `P V^T`.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. Handed to `merge`.
        merge: What merges the `P_t`, called as `merge(part_trees, weights)`: a merge of
            this library, with `functools.partial` for its options. A part tree maps
            each adapted path to `P_t` over a base of zeros; leaves that are no matrices
            take part as they are. None for `ties`.
        density: For `ties` alone, share of its entries over all leaves that each task
            keeps; None for 0.2.

    Returns:
        One adapted tree over the same base, of rank `k = min(m, sum_t r_t)` at most.
        With a linear `merge` it is that merge, to rounding. Nothing of the size of a
        weight is formed.

    Raises:
        TypeError: If `trees` is no list, or `merge` is not callable.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            factors hold different axes, the weights do not fit, `density` comes with
            `merge`, or `merge` returns anything but an adapted tree over the bases of
            the part trees.

    Example:
        >>> w, a, b = jnp.zeros((4, 3)), jnp.eye(4, 1), jnp.ones((1, 3))
        >>> trees = [{"w": lrk.LowRank(w, a, b)}, {"w": lrk.LowRank(w, 3 * a, b)}]
        >>> merged = lrk.merging.knots(trees, density=0.5)
        >>> lrk.materialize(merged)["w"][0].round(4).tolist()
        [2.0, 2.0, 2.0]

    Notes:
        The authors' matrices are `[out, in]` and put side by side; ours are their
        transposes, so the outputs are the shared side in both. They drop directions
        with a singular value up to 1e-5; here `k` does not depend on values, so such a
        direction stays, as numbers near zero that count towards `density`. They leave
        out the scale `alpha / r`.

    References:
        Stoica et al., Model merging with SVD to tie the KnOTS, 2024, arXiv:2410.19735:
        the joint SVD, and merging of its task-wise parts.
    """
    if merge is not None and density is not None:
        raise ValueError(
            "knots: density is for the default merge, ties. Give it to your merge: "
            "merge=functools.partial(..., density=...)."
        )
    share = 0.2 if density is None else density
    chosen = functools.partial(ties, density=share) if merge is None else merge
    check_merge("knots", chosen)
    found = factored("knots", trees)
    weights_by_path("knots", weights, len(trees), found)
    frames = {
        path: Frame(None, shared_rows(own))
        for path, own in found.items()
        if isinstance(own, Matrices)
    }

    def run(parts: list[PyTree]) -> PyTree:
        return chosen(parts, weights)

    return merge_cores("knots", trees, found, frames, run)
