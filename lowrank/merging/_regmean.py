"""RegMean: the merge that solves a linear regression for every weight."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowrank._base import Array, Path, PyTree
from lowrank.merging._data import by_path, mean, positive_weights
from lowrank.merging._factors import Matrices, assemble, factored
from lowrank.operators._dispatch import scaled

Shape = tuple[int, ...]


def regmean(
    trees: Sequence[PyTree],
    grams: Sequence[Mapping[Path, Array]],
    weights: Any = None,
    *,
    off_diagonal: float = 0.9,
    ridge: float = 1e-6,
) -> PyTree:
    """RegMean: the weights whose outputs are closest to every model's on its own data.

    `min_W sum_t w_t ||X_t W - X_t W_t||^2` has the solution
    `W = (sum_t w_t G_t)^-1 sum_t w_t G_t W_t` with the Gram matrix `G_t = X_t^T X_t` of
    the inputs `X_t: [rows, n]`. Over one base, `W_t = W0 + A_t B_t`, only the changes
    are merged, and the result stays factored: `W0 + A B` with
    `A = (sum_t w_t G_t)^-1 [w_1 G_1 A_1 ... w_T G_T A_T]` and `B = [B_1; ...; B_T]`.

    Args:
        trees: Adapted trees over one base; ranks may differ.
        grams: For each tree its Gram matrices by path, `[*stack, n, n]`, as `gram`
            gives them. A leaf has those of all trees or of none.
        weights: For each tree a number, or a mapping from every adapted path to one;
            not negative; None for ones. Only their ratios count. May be traced.
        off_diagonal: What entries off the diagonal of each Gram matrix are multiplied
            by, in [0, 1]: 1 is the exact regression, 0 looks at each input alone.
        ridge: Each Gram matrix gets this times the mean of its diagonal added to its
            diagonal, at least 0: directions that no input has get the weighted mean.

    Returns:
        One adapted tree over the same base, of rank `sum_t r_t`. A leaf without Gram
        matrices, such as a bias, gets the mean of the changes, weighted by `weights`.

    Raises:
        TypeError: If `trees` is no list, or `grams` no list of mappings.
        ValueError: If the bases differ, a term is neither low-rank nor a plain delta,
            weights or Gram matrices do not fit, or a number is out of range. All such
            leaves are named.

    Example:
        >>> w = jnp.zeros((2, 1))
        >>> one, two = ({"w": lrk.Delta(w, jnp.full((2, 1), d))} for d in (1.0, 3.0))
        >>> often = [{"w": jnp.diag(jnp.array(g))} for g in ([9.0, 1.0], [1.0, 1.0])]
        >>> merged = lrk.merging.regmean([one, two], often)
        >>> [round(x, 3) for x in lrk.materialize(merged)["w"].ravel().tolist()]
        [1.2, 2.0]

    Notes:
        The system is solved by a Cholesky factorisation, in float32 or wider; no
        inverse is formed. A task with more rows counts more, as in the paper's sum:
        divide its Gram matrices by the number of rows to count each task once. The
        paper merges whole weights and takes the plain mean of what is no matrix of a
        linear layer; with weights this is their weighted mean. The ridge is ours.

    References:
        Jin et al., Dataless knowledge fusion by merging weights of language models,
        2023, arXiv:2212.09849: the regression, and the scaling of the off-diagonals.
    """
    _check_range("off_diagonal", off_diagonal, 1.0)
    _check_range("ridge", ridge, float("inf"))
    found = factored("regmean", trees)
    shapes = {path: _gram_shape(leaf) for path, leaf in found.items()}
    given = by_path("regmean", "Gram", grams, len(trees), shapes, nonnegative=False)
    numbers = positive_weights("regmean", weights, len(trees), found)
    merged = {}
    for path, leaf in found.items():
        if not isinstance(leaf, Matrices) or path not in given:
            merged[path] = mean(leaf, numbers[path])
            continue
        each = [shrunk(g, off_diagonal, ridge) for g in given[path]]
        a = solved(each, leaf.a, numbers[path])
        merged[path] = leaf.operator(a, jnp.concatenate(leaf.b, axis=-2))
    return assemble("regmean", trees[0], merged)


def _check_range(name: str, value: float, most: float) -> None:
    if not 0 <= value <= most:
        kind = "in [0, 1]" if most == 1 else "at least 0"
        raise ValueError(f"regmean: {name} must be {kind}, got {value}.")


def _gram_shape(leaf: Any) -> Shape | None:
    if not isinstance(leaf, Matrices):
        return None
    *stack, n, _ = leaf.a[0].shape
    return (*stack, n, n)


def shrunk(g: Array, off_diagonal: float, ridge: float) -> Array:
    """A Gram matrix `[*stack, n, n]` with smaller off-diagonals and a ridge."""
    eye = jnp.eye(g.shape[-1], dtype=g.dtype).reshape(
        (1,) * (g.ndim - 2) + g.shape[-2:]
    )
    level = jnp.mean(jnp.sum(g * eye, axis=-1), axis=-1)[..., None, None]
    return g * (off_diagonal + (1 - off_diagonal) * eye) + ridge * level * eye


def solved(
    grams: Sequence[Array], factors: Sequence[Array], weights: Sequence[Any]
) -> Array:
    """`(sum w G)^-1 [w_1 G_1 A_1 ... w_T G_T A_T]`, for `A: [*stack, n, r]`."""
    each = [scaled(g, w) for g, w in zip(grams, weights, strict=True)]
    right = [g @ a for g, a in zip(each, factors, strict=True)]
    lower = jnp.linalg.cholesky(sum(each[1:], each[0]))
    return jax.scipy.linalg.cho_solve((lower, True), jnp.concatenate(right, axis=-1))
