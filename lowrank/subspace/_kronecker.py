"""A Kronecker product of two orthonormal matrices as a random projection."""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._base import Path
from lowrank.linalg import thin_qr
from lowrank.subspace._projection import (
    SUBSPACE,
    Fixed,
    Projection,
    Sizes,
    check_drawn,
    check_total,
    parts_of,
)


class Split(NamedTuple):
    """`D = a b + r` rows and `d = p q + s` columns: `a x p`, `b x q` and `r x s`."""

    a: int
    b: int
    r: int
    p: int
    q: int
    s: int


def split_of(total: int, d: int) -> Split:
    """Near square roots of both sizes, such that every part has rows enough.

    `p = floor(sqrt(d))`, `q = floor(d / p)`. Of all `a <= sqrt(D)` with `b = floor(D /
    a)`, or one less to leave rows for the rest, the largest with `a >= p`, `b >= q` and
    `r >= s`; `a = p` is one of them.
    """
    p = math.isqrt(d)
    q, s = divmod(d, p)
    for a in range(math.isqrt(total), p - 1, -1):
        for b in (total // a, total // a - 1):
            if b >= q and total - a * b >= s:
                return Split(a, b, total - a * b, p, q, s)
    raise ValueError(f"kronecker: d={d} exceeds D={total}. Lower d.")


def orthonormal(key: Array, rows: int, columns: int) -> Float[Array, "rows columns"]:
    """Random orthonormal columns."""
    return thin_qr(jax.random.normal(key, (rows, columns), jnp.float32))[0]


def product(fixed: dict[str, Array], z: Array, split: Split) -> Float[Array, " D"]:
    """`Pi ((Q1 (x) Q2) z_1; R z_2)`."""
    exact = lax.Precision.HIGHEST
    inner = z[: split.p * split.q].reshape(split.p, split.q)
    first, second, rest = (fixed[n].astype(z.dtype) for n in ("q1", "q2", "rest"))
    grid = jnp.matmul(
        first, jnp.matmul(inner, second.T, precision=exact), precision=exact
    )
    more = jnp.matmul(rest, z[split.p * split.q :], precision=exact)
    whole = jnp.concatenate([grid.reshape(-1), more])
    return whole.at[fixed["order"]].get(mode="promise_in_bounds", unique_indices=True)


def kronecker() -> Projection:
    """A Kronecker product of two small orthonormal matrices, with shuffled rows.

    `P = Pi ((Q1 (x) Q2) (+) R)` with `Q1: [a, p]`, `Q2: [b, q]` and `R: [r, s]` of
    random orthonormal columns, for `D = a b + r` and `d = p q + s`. So `P^T P = 1`
    exactly, for every `d <= D`.

    Returns:
        A projection for `random`. Fixed: `scale`, a scalar for each leaf, which says
        how far it moves; at `subspace`: `q1`, `q2`, `rest`, about `2 sqrt(D d)` numbers
        in all, and `order` (`Pi`), `4 D` bytes. A product is `D sqrt(d)` multiply-adds.

    Example:
        >>> tx = lrk.subspace.random(4, lrk.subspace.kronecker())
        >>> fixed = tx.init(jax.random.key(0), {"w": jnp.ones((5, 5))}).fixed
        >>> fixed["subspace"]["q1"].shape, fixed["subspace"]["rest"].shape
        ((5, 2), (0, 0))

    Notes:
        Rounding: `p` is the root of `d`, rounded down, and `q = floor(d / p)`, so that
        `s < p`; `a` and `b` are found likewise, and `r` is below `2 a` or so. Where `d`
        is `p q` exactly the `r` rows stay still: fewer than `2 sqrt(D)` of the weights,
        chosen at random.
        The authors round both sizes down to squares. Their `R` is Gaussian with the
        remaining columns in few rows: not orthonormal, of lower rank where the columns
        outnumber the rows, and where one of the sizes is a square, not normalised.
        They draw from global generators, which must be in the same state at a reload.

    References:
        Lotfi et al., PAC-Bayes compression bounds so tight that they can explain
        generalization, 2022, arXiv:2211.13609, and `RoundedDoubleKronQR` in
        activatedgeek/tight-pac-bayes.
    """

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        check_total("kronecker", d, sizes)
        total = sum(sizes.values())
        split = split_of(total, d)
        keys = jax.random.split(_tree.leaf_key(key, SUBSPACE), 4)
        arrays = {
            "q1": orthonormal(keys[0], split.a, split.p),
            "q2": orthonormal(keys[1], split.b, split.q),
            "rest": orthonormal(keys[2], split.r, split.s),
            "order": jax.random.permutation(
                keys[3], jnp.arange(total, dtype=jnp.int32)
            ),
        }
        one = jnp.ones((), jnp.float32)
        return {SUBSPACE: arrays} | {path: {"scale": one} for path in sizes}

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        total = sum(sizes.values())
        shared = dict(fixed[SUBSPACE])
        check_drawn("kronecker", shared["order"].shape == (total,), sizes)
        parts = parts_of(product(shared, z, split_of(total, z.shape[0])), sizes)
        scales = {path: fixed[path]["scale"].astype(z.dtype) for path in sizes}
        return {path: part * scales[path] for path, part in parts.items()}

    return Projection(("scale",), draw, apply, shared=("q1", "q2", "rest", "order"))
