"""Norms of the columns of a weight, from the factors of its low-rank terms."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank._adapted import split
from lowrank._base import Array
from lowrank.linalg import labelled_product
from lowrank.operators import _dispatch as ask
from lowrank.operators._lowrank import LowRank
from lowrank.operators._reshape import RANK

Dims = tuple[int, ...]
_OTHER = "other rank"
_EXACT = {"precision": lax.Precision.HIGHEST}


def norms(w: Any, dims: Dims) -> Array:
    """Euclidean norms over all axes of a weight but some.

    With `w = w0 + sum s a b`, of which the sum is never formed, the square of each is
    `|w0|^2 + 2 (w0^T a) s b + s^2 b^T (a^T a) b`. Terms that are no low-rank product
    over the summed axes, or two of them with factors over different axes, are formed.

    Args:
        w: An array or an operator; what lies below its additive terms has a dense form.
        dims: Axes of `w` that are kept, in the order of the result.

    Returns:
        The norms, in float32, or in float64 if the weight is.
    """
    base, terms = split(w)
    array = jnp.asarray(ask.dense(base))
    pairs = [_pair(t, dims, array.ndim) for t in terms]
    layouts = {pair[1::2] for pair in pairs if pair is not None}
    kept = [p for p in pairs if p is not None and len(layouts) == 1]
    for term, pair in zip(reversed(terms), reversed(pairs), strict=True):
        if pair is None or len(layouts) > 1:
            array = _formed(array, term)
    dtype = ask.common_dtype(array, np.float32(0))
    square = _base_square(array, dims, dtype)
    if kept:
        square += _terms_square(array, _joined(kept), dims, dtype)
    positive = square > 0
    root = jnp.sqrt(jnp.where(positive, square, jnp.ones_like(square)))
    return jnp.where(positive, root, jnp.zeros_like(root))


def _formed(array: Array, term: Any) -> Array:
    """The array with one term added."""
    return ask.total(array, term.delta())


Pair = tuple[Array, tuple[Any, ...], Array, tuple[Any, ...]]


def _pair(term: Any, dims: Dims, ndim: int) -> Pair | None:
    """The factor over the summed axes and the other one, each with its labels."""
    if not isinstance(term, LowRank):
        return None
    summed = set(range(ndim)) - set(dims)
    a, b = (term.a, term.a_labels), (term.scaled_b(), term.b_labels)
    for (first, fl), (second, sl) in ((a, b), (b, a)):
        if summed <= set(fl) and not summed & set(sl):
            return first, fl, second, sl
    return None


def _joined(pairs: Sequence[Pair]) -> Pair:
    """Terms of one layout as one term of their total rank."""
    fl, sl = pairs[0][1], pairs[0][3]
    first = jnp.concatenate([pair[0] for pair in pairs], axis=fl.index(RANK))
    second = jnp.concatenate([pair[2] for pair in pairs], axis=sl.index(RANK))
    return first, fl, second, sl


def _base_square(array: Array, dims: Dims, dtype: Any) -> Array:
    """`|w0|^2`, reduced without a copy of the weight."""
    summed = [d for d in range(array.ndim) if d not in dims]
    square = jnp.sum(jnp.square(array.astype(dtype)), axis=summed)
    kept = sorted(dims)
    return jnp.transpose(square, [kept.index(d) for d in dims])


def _terms_square(array: Array, pair: Pair, dims: Dims, dtype: Any) -> Array:
    """What the factors add to the square: the cross term and their own."""
    first, fl, second, sl = pair
    cross = labelled_product(
        array,
        range(array.ndim),
        first.astype(array.dtype),
        fl,
        [*dims, RANK],
        preferred_element_type=dtype,
        **_EXACT,
    )
    first, second = first.astype(dtype), second.astype(dtype)
    other = [_OTHER if n == RANK else n for n in fl]
    kept = [n for n in fl if n in dims]
    gram = labelled_product(first, fl, first, other, [*kept, RANK, _OTHER], **_EXACT)
    half = labelled_product(
        gram, [*kept, RANK, _OTHER], second, sl, [*dims, _OTHER], **_EXACT
    )
    order = [sl.index(n) for n in (*dims, RANK) if n in sl]
    missing = [i for i, n in enumerate((*dims, RANK)) if n not in sl]
    second = jnp.expand_dims(jnp.transpose(second, order), missing)
    return jnp.sum((2 * cross + half) * second, axis=-1)
