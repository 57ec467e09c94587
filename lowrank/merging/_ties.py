"""TIES: trim small changes, elect a sign for each entry, average those that agree."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank._base import Array, PyTree
from lowrank.linalg import largest
from lowrank.merging._pieces import Piece, Pieces, check_choice, check_only, each, merge


def count(share: Any, size: int, least: int = 1) -> Array:
    """How many of `size` entries a share is: `max(least, floor(share * size))`.

    In double precision where the share is known to Python; a JAX array counts in its
    own precision, so the number may differ by one where the product is next to a whole
    number.
    """
    if isinstance(share, jax.Array):
        return jnp.maximum(least, jnp.floor(share * size).astype(jnp.int32))
    number = np.floor(np.asarray(share, np.float64) * size)
    return jnp.asarray(np.maximum(least, number).astype(np.int32))


def for_each_tree(value: Any, x: Array) -> Any:
    """A number, or numbers `[T]`, so that it broadcasts against `x: [T, ...]`."""
    if np.ndim(value) == 0:
        return value
    return value.reshape(-1, *(1,) * (x.ndim - 1))


def ranks(x: Array) -> Array:
    """Place of each entry by magnitude along the last axis: the largest is 0.

    Of equal entries the earlier one comes first.
    """
    order = jnp.argsort(-jnp.abs(x), axis=-1, stable=True)
    return jnp.argsort(order, axis=-1)


def trim(x: Array, density: Any) -> Array:
    """Keep the `count(density, N)` largest entries of each `[..., N]`, zero the others.

    `density` is a number, or one for each entry of the first axis; it may be traced.
    """
    number = for_each_tree(count(density, x.shape[-1]), x)
    return jnp.where(largest(x, number), x, 0)


def elect(x: Array) -> Array:
    """The sign of `sum_t x_t` for `[T, ...]`; where it is zero, the sign of most.

    That is the sign of the sum of all signs, so `x` must hold the whole model.
    """
    sign = jnp.sign(jnp.sum(x, axis=0))
    return jnp.where(sign == 0, jnp.sign(jnp.sum(sign)), sign)


def elect_up(x: Array) -> Array:
    """The sign of `sum_t x_t` for `[T, ...]`; where it is zero, plus."""
    return jnp.where(jnp.sum(x, axis=0) >= 0, 1, -1).astype(x.dtype)


def agrees(x: Array, sign: Array) -> Array:
    """Where the entries of `[T, ...]` are not zero and have the elected sign."""
    return jnp.where(sign[None] > 0, x > 0, x < 0)


def disjoint_mean(x: Array, agree: Array, share: Any = None) -> Array:
    """`sum_t x_t` over those that agree, over their number, or the sum of shares.

    Zero where nothing agrees; undivided where the shares add up to zero.
    """
    one = jnp.ones((), x.dtype) if share is None else share
    total = jnp.sum(jnp.where(agree, x, 0), axis=0)
    divisor = jnp.sum(jnp.where(agree, one, 0), axis=0)
    return total / jnp.where(divisor == 0, 1, divisor)


def by_count(x: Array, w: Array) -> Array:
    """Elect as PEFT: by the unweighted sum; weighted terms over their number."""
    return disjoint_mean(w * x, agrees(x, elect_up(x)))


def by_weight(x: Array, w: Array) -> Array:
    """Elect as mergekit: by the weighted sum; weighted terms over their weights."""
    y = w * x
    return disjoint_mean(y, agrees(y, elect_up(y)), w)


def by_sum(x: Array, w: Array) -> Array:
    """Elect as mergekit, without its division."""
    y = w * x
    return jnp.sum(jnp.where(agrees(y, elect_up(y)), y, 0), axis=0)


def whole_model(pieces: Pieces, density: Any) -> Mapping[Any, Array]:
    """Trim, elect and merge all tensors of a model as one vector, as the paper does."""
    parts: Sequence[Piece] = list(pieces.values())
    flat = jnp.concatenate([(p.w * p.x).reshape(len(p.x), -1) for p in parts], axis=1)
    flat = trim(flat, density)
    merged = disjoint_mean(flat, agrees(flat, elect(flat)))
    ends = np.cumsum([p.x[0].size for p in parts])[:-1].tolist()
    cut = jnp.split(merged, ends)
    own = zip(pieces, parts, cut, strict=True)
    return {name: y.reshape(p.x.shape[1:]) for name, p, y in own}


def trim_tensors(x: Array, density: Any) -> Array:
    """`trim` for tensors `[T, S, m, n]`, each of `m n` entries."""
    return trim(x.reshape(*x.shape[:2], -1), density).reshape(x.shape)


def ties(
    trees: Sequence[PyTree],
    weights: Any = None,
    *,
    density: Any,
    conformance: str = "paper",
    normalize: bool | None = None,
    scale: Any = 1.0,
) -> PyTree:
    """TIES: trim each change, elect a sign for each entry, average what agrees.

    With `d_t` the change of tree `t` after all but its largest entries were set to zero
    (trim), `g = sgn(sum_t d_t)` for each entry (elect), the result stands for `W +
    scale * mean {d_t : sgn(d_t) = g}` (disjoint mean), entry by entry.

    Args:
        trees: Adapted trees over one base.
        weights: For each tree a number, or a mapping from every adapted path to one;
            None for ones. May be traced.
        density: Share of the entries that the trimming keeps, in (0, 1], or one for
            each tree; the paper's k is 0.2. Of `N` entries the `max(1, floor(density *
            N))` largest stay, of equal ones the earlier. May be traced.
        conformance: Whose TIES: 'paper', 'peft', 'peft_svd' or 'mergekit'; see Notes.
        normalize: For 'mergekit' alone, its option of this name; None for True.
        scale: Factor of the merged change, the paper's lambda. May be traced.

    Returns:
        One adapted tree over the same base, in float32 or wider. The changes are dense:
        each adapted leaf is a `Delta`; for 'peft' a `LowRank` of the rank of the trees.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If the trees cannot be merged, or a weight, the density, the
            conformance, `normalize` or the scale is out of range. All such leaves are
            named.

    Example:
        >>> w = jnp.zeros((1, 4))
        >>> one = {"w": lrk.Delta(w, jnp.array([[4.0, -3.0, 1.0, 0.0]]))}
        >>> two = {"w": lrk.Delta(w, jnp.array([[2.0, 5.0, 0.0, 1.0]]))}
        >>> merged = lrk.merging.ties([one, two], density=0.5)
        >>> lrk.materialize(merged)["w"].tolist()
        [[3.0, 5.0, 0.0, 0.0]]

    Notes:
        'paper': all adapted leaves of a tree are trimmed as one vector; a sum of zero
        takes the sign that most entries of the model elected; the mean is over the
        number that agree. The paper has no weights: `w_t d_t` takes the place of
        `d_t`. The authors' notebook keeps one entry more than the paper says.
        'peft_svd': PEFT's `ties_svd` before it is truncated (`merging.svd` of the
        result truncates): each tensor is trimmed alone, the election ignores the
        weights, a sum of zero elects plus, `sum w_t d_t` is divided by the number.
        'peft': PEFT's `ties`, the same for `A` and `B` apart, each times `sqrt(w_t
        s_t)`. The product has cross terms of different trees: it is not TIES of the
        changes. Needs one low-rank term of one rank in each tree that adapts a leaf.
        'mergekit': each tensor is trimmed alone, the weighted sum elects, a sum of zero
        elects plus, `sum w_t d_t` is divided by `sum w_t` over those that agree
        (unless `normalize` is False). Its `int8_mask` changes no value.
        Under 'mergekit' and both of PEFT each index of the stack axes is a tensor.

    References:
        Yadav et al., TIES-Merging, 2023, arXiv:2306.01708: algorithm 1. PEFT 0.21.2,
        `add_weighted_adapter`. mergekit 0.1.5, `ties`.
    """
    fuses = {
        "paper": whole_model,
        "peft": each(by_count),
        "peft_svd": each(by_count),
        "mergekit": each(by_sum if normalize is False else by_weight),
    }
    check_choice("ties", conformance, fuses)
    check_only("ties", "normalize", normalize, conformance, ("mergekit",))
    return merge(
        "ties",
        trees,
        weights,
        density=density,
        conformance=conformance,
        prune=None if conformance == "paper" else trim_tensors,
        fuse=fuses[conformance],
        scale=scale,
    )
