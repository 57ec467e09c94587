"""The dense random projection: every weight depends on every trained number."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._base import Path
from lowrank.subspace._projection import Fixed, Projection, Sizes


def gaussian(key: Array, size: int, d: int) -> Float[Array, "_ d"]:
    """Normal entries; each column has a key of its own, whatever `d` is."""
    keys = jax.vmap(lambda j: jax.random.fold_in(key, j))(jnp.arange(d))
    columns = jax.vmap(lambda k: jax.random.normal(k, (size,), jnp.float32))
    return columns(keys).T


def column_norms(blocks: list[Float[Array, "_ d"]]) -> Float[Array, " d"]:
    """Norms of the columns of blocks on top of each other."""
    squares = [jnp.sum(jnp.square(block), axis=0) for block in blocks]
    return jnp.sqrt(sum(squares[1:], squares[0]))


def dense() -> Projection:
    """A dense Gaussian projection whose columns have norm one over the whole network.

    Entries are drawn from `N(0, 1)`, each column of each leaf from its own key, and
    then each of the `d` columns is divided by its norm over all leaves together.
    Columns are nearly orthogonal: inner products are about `1 / sqrt(D)`.

    Returns:
        A projection for `random`. Fixed: `p: [size, d]` for each leaf, float32.

    Example:
        >>> params = {"w": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> tx = lrk.subspace.random(2, lrk.subspace.dense())
        >>> fixed = tx.init(jax.random.key(0), params).fixed
        >>> p = jnp.concatenate([fixed["bias"]["p"], fixed["w"]["p"]])
        >>> jnp.linalg.norm(p, axis=0).round(4).tolist()
        [1.0, 1.0]

    Notes:
        `P` is kept, `D d` numbers, and a product with it costs as many multiply-adds:
        for large `D d` take `fastfood_stacked` or `gather`.
        jgamper/intrinsic-dimensionality draws `N(0, 1/d)` for each tensor, which gives
        columns of norm `sqrt(D / d)`: other step sizes for the same learning rate.

    References:
        Li et al., 2018, arXiv:1804.08838, and the authors' `rproj_layers_util.py`: one
        norm for each basis vector, summed over all layers.
    """

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        raw = {p: gaussian(_tree.leaf_key(key, p), n, d) for p, n in sizes.items()}
        norms = column_norms(list(raw.values()))
        return {path: {"p": block / norms[None]} for path, block in raw.items()}

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        return {path: fixed[path]["p"] @ z for path in sizes}

    return Projection(("p",), draw, apply, nested=True)
