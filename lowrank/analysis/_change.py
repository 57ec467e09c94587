"""What a leaf adds to its base, as thin matrices."""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._adapted import split
from lowrank._axes import MATRIX, Axes
from lowrank._base import Array, Operator, is_operator
from lowrank.operators import Delta, LowRank

Factors = tuple[ArrayLike, ArrayLike]
Change = ArrayLike | Operator | Factors


class Pair(NamedTuple):
    """A change as `a b`, in float32 or wider.

    Attributes:
        a: `[*stack, n, r]`.
        b: `[*stack, r, m]`.
        axes: How `n` and `m` are laid out in the leaf; None for a bare matrix.
        d: The change itself, `[*stack, n, m]`, where it came without factors.
    """

    a: Array
    b: Array
    axes: Axes | None = None
    d: Array | None = None

    @property
    def sides(self) -> tuple[int, int]:
        """`n` and `m`."""
        return self.a.shape[-2], self.b.shape[-1]

    @property
    def stack(self) -> tuple[int, ...]:
        """Sizes of the stack."""
        return self.a.shape[:-2]

    def formed(self) -> Array:
        """`a b`, `[*stack, n, m]`."""
        return self.a @ self.b if self.d is None else self.d

    def square(self) -> Array:
        """The squared Frobenius norm, `[*stack]`."""
        return inner(self, self)


def inner(one: Pair, two: Pair) -> Array:
    """`sum(one * two)`, from factors where there are any: `[*stack]`."""
    if one.d is None and two.d is not None:
        one, two = two, one
    if one.d is None:
        left, right = mt(one.a) @ two.a, one.b @ mt(two.b)
    elif two.d is None:
        left, right = mt(two.a) @ one.d, two.b
    else:
        left, right = one.d, two.d
    return jnp.sum(left * right, axis=(-2, -1))


def mt(x: Array) -> Array:
    """The last two axes swapped."""
    return jnp.matrix_transpose(x)


def wide(x: Any) -> Array:
    """In float32, or the wider dtype it has."""
    x = jnp.asarray(x)
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def ratio(over: Array, under: Array) -> Array:
    """A quotient that is zero where the numerator is, with finite derivatives."""
    safe = jnp.where(over == 0, 1, under)
    return jnp.where(over == 0, 0, over / safe)


def length(square: Array) -> Array:
    """The root of a sum of squares, whose derivative at zero is zero."""
    alive = square > 0
    return jnp.where(alive, jnp.sqrt(jnp.where(alive, square, 1)), 0)


def as_matrix(x: Any, axes: Axes | None) -> Array:
    """An array of a leaf's shape as `[*stack, n, m]`."""
    x = wide(x)
    if axes is None:
        return x
    sizes = axes.sizes(x.shape)
    shape = (*sizes.stack, math.prod(sizes.inputs), math.prod(sizes.outputs))
    return jnp.transpose(x, sum(map(tuple, axes), ())).reshape(shape)


def of_matrix(d: Array, axes: Axes | None = None) -> Pair:
    """A formed change, as the product of itself and an identity."""
    thin = d.shape[-2] <= d.shape[-1]
    pair = (identity_beside(mt(d)), d) if thin else (d, identity_beside(d))
    return Pair(*pair, axes, d)


def identity_beside(x: Array) -> Array:
    """An identity for the columns of `[*stack, n, r]`: `[*stack, r, r]`."""
    eye = jnp.eye(x.shape[-1], dtype=x.dtype)
    return jnp.broadcast_to(eye, (*x.shape[:-2], *eye.shape))


def of_terms(
    shape: tuple[int, ...], terms: Sequence[Operator], axes: Axes | None = None
) -> Pair | str:
    """The additive terms of one leaf as one pair, or why they are none.

    Args:
        shape: Shape of the leaf.
        terms: What `split` gives.
        axes: Axes of the leaf, where no factor tells them; None for those of a matrix.
    """
    odd = {type(t).__name__ for t in terms if not isinstance(t, LowRank | Delta)}
    low = [t for t in terms if isinstance(t, LowRank)]
    if odd:
        return f"{', '.join(sorted(odd))} is neither low-rank nor a plain delta"
    if len({(t.a_dims, t.b_dims) for t in low}) > 1:
        return "its factors hold different axes"
    if low:
        axes = axes_of(low[0])
    elif axes is None and len(shape) != 2:
        return f"a plain delta of {len(shape)} axes is no matrix"
    own = MATRIX if axes is None else axes
    plain = [as_matrix(t.delta(), own) for t in terms if isinstance(t, Delta)]
    d = sum(plain[1:], plain[0]) if plain else None
    if d is not None and not low:
        return of_matrix(d, own)
    sizes = own.sizes(shape)
    n, m = math.prod(sizes.inputs), math.prod(sizes.outputs)
    pairs = [
        (
            wide(t.a).reshape(*sizes.stack, n, t.rank),
            wide(t.scaled_b()).reshape(*sizes.stack, t.rank, m),
        )
        for t in low
    ]
    if d is not None:
        pairs.append(of_matrix(d)[:2])
    a, b = zip(*pairs, strict=True)
    return Pair(jnp.concatenate(a, -1), jnp.concatenate(b, -2), own)


