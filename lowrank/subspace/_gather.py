"""The one-hot random projection: every weight is one of the trained numbers."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._base import Path
from lowrank.subspace._projection import (
    SUBSPACE,
    Fixed,
    Projection,
    Sizes,
    check_total,
)


def weights(total: int, d: int) -> Float[Array, " d"]:
    """`1 / sqrt(n_j)`, where `n_j` of all entries take the trained number `j`."""
    fewest, more = divmod(total, d)
    counts = fewest + (jnp.arange(d) < more).astype(jnp.float32)
    return lax.rsqrt(counts)


def gather() -> Projection:
    """A projection with one entry in each row: `theta_i += sign_i z[c_i] / sqrt(n_c)`.

    Every weight takes one of the `d` trained numbers, with a random sign. `n_c` is how
    many weights take number `c`: the `D` weights are dealt out at random over the whole
    network so that all numbers serve equally many, up to one. So `P^T P = 1` exactly,
    for any `d <= D`, and no trained number is without effect.

    Returns:
        A projection for `random`. Fixed, for each leaf: `column: [size]`, int32, and
        `sign: [size]`, int8. A product is one look-up for each weight, whatever `d`.

    Example:
        >>> params = {"w": jnp.ones((4, 3))}
        >>> tx = lrk.subspace.random(5, lrk.subspace.gather())
        >>> column = tx.init(jax.random.key(0), params).fixed["w"]["column"]
        >>> jnp.bincount(column, length=5).tolist()
        [3, 3, 2, 2, 2]

    Notes:
        Uni-LoRA draws each row by itself, so that for `d` near `D` some columns are
        empty; PEFT deals them out evenly, as here. Both project the factors of LoRA,
        from a random `z`, and have no signs; with them `P` has mean zero, as the dense
        projection.

    References:
        Li et al., Uni-LoRA, 2025, arXiv:2506.00799: theta_D = P theta_d with one
        non-zero entry `1 / sqrt(n_j)` in each row.
    """

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        check_total("gather", d, sizes)
        dealt = jnp.arange(sum(sizes.values()), dtype=jnp.int32) % d
        columns = jax.random.permutation(_tree.leaf_key(key, SUBSPACE), dealt)
        ends = np.array(list(itertools.accumulate(sizes.values())))[:-1]
        return {
            path: {
                "column": column,
                "sign": jax.random.rademacher(
                    _tree.leaf_key(key, path), (sizes[path],), jnp.int8
                ),
            }
            for path, column in zip(sizes, jnp.split(columns, ends), strict=True)
        }

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        shared = z * weights(sum(sizes.values()), z.shape[0]).astype(z.dtype)
        return {
            path: shared[fixed[path]["column"]] * fixed[path]["sign"].astype(z.dtype)
            for path in sizes
        }

    return Projection(("column", "sign"), draw, apply)
