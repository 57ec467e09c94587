"""Spectra of changes from their factors, and what one reads off them."""

from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank._base import Array
from lowrank.analysis._change import (
    Change,
    Pair,
    check_count,
    check_share,
    known_number,
    length,
    pair_of,
    ratio,
)
from lowrank.linalg import factored_svd, support

# Array maths: singular values `[*stack, k]`, from large to small, to `[*stack]`.


@jax.jit
def values_of(a: Array, b: Array) -> Array:
    """Singular values of `a b`."""
    return factored_svd(a, b)[1]


def energies(s: Array) -> Array:
    """Squared singular values as shares of their sum; zero if that is."""
    square = jnp.square(s)
    return ratio(square, jnp.sum(square, axis=-1, keepdims=True))


@jax.jit
def effective(s: Array) -> Array:
    """`exp(H(s / sum(s)))`; zero where nothing is changed."""
    p = ratio(s, jnp.sum(s, axis=-1, keepdims=True))
    alive = p > 0
    entropy = -jnp.sum(jnp.where(alive, p * jnp.log(jnp.where(alive, p, 1)), 0), -1)
    return jnp.where(jnp.any(alive, axis=-1), jnp.exp(entropy), 0)


@jax.jit
def stable(s: Array) -> Array:
    """`sum(s^2) / max(s)^2`."""
    square = jnp.square(s)
    return ratio(jnp.sum(square, axis=-1), jnp.max(square, axis=-1, initial=0))


@jax.jit
def participation(s: Array) -> Array:
    """`sum(s^2)^2 / sum(s^4)`, computed on shares: no fourth power overflows."""
    p = energies(s)
    return ratio(jnp.square(jnp.sum(p, axis=-1)), jnp.sum(jnp.square(p), axis=-1))


@jax.jit
def needed(s: Array, energy: Any) -> Array:
    """The least number of directions with a share of the squares."""
    reached = jnp.cumsum(energies(s), axis=-1)
    # Sums of k shares are off by about k eps: 1.0 must be reached by all of them.
    slack = 1 - s.shape[-1] * jnp.finfo(s.dtype).eps
    short = reached < jnp.asarray(energy, s.dtype) * slack
    alive = jnp.any(s > 0, axis=-1)
    count = jnp.minimum(jnp.sum(short, axis=-1) + 1, s.shape[-1])
    return jnp.where(alive, count, 0).astype(jnp.int32)


def numerical(s: Array, sides: tuple[int, int], tolerance: Any = None) -> Array:
    """How many singular values exceed a share of the largest."""
    if tolerance is None:
        kept = support(s, max(sides))
    else:
        top = jnp.max(s, axis=-1, keepdims=True, initial=0)
        kept = s > jnp.asarray(tolerance, s.dtype) * top
    return jnp.sum(kept, axis=-1).astype(jnp.int32)


# What users call.


def _values(who: str, change: Any) -> tuple[Array, Pair]:
    pair = pair_of(who, change)
    return values_of(pair.a, pair.b), pair


def singular_values(change: Change) -> Array:
    """Singular values of a change, from its factors.

    For `D = s A B` they are those of a matrix as wide as the rank, after two thin QRs;
    `D` is never formed. A plain delta is decomposed as it is.

    Args:
        change: What is decomposed: a leaf with low-rank terms and plain deltas, whose
            base is not looked at; a pair `(a, b)` of factors, `[..., n, r]` and
            `[..., r, m]`; or a matrix, `[..., n, m]`. Leading axes are layers.

    Returns:
        `[..., k]` from large to small, in float32 or wider, with `k = min(n, r, m)`;
        all others are zero. It runs under `jit` and `vmap` and has derivatives, finite
        ones also where values repeat or vanish.

    Raises:
        TypeError: If `change` is none of these.
        ValueError: If it is no matrix, its factors do not fit, it has no entries, the
            operator holds anything but additive terms, or numbers are not finite.

    Example:
        >>> op = lrk.LowRank(jnp.zeros((4, 9)), jnp.ones((4, 1)), jnp.ones((1, 9)), 2.0)
        >>> lrk.analysis.singular_values(op).round(4).tolist()
        [12.0]
    """
    return _values("singular_values", change)[0]


def effective_rank(change: Change) -> Array:
    """The effective rank of a change: the exponential of its spectrum's entropy.

    With singular values `s` and `p = s / sum(s)` it is `exp(-sum(p log p))`: `k` for
    `k` equal values, 1 for one direction, and no threshold in between.

    Args:
        change: As `singular_values` takes it.

    Returns:
        `[...]`, in [1, k]; zero where nothing is changed. Differentiable.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`.

    Example:
        >>> round(float(lrk.analysis.effective_rank(jnp.eye(3, 5))), 4)
        3.0

    References:
        Roy and Vetterli, The effective rank, 2007, EUSIPCO: definition 1.
    """
    return effective(_values("effective_rank", change)[0])


