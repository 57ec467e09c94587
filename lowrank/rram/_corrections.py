"""Digital corrections of a chip that is programmed and stays as it is."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree
from lowrank._select import Select
from lowrank.linalg import largest, leading_vectors
from lowrank.operators import Delta, LowRank
from lowrank.operators._rows import matrix_shape, to_matrix
from lowrank.rram._errors import Error, errors_of

Matrix = Float[Array, "*stack n m"]
Factors = tuple[Float[Array, "*stack n r"], Float[Array, "*stack r m"]]


def best_factors(e: Matrix, rank: int) -> Factors:
    """`(a, b)` so that `a b` is the matrix of a rank next to `e`."""
    *stack, n, m = e.shape
    # Singular vectors of the shorter side: their matrix is the smaller one.
    wide = jnp.matrix_transpose(e) if n > m else e
    eye = jnp.eye(min(n, m), dtype=e.dtype)
    u = leading_vectors(jnp.broadcast_to(eye, (*stack, *eye.shape)), wide, rank)
    ut = jnp.matrix_transpose(u)
    return (e @ u, ut) if n > m else (u, ut @ e)


def weighted_factors(e: Matrix, gram: Float[Array, "*stack n n"], rank: int) -> Factors:
    """`(a, b)` that minimise `||G^(1/2) (e - a b)||_F`, without what `G` cannot see."""
    values, v = jnp.linalg.eigh(gram)
    top = jnp.max(values, axis=-1, keepdims=True)
    seen = values > gram.shape[-1] * jnp.finfo(values.dtype).eps * jnp.maximum(top, 0)
    root = jnp.sqrt(jnp.where(seen, values, 1))[..., :, None]
    seen = seen[..., :, None].astype(e.dtype)
    # G^(1/2) e up to a rotation from the left, which no norm sees.
    u, b = best_factors(seen * root * (jnp.matrix_transpose(v) @ e), rank)
    return v @ (seen / root * u), b


def svd_correction(
    params: PyTree,
    deployed: PyTree,
    rank: int,
    *,
    gram: Mapping[Path, Any] | None = None,
    axes: Mapping[Path, Axes] | None = None,
    select: Select | None = None,
) -> PyTree:
    """The best digital branch of a rank beside a chip, without training.

    With the error `E = W - W_chip: [n, m]` of a deployed weight, the branch is the
    product `a b` of rank `r` next to it: `min ||E - a b||_F`, a truncated SVD. Given
    the Gram matrix `G = X^T X` of the inputs `X` that the weight meets, it is instead
    the one with the least error of the outputs: `min ||X (E - a b)||_F =
    min ||G^(1/2) (E - a b)||_F`.

    Args:
        params: The weights that were wanted.
        deployed: What the chip has in their place: what a crossbar's `apply` returns.
        rank: Rank `r`, at least 1; a leaf with a shorter side gets that.
        gram: By path `[*stack, n, n]`, as `lrk.merging.gram` gives; leaves without one
            count all inputs alike.
        axes: Axes by path for leaves that have not exactly two; as for `lora`.
        select: Which leaves; None for every floating leaf of two axes or more that is
            not the same object in both trees.

    Returns:
        An adapted tree over `deployed`: `LowRank` with `a` and `b` in float32 or wider
        at each of these leaves, all others untouched. It may be trained further. It
        runs under `jit`, and under `vmap` over chips.

    Raises:
        TypeError: If `rank` is no int.
        ValueError: If `rank < 1`, the trees differ in paths or shapes, no leaf is left,
            an operator has no dense form, or axes or Gram matrices do not fit.

    Example:
        >>> params = {"w": jnp.diag(jnp.array([3.0, 2.0, 1.0]))}
        >>> chip = {"w": jnp.diag(jnp.array([0.0, 2.0, 0.5]))}  # two cells are off
        >>> healed = lrk.rram.svd_correction(params, chip, rank=1)
        >>> [round(x, 3) for x in jnp.diag(lrk.materialize(healed)["w"]).tolist()]
        [3.0, 2.0, 0.5]

    Notes:
        Inputs that no example has (null directions of `G`) are left as deployed. A
        `Crossbar` operator, whose converters act inside the product, counts as its
        `programmed_weight()`; the branch then stands beside the operator.
        Under `jit`, trees that come from another compiled function share no objects:
        pass `select=`, or leaves that are the same get a branch of zeros.

    References:
        Eckart and Young, 1936. For the activation-weighted form, the same whitening as
        data-aware low-rank compression, such as Wang et al., SVD-LLM, 2024,
        arXiv:2403.07378.
    """
    rank = _check_rank(rank)
    errors = errors_of("svd_correction", params, deployed, select, matrices=True)
    found = resolve("svd_correction", {p: x.leaf for p, x in errors.items()}, axes)
    shapes = {path: matrix_shape(x.leaf, found[path]) for path, x in errors.items()}
    _check_grams(gram or {}, {p: (*s[:-1], s[-2]) for p, s in shapes.items()})
    new = {}
    for path, (leaf, error) in errors.items():
        e = to_matrix(error, found[path])
        if gram and path in gram:
            pair = weighted_factors(e, jnp.asarray(gram[path]).astype(e.dtype), rank)
        else:
            pair = best_factors(e, rank)
        new[path] = _branch(leaf, found[path], *pair)
    return _tree.replace("svd_correction", deployed, new)


def patch(
    params: PyTree,
    deployed: PyTree,
    count: Any,
    *,
    importance: Mapping[Path, Any] | None = None,
    select: Select | None = None,
) -> PyTree:
    """A sparse digital patch: the most important wrong weights, put right one by one.

    Of all entries with an error `E = W - W_chip` other than zero, over all leaves, the
    `count` most important get their error added digitally.

    Args:
        params: The weights that were wanted.
        deployed: What the chip has in their place.
        count: How many entries of the whole network, at least 0; may be traced. Of
            equal importance the earlier stay, in the order of the tree, so the number
            is exact (fewer only where fewer are wrong).
        importance: Not negative, by path, of the leaf's shape; None for `|E|`. It
            ranks entries whatever the size of their error: pass `omega E^2` to weigh
            one by the other.
        select: Which leaves; None for every floating leaf that is not the same object
            in both trees.

    Returns:
        An adapted tree over `deployed`: `Delta` with `d` equal to `E` at the chosen
        entries and zero elsewhere. `d` is a dense array, for simulation; hardware would
        keep `patch_bytes(count)`. It runs under `jit`, and under `vmap` over chips.

    Raises:
        ValueError: If `count < 0`, the trees differ in paths or shapes, no leaf is
            left, an operator has no dense form, or `importance` does not fit.

    Example:
        >>> params = {"w": jnp.array([4.0, 3.0, 2.0, 1.0])}
        >>> chip = {"w": jnp.array([4.0, 0.0, 0.0, 0.0])}
        >>> lrk.materialize(lrk.rram.patch(params, chip, 2))["w"].tolist()
        [4.0, 3.0, 2.0, 0.0]

    References:
        None: the plainest correction, to compare others with.
    """
    if isinstance(count, int | np.integer) and count < 0:
        raise ValueError(f"patch: count must be at least 0, got {count}.")
    errors = errors_of("patch", params, deployed, select, matrices=False)
    weights = {path: jnp.abs(x.e) for path, x in errors.items()}
    if importance is not None:
        _check_importance(importance, errors)
        weights = {path: jnp.asarray(importance[path]) for path in errors}
    chosen = _most_important({p: x.e for p, x in errors.items()}, weights, count)
    new = {
        path: Delta._make(w=x.leaf, d=jnp.where(chosen[path], x.e, 0))
        for path, x in errors.items()
    }
    return _tree.replace("patch", deployed, new)


def patch_bytes(count: int, *, value: int = 4, index: int = 4) -> int:
    """Bytes of a sparse patch in digital memory: a value and a place for each entry.

    Args:
        count: Entries of the patch.
        value: Bytes of one value; 4 for float32.
        index: Bytes of one place; 4 reach 2^32 weights.

    Returns:
        `count (value + index)`.

    Example:
        >>> lrk.rram.patch_bytes(1000)
        8000
    """
    return count * (value + index)


def _most_important(
    errors: Mapping[Path, Array], weights: Mapping[Path, Array], count: Any
) -> dict[Path, Array]:
    """Which entries are among the `count` most important that are wrong."""
    flat = jnp.concatenate([e.reshape(-1) for e in errors.values()])
    score = jnp.concatenate(
        [weights[path].astype(flat.dtype).reshape(-1) for path in errors]
    )
    # An entry of no importance that is wrong still comes before one that is right.
    score = jnp.where(flat != 0, jnp.maximum(score, jnp.finfo(flat.dtype).tiny), 0)
    kept = largest(score, count)
    sizes = [math.prod(e.shape) for e in errors.values()]
    parts = jnp.split(kept, np.cumsum(sizes)[:-1])
    return {
        path: part.reshape(e.shape)
        for (path, e), part in zip(errors.items(), parts, strict=True)
    }


def _branch(leaf: Any, axes: Axes, a: Array, b: Array) -> Operator:
    """`leaf + a b`, for `a: [*stack, n, r]` and `b: [*stack, r, m]`."""
    sizes, rank = axes.sizes(tuple(leaf.shape)), a.shape[-1]
    values = {
        "w": leaf,
        "a": a.reshape(*sizes.stack, *sizes.inputs, rank),
        "b": b.reshape(*sizes.stack, rank, *sizes.outputs),
        "scale": jnp.ones((), a.dtype),
    }
    return LowRank._make(**values, a_dims=axes.a_dims, b_dims=axes.b_dims)


def _check_rank(rank: Any) -> int:
    """Refuse what is no rank.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1.
    """
    if isinstance(rank, bool) or not isinstance(rank, int | np.integer):
        raise TypeError(f"svd_correction: rank must be an int, got {rank!r}.")
    if rank < 1:
        raise ValueError(f"svd_correction: rank must be at least 1, got {rank}.")
    return int(rank)


def _check_grams(
    gram: Mapping[Path, Any], wanted: Mapping[Path, tuple[int, ...]]
) -> None:
    """Refuse Gram matrices of other leaves or shapes.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [f"'{path}' is not corrected" for path in gram if path not in wanted]
    bad += [
        f"'{path}': expected {wanted[path]}, got {tuple(g.shape)}"
        for path, g in gram.items()
        if path in wanted and tuple(g.shape) != wanted[path]
    ]
    if bad:
        raise ValueError(
            f"svd_correction: Gram matrices do not fit: {'; '.join(bad)}. Collect them "
            "with lrk.merging.gram, of the leaves that select= takes."
        )


def _check_importance(
    importance: Mapping[Path, Any], errors: Mapping[Path, Error]
) -> None:
    """Refuse importance that does not cover the leaves.

    Raises:
        ValueError: If some leaf has none, or one of another shape; all are named.
    """
    bad = [f"'{path}': none given" for path in errors if path not in importance]
    bad += [
        f"'{path}': expected {tuple(x.e.shape)}, got {np.shape(importance[path])}"
        for path, x in errors.items()
        if path in importance and np.shape(importance[path]) != tuple(x.e.shape)
    ]
    if bad:
        raise ValueError(
            f"patch: importance does not fit: {'; '.join(bad)}. Pass an array like "
            "each corrected leaf, by path."
        )
