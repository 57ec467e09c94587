"""How a change relates to the weight that it is added to."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank._base import Array, Operator, is_operator
from lowrank.analysis._change import (
    Change,
    Pair,
    as_matrix,
    check_count,
    check_finite,
    length,
    matrix_of,
    mt,
    pair_of,
)
from lowrank.linalg import factored_svd, support


def frobenius(x: Array) -> Array:
    """`|X|_F`."""
    return length(jnp.sum(jnp.square(x), axis=(-2, -1)))


def amplified(size: Array, seen: Array) -> Array:
    """`|D| / |U^T W V|`: zero for no change, infinite where `W` has nothing there."""
    return jnp.where(size == 0, 0, size / jnp.where(size == 0, 1, seen))


@functools.partial(jax.jit, static_argnames="rank")
def _amplification(w: Array, a: Array, b: Array, rank: int) -> Array:
    u, s, vt = factored_svd(a, b)
    kept = support(s, max(w.shape[-2:])).astype(s.dtype)[..., :rank]
    left, right = u[..., :rank] * kept[..., None, :], vt[..., :rank, :]
    seen = (mt(left) @ w) @ mt(right * kept[..., :, None])
    return amplified(length(jnp.sum(jnp.square(s), axis=-1)), frobenius(seen))


def weight_beside(who: str, w: Any, pair: Pair) -> Array:
    """A weight as a matrix laid out like a change of it.

    Raises:
        TypeError: If it is no array.
        ValueError: If it is an operator without dense form, its shape is not that of
            the change, or (where they can be read) its numbers are not finite.
    """
    if is_operator(w) and not w.has_dense:
        raise ValueError(
            f"{who}: a weight held by a {type(w).__name__} has no dense form. Pass "
            "the weight as an array."
        )
    w = w.dense() if is_operator(w) else w
    full = (*pair.stack, *pair.sides)
    if tuple(getattr(w, "shape", ())) != full and pair.axes is not None:
        fits = hasattr(w, "shape") and len(w.shape) == sum(map(len, pair.axes))
        w = as_matrix(w, pair.axes) if fits else w
    w = matrix_of(who, w, "the weight")
    if w.shape != full:
        raise ValueError(
            f"{who}: expected a weight of the shape of its change, {full}, got "
            f"{w.shape}."
        )
    check_finite(who, {"the weight": w})
    return w


def amplification(
    w: ArrayLike | Operator, delta: Change, rank: int | None = None
) -> Array:
    """How much a change amplifies what the weight already does in its directions.

    With `U` and `V` the first singular vectors of the change `D`, it is

        `|D|_F / |U^T W V|_F`

    A large factor says that `D` writes where `W` has little. As a change of `W`'s own
    strongest directions has a factor of about `|D| / |W|`, compare with that.

    Args:
        w: The weight, `[..., n, m]`: an array, or an operator with a dense form. Beside
            a leaf as `delta`, in the leaf's own layout.
        delta: The change, as `singular_values` takes it.
        rank: How many directions `U` and `V` hold, in [1, min(n, m)]; None for all that
            the change has. More than that is the same as all.

    Returns:
        `[...]`: zero where nothing is changed, infinite where `W` has nothing in those
        directions. Differentiable where `s_rank > s_{rank + 1}`.

    Raises:
        TypeError: As `singular_values`; or if `rank` is no int.
        ValueError: As `singular_values`; or if `w` does not fit the change, or `rank`
            is out of range.

    Example:
        >>> w = jnp.diag(jnp.array([4.0, 0.5]))
        >>> delta = (jnp.array([[0.0], [1.0]]), jnp.array([[0.0, 2.0]]))
        >>> float(lrk.analysis.amplification(w, delta))
        4.0

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: section 7.3 and table 7, where `U^T W
        V^T` has `V^T` for what is `V` here.
    """
    pair = pair_of("amplification", delta)
    if rank is None:
        rank = min(pair.sides)
    check_count("amplification", "rank", rank, min(pair.sides))
    return _amplification(weight_beside("amplification", w, pair), pair.a, pair.b, rank)


def is_small(op: Operator, most: int = 2**24) -> bool:
    """Whether an operator may be formed: dense, and up to 64 MiB in float32."""
    return op.has_dense and op.size <= most