def axes_of(term: LowRank) -> Axes:
    """Axes of the weight as the factors hold them."""
    depth = len(term.stack)
    return Axes(term.stack, term.a_dims[depth:], term.b_dims[depth:])


def nothing(stack: tuple[int, ...], n: int, m: int) -> Pair:
    """The change of a tree that leaves a leaf alone."""
    return Pair(jnp.zeros((*stack, n, 0)), jnp.zeros((*stack, 0, m)))


def pair_of(who: str, change: Any) -> Pair:
    """A change that a user passed, as a pair.

    Raises:
        TypeError: If it is none of the forms that are known.
        ValueError: If it is no matrix, its factors do not fit, it is empty, or (where
            they can be read) its numbers are not finite.
    """
    if is_operator(change):
        _, terms = split(change)
        found = of_terms(change.shape, terms) if terms else "it adds nothing to a base"
        if isinstance(found, str):
            raise ValueError(
                f"{who}: cannot take the change of a {type(change).__name__}: {found}. "
                "Pass low-rank terms, factors (a, b), or the change as an array."
            )
    elif isinstance(change, tuple | list):
        found = _of_factors(who, change)
    else:
        d = matrix_of(who, change, "the change")
        found = of_matrix(d)
    if 0 in (*found.stack, *found.sides):
        raise ValueError(
            f"{who}: expected a change with entries, got {(*found.stack, *found.sides)}"
            ". Pass one with at least one row and column."
        )
    check_finite(who, {"the change": (found.a, found.b)})
    return found


def matrix_of(who: str, x: Any, name: str) -> Array:
    """An array of at least two axes, in float32 or wider.

    Raises:
        TypeError: If it is no array of numbers.
        ValueError: If it has fewer axes.
    """
    if not hasattr(x, "shape") or not hasattr(x, "dtype"):
        raise TypeError(
            f"{who}: expected {name} as an array, an operator or a pair (a, b) of "
            f"factors, got {type(x).__name__}. Of an adapted tree pass one leaf."
        )
    if not (jnp.issubdtype(x.dtype, jnp.floating) and len(x.shape) >= 2):
        raise ValueError(
            f"{who}: expected {name} as a floating matrix, [..., n, m], got "
            f"{x.dtype}{list(x.shape)}."
        )
    return wide(x)


def _of_factors(who: str, change: Sequence[Any]) -> Pair:
    if len(change) != 2:
        raise TypeError(f"{who}: expected a pair (a, b) of factors, got {len(change)}.")
    a, b = (matrix_of(who, x, name) for x, name in zip(change, "ab", strict=True))
    if a.shape[:-2] != b.shape[:-2] or a.shape[-1] != b.shape[-2]:
        raise ValueError(
            f"{who}: expected factors [..., n, r] and [..., r, m], got "
            f"{a.shape} and {b.shape}."
        )
    return Pair(a, b)


def check_finite(who: str, named: Mapping[str, Any]) -> None:
    """Refuse numbers that are not finite, where they can be read; names them all.

    Raises:
        ValueError: If there are any.
    """
    bad = []
    for name, arrays in named.items():
        flat = jax.tree.leaves(arrays)
        known = [x for x in flat if _compat.is_known(x)]
        with jax.ensure_compile_time_eval():
            if not all(bool(jnp.isfinite(x).all()) for x in known):
                bad.append(name)
    if bad:
        raise ValueError(
            f"{who}: expected finite numbers, got NaN or infinity in {', '.join(bad)}. "
            "A spectrum of those says nothing: find where they came from."
        )


def check_count(who: str, name: str, value: Any, most: int) -> int:
    """Refuse what is no number of directions.

    Raises:
        TypeError: If it is no int.
        ValueError: If it lies outside [1, most].
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{who}: expected {name} as an int, got {value!r}.")
    if not 1 <= value <= most:
        raise ValueError(
            f"{who}: expected {name} in [1, {most}], as many directions as there are, "
            f"got {value}."
        )
    return operator.index(value)


def known_number(who: str, name: str, value: Any) -> float | None:
    """One number, or None if it is traced.

    Raises:
        TypeError: If it is not one number.
    """
    if not _compat.is_known(value):
        return None
    if isinstance(value, str) or np.ndim(value) or not hasattr(value, "__float__"):
        raise TypeError(f"{who}: expected {name} as one number, got {value!r}.")
    return float(value)


def check_share(who: str, name: str, value: Any) -> None:
    """Refuse what is no share; a traced one is taken as it is.

    Raises:
        TypeError: If it is not one number.
        ValueError: If it lies outside (0, 1].
    """
    number = known_number(who, name, value)
    if number is not None and not 0 < number <= 1:
        raise ValueError(f"{who}: expected {name} in (0, 1], got {value}.")
