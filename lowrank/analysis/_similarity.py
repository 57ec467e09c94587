"""How alike two changes are: shared subspaces, angles between them, cosines."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank._base import Array
from lowrank.analysis._change import (
    Change,
    Pair,
    check_count,
    inner,
    length,
    mt,
    pair_of,
    ratio,
)
from lowrank.linalg import factored_svd, support

# Array maths: orthonormal bases `[*stack, n, k]`, zero where a direction is missing.


@jax.jit
def directions(a: Array, b: Array) -> Array:
    """Left singular vectors of `a b`, from the largest value to the smallest."""
    u, s, _ = factored_svd(a, b)
    kept = support(s, max(a.shape[-2], b.shape[-1])).astype(s.dtype)
    return u * kept[..., None, :]


def shared(u: Array, v: Array, i: int, j: int) -> Array:
    """`|U_i^T V_j|_F^2 / min(i, j)`."""
    square = jnp.square(mt(u[..., :i]) @ v[..., :j])
    return jnp.minimum(jnp.sum(square, axis=(-2, -1)) / min(i, j), 1)


@jax.jit
def shared_grid(u: Array, v: Array) -> Array:
    """The same for all `i` and `j`: running sums of one product."""
    square = jnp.square(mt(u) @ v)
    total = jnp.cumsum(jnp.cumsum(square, axis=-2), axis=-1)
    rows, columns = (1 + np.arange(k) for k in square.shape[-2:])
    least = np.minimum(rows[:, None], columns[None, :]).astype(square.dtype)
    least = least.reshape((1,) * (square.ndim - 2) + least.shape)
    return jnp.minimum(total / least, 1)


@jax.jit
def angles(u: Array, v: Array) -> Array:
    """Principal angles of two bases, by sines where cosines cannot tell them."""
    if u.shape[-1] < v.shape[-1]:
        u, v = v, u
    _, cosine, turn = jnp.linalg.svd(mt(u) @ v, full_matrices=False)
    mine = v @ mt(turn)
    rest = mine - u @ (mt(u) @ mine)
    sine = jnp.sqrt(jnp.sum(jnp.square(rest), axis=-2))
    near = jnp.square(cosine) > 0.5
    by_cosine = jnp.arccos(jnp.clip(cosine, 0, 1))
    return jnp.where(near, jnp.arcsin(jnp.clip(sine, 0, 1)), by_cosine)


def cosine_of(one: Pair, two: Pair) -> Array:
    """`<X, Y> / (|X| |Y|)`."""
    size = length(one.square()) * length(two.square())
    return jnp.clip(ratio(inner(one, two), size), -1, 1)


_cosine_of = jax.jit(cosine_of)


# What users call.


def _pairs(who: str, one: Any, two: Any, *, both_sides: bool = False) -> list[Pair]:
    """Two changes whose stacks and inputs (or both sides) agree.

    Raises:
        ValueError: If they do not.
    """
    pairs = [pair_of(who, x) for x in (one, two)]
    sizes = [(*p.stack, *p.sides[: 1 + both_sides]) for p in pairs]
    if sizes[0] != sizes[1]:
        what = "n and m" if both_sides else "n"
        raise ValueError(
            f"{who}: expected changes of one stack and one {what}, got {sizes[0]} "
            f"and {sizes[1]}. Compare leaves of one shape."
        )
    return pairs


def _bases(who: str, one: Any, two: Any) -> list[Array]:
    return [directions(p.a, p.b) for p in _pairs(who, one, two)]


def subspace_similarity(a1: Change, a2: Change, i: int, j: int) -> Array:
    """How far the `i` leading directions of one matrix lie in the `j` of another.

    With the left singular vectors `U` of each, ordered by singular value, it is

        `phi(A1, A2, i, j) = |U1_i^T U2_j|_F^2 / min(i, j)`

    1 if one space holds the other, 0 if they are orthogonal. `i j / (n min(i, j))` is
    what two random spaces of `n` dimensions have on average: compare with that.

    Args:
        a1: A matrix `[..., n, r]`, such as the factor `a` of a LoRA, whose columns are
            input directions; or what stands for one, as `singular_values` takes it, for
            the input directions of a whole change. Pass transposes for outputs.
        a2: The other; its `n` and leading axes are those of `a1`.
        i: Number of directions of `a1`, in [1, min(n, r)].
        j: Number of directions of `a2`.

    Returns:
        `[...]`, in [0, 1]. Directions that a matrix of smaller rank lacks count as
        orthogonal to everything. Differentiable where `s_i > s_{i+1}` in both.

    Raises:
        TypeError: As `singular_values`; or if `i` or `j` is no int.
        ValueError: As `singular_values`; or if the shapes do not agree, or `i` or `j`
            is out of range.

    Example:
        >>> one, two = jnp.eye(4)[:, :2], jnp.eye(4)[:, 1:4]
        >>> round(float(lrk.analysis.subspace_similarity(one, two, 2, 3)), 4)
        0.5

    Notes:
        The paper's `A` is `[r, in]` and its `U` the right singular vectors: our `a` is
        its transpose, so they are the left ones here. Equal singular values have no
        order: what lies within such a group is arbitrary, unless `i` takes all of it.

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: eq. 4, section 7.2 and appendix G.
    """
    u, v = _bases("subspace_similarity", a1, a2)
    check_count("subspace_similarity", "i", i, u.shape[-1])
    check_count("subspace_similarity", "j", j, v.shape[-1])
    return _shared(u, v, i, j)


_shared = functools.partial(jax.jit, static_argnums=(2, 3))(shared)


def similarity_grid(a1: Change, a2: Change) -> Array:
    """`subspace_similarity` for every `i` and `j` at once.

    Args:
        a1: As for `subspace_similarity`.
        a2: The other.

    Returns:
        `[..., k1, k2]`: entry `[i - 1, j - 1]` is that of `i` and `j`, as in figures 3
        and 4 of the paper. It costs what a single entry costs.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`; or if the shapes do not agree.

    Example:
        >>> one = jnp.eye(4)[:, :2] * jnp.array([[2.0, 1.0]])
        >>> lrk.analysis.similarity_grid(one, one).round(3).tolist()
        [[1.0, 1.0], [1.0, 1.0]]

    References:
        Hu et al., LoRA, 2021, arXiv:2106.09685: figures 3 and 4.
    """
    return shared_grid(*_bases("similarity_grid", a1, a2))


def principal_angles(a1: Change, a2: Change) -> Array:
    """The principal angles between the column spaces of two matrices.

    The cosines are the singular values of `Q1^T Q2`, for orthonormal bases `Q`. Where a
    cosine is too close to one to tell an angle, the sine of the same pair of vectors
    does, so that angles down to rounding are right.

    Args:
        a1: As for `subspace_similarity`: a factor `a`, or a change, whose input
            directions are compared.
        a2: The other.

    Returns:
        `[..., min(k1, k2)]` in radians, in [0, pi/2], from small to large. Directions
        that a matrix of smaller rank lacks are at right angles to everything. No useful
        derivative: differentiate `subspace_similarity`.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`; or if the shapes do not agree.

    Example:
        >>> one, two = jnp.eye(4)[:, :2], jnp.eye(4)[:, 1:4]
        >>> jnp.rad2deg(lrk.analysis.principal_angles(one, two)).round(1).tolist()
        [0.0, 90.0]

    References:
        Bjorck and Golub, Numerical methods for computing angles between linear
        subspaces, 1973: theorem 1 and section 3.
    """
    return angles(*_bases("principal_angles", a1, a2))


def cosine(one: Change, two: Change) -> Array:
    """The cosine of two changes, or of a change and a weight, as vectors.

    `<X, Y> / (|X|_F |Y|_F)`, from factors where there are any, with
    `<A B, C D> = sum((A^T C) * (B D^T))` and `<A B, W> = sum((A^T W) * B)`.

    Args:
        one: As `singular_values` takes it; for a weight, the array.
        two: The other, of the same `n` and `m`.

    Returns:
        `[...]`, in [-1, 1]; zero where one of them is. Differentiable.

    Raises:
        TypeError: As `singular_values`.
        ValueError: As `singular_values`; or if the shapes do not agree.

    Example:
        >>> w = jnp.array([[1.0, 0.0], [0.0, 1.0]])
        >>> round(float(lrk.analysis.cosine(w, jnp.ones((2, 2)))), 4)
        0.7071
    """
    pairs = _pairs("cosine", one, two, both_sides=True)
    return _cosine_of(*(p._replace(axes=None) for p in pairs))