def stable_rank(change: Change) -> Array:
    """The stable rank of a change: `|D|_F^2 / |D|_2^2`.

    Args:
        change: As `singular_values` takes it.

    Returns:
        `[...]`, in [1, rank]; zero where nothing is changed. Differentiable where the
        largest singular value is single.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`.

    Example:
        >>> float(lrk.analysis.stable_rank(jnp.diag(jnp.array([2.0, 2.0, 1.0]))))
        2.25

    References:
        Rudelson and Vershynin, Sampling from large matrices, 2007, JACM 54: section 1.
    """
    return stable(_values("stable_rank", change)[0])


def participation_ratio(change: Change) -> Array:
    """The participation ratio of a change: `sum(s^2)^2 / sum(s^4)`.

    Args:
        change: As `singular_values` takes it.

    Returns:
        `[...]`, in [1, rank]; zero where nothing is changed. Differentiable.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`.

    Example:
        >>> round(float(lrk.analysis.participation_ratio(jnp.eye(3, 5))), 4)
        3.0
    """
    return participation(_values("participation_ratio", change)[0])


def numerical_rank(change: Change, tolerance: ArrayLike | None = None) -> Array:
    """How many singular values of a change are not negligible.

    Args:
        change: As `singular_values` takes it.
        tolerance: Those up to this share of the largest do not count, in [0, 1]; None
            for what rounding makes of zero, `8 sqrt(max(n, m)) eps`. May be traced.

    Returns:
        `[...]` of int32.

    Raises:
        TypeError: As `singular_values`; or if `tolerance` is not one number.
        ValueError: As `singular_values`; or if `tolerance` lies outside [0, 1].

    Example:
        >>> w = jnp.diag(jnp.array([1.0, 0.5, 0.001]))
        >>> [int(lrk.analysis.numerical_rank(w, t)) for t in (None, 0.01)]
        [3, 2]
    """
    share = 0.0 if tolerance is None else tolerance
    number = known_number("numerical_rank", "tolerance", share)
    if number is not None and not 0 <= number <= 1:
        raise ValueError(
            f"numerical_rank: expected tolerance in [0, 1], got {tolerance}."
        )
    s, pair = _values("numerical_rank", change)
    return numerical(s, pair.sides, tolerance)


def energy_at_rank(change: Change, rank: int) -> Array:
    """Which share of a change its best approximation at a rank holds.

    `sum_{i <= rank} s_i^2 / sum_i s_i^2`: one minus the squared relative error.

    Args:
        change: As `singular_values` takes it.
        rank: How many directions, in [1, min(n, m)].

    Returns:
        `[...]`, in [0, 1]; zero where nothing is changed. Differentiable where
        `s_rank > s_{rank + 1}`.

    Raises:
        TypeError: As `singular_values`; or if `rank` is no int.
        ValueError: As `singular_values`; or if `rank` exceeds a side.

    Example:
        >>> w = jnp.diag(jnp.array([3.0, 1.0]))
        >>> round(float(lrk.analysis.energy_at_rank(w, 1)), 4)
        0.9
    """
    s, pair = _values("energy_at_rank", change)
    check_count("energy_at_rank", "rank", rank, min(pair.sides))
    return jnp.minimum(jnp.sum(energies(s)[..., :rank], axis=-1), 1)


def rank_at_energy(change: Change, energy: ArrayLike = 0.9) -> Array:
    """How many directions hold a share of a change.

    Args:
        change: As `singular_values` takes it.
        energy: The share of `sum(s^2)`, in (0, 1]. May be traced.

    Returns:
        `[...]` of int32: the least rank whose `energy_at_rank` reaches it; zero where
        nothing is changed.

    Raises:
        TypeError: As `singular_values`; or if `energy` is not one number.
        ValueError: As `singular_values`; or if `energy` lies outside (0, 1].

    Example:
        >>> w = jnp.diag(jnp.array([3.0, 1.0]))
        >>> [int(lrk.analysis.rank_at_energy(w, e)) for e in (0.85, 0.95)]
        [1, 2]

    References:
        Biderman et al., LoRA learns less and forgets less, 2024, arXiv:2405.09673: the
        rank at which 90 % of the variance of a change is explained.
    """
    check_share("rank_at_energy", "energy", energy)
    return needed(_values("rank_at_energy", change)[0], energy)


def norm(change: Change) -> Array:
    """The Frobenius norm of a change, from its factors.

    Args:
        change: As `singular_values` takes it.

    Returns:
        `[...]`. Differentiable; the gradient at zero is taken as zero.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`.

    Example:
        >>> float(lrk.analysis.norm((jnp.ones((4, 1)), jnp.ones((1, 9)))))
        6.0
    """
    return length(pair_of("norm", change).square())
