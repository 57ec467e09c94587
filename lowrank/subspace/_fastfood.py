"""Fastfood: a random projection made of Hadamard transforms."""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank import _tree
from lowrank._base import Path
from lowrank.linalg import hadamard, hadamard_blocks
from lowrank.subspace._projection import (
    SUBSPACE,
    Fixed,
    Projection,
    Sizes,
    check_dimension,
    check_drawn,
    parts_of,
)

_SHARED = ("flip", "gain", "order")
_OUTER = 128


class Plan(NamedTuple):
    """Sizes of a product: `chunks` of `z` go to `count` transforms of length `length`.

    Attributes:
        total: `D`, how many entries are needed.
        length: `L`, a power of two.
        count: How many transforms stand on top of each other: `ceil(D / L)`.
        chunks: How many parts of `z`: `ceil(d / L)`, so one unless `d > L`.
        width: Length of a part, a power of two: at most `L`.
    """

    total: int
    length: int
    count: int
    chunks: int
    width: int

    @property
    def outer(self) -> int:
        """The outer half of a transform's length, near its root."""
        return min(_OUTER, power(math.isqrt(self.length - 1) + 1))

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Shape of what is drawn for every place: the halves of a length apart."""
        return self.chunks, self.outer, self.count, self.length // self.outer

    def rows(self) -> np.ndarray:
        """How many rows of each transform are kept, as `[1, 1, count, 1]`."""
        _, outer, count, inner = self.shape
        starts = inner * np.arange(outer * count).reshape(outer, count)
        kept = np.clip(self.total - starts, 0, inner).sum(axis=0)
        return kept.reshape(1, 1, count, 1)


def power(n: int) -> int:
    """The least power of two that is at least `n`."""
    return 1 << (n - 1).bit_length()


def plan_of(total: int, d: int, length: int) -> Plan:
    """The sizes for `D` entries, `d` numbers and transforms of one length."""
    width = min(power(d), length)
    return Plan(total, length, -(-total // length), -(-d // length), width)


def draw_arrays(key: Array, plan: Plan, d: int) -> dict[str, Array]:
    """`B`, `G` and `Pi`; each chunk of `z` has keys of its own."""
    for_b, for_g, for_pi = (jax.random.fold_in(key, i) for i in range(3))

    def sign(i: Array) -> Array:
        return jax.random.rademacher(jax.random.fold_in(for_b, i), (), jnp.int8)

    def normal(i: Array) -> Array:
        mine = jax.random.fold_in(for_g, i)
        return jax.random.normal(mine, plan.shape[1:], jnp.float32)

    def permutation(i: Array) -> Array:
        mine = jax.random.fold_in(for_pi, i)
        return jax.random.permutation(mine, places)

    places, chunks = jnp.arange(plan.length, dtype=jnp.int32), jnp.arange(plan.chunks)
    # The vector that `Pi` permutes repeats itself, see `product`.
    order = jax.vmap(permutation)(chunks) % plan.width
    gain = jax.vmap(normal)(chunks)
    kept = jnp.asarray(plan.rows() / plan.total, jnp.float32)
    norms = jnp.sqrt(jnp.sum(jnp.square(gain) * kept, axis=(1, 2, 3), keepdims=True))
    small = plan.width <= np.iinfo(np.uint16).max + 1
    return {
        "flip": jax.vmap(sign)(jnp.arange(d)),
        "gain": gain / norms,
        "order": order.astype(jnp.uint16 if small else jnp.int32),
    }


def product(fixed: dict[str, Array], z: Array, plan: Plan) -> Float[Array, " rows"]:
    """`H G Pi H B z` of all transforms, of which the first `D` entries are needed.

    Columns have norm `sqrt(D)` over these.

    The first `H` acts on `z` and zeros: `H_L (z; 0) = (H_w z; H_w z; ...)` for the
    least power `w` that holds `z`. So it costs `w log w`, whatever `L` is.
    """
    flipped = z * fixed["flip"].astype(z.dtype)
    padded = jnp.pad(flipped, (0, plan.chunks * plan.width - z.shape[0]))
    mixed = hadamard(padded.reshape(plan.chunks, plan.width))

    order = fixed["order"]
    if plan.chunks > 1:
        starts = plan.width * np.arange(plan.chunks, dtype=np.int32)
        order = order.astype(jnp.int32) + starts[:, None]
    dealt = mixed.reshape(-1).at[order].get(mode="promise_in_bounds")
    chunks, outer, _, inner = plan.shape
    dealt = dealt.reshape(chunks, outer, 1, inner)  # all transforms have one `Pi`
    gain = fixed["gain"].astype(z.dtype)
    if chunks == 1:  # a fourth axis makes the transpose four times as slow on CPUs
        weighed = dealt[0] * gain[0]
    else:
        weighed = jnp.sum(dealt * gain, axis=0)
    if plan.count == 1:  # then the halves are next to each other
        return hadamard(weighed.reshape(-1))
    return hadamard_blocks(weighed).reshape(-1)


def _fastfood(
    who: str, length_of: Callable[[int, int], int], nested: bool
) -> Projection:
    """The projection whose transforms have the length `length_of(D, d)`."""

    def draw(key: Array, sizes: Sizes, d: int) -> dict[Path, dict[str, Array]]:
        total = sum(sizes.values())
        plan = plan_of(total, d, length_of(total, d))
        arrays = draw_arrays(_tree.leaf_key(key, SUBSPACE), plan, d)
        scale = jnp.asarray(total**-0.5, jnp.float32)
        return {SUBSPACE: arrays} | {path: {"scale": scale} for path in sizes}

    def apply(fixed: Fixed, z: Array, sizes: Sizes) -> dict[Path, Array]:
        total, d = sum(sizes.values()), z.shape[0]
        plan = plan_of(total, d, length_of(total, d))
        shared = dict(fixed[SUBSPACE])
        check_drawn(who, shared["gain"].shape == plan.shape, sizes)
        parts = parts_of(product(shared, z, plan), sizes)
        scales = {path: fixed[path]["scale"].astype(z.dtype) for path in sizes}
        return {path: part * scales[path] for path, part in parts.items()}

    return Projection(("scale",), draw, apply, nested, _SHARED)


def fastfood() -> Projection:
    """Fastfood over the whole network as one vector, as Li et al. use it.

    `P z = (H G Pi H B (z; 0))_{1..D} / sqrt(D sum(G^2))` with `H` the Hadamard matrix
    of length `L`, the least power of two `>= D`, `B` random signs, `Pi` a permutation
    and `G` Gaussian. A column has norm one, exactly where `D = L` and else within about
    `1 / sqrt(D)`; two columns have an inner product of about `sqrt(2 / D)`.

    Returns:
        A projection for `random`, nested. Fixed: `scale`, a scalar for each leaf, which
        says how far it moves; at `subspace`: `flip` (`B`), `gain` (`G`, normalised),
        `order` (`Pi`). That is `6 L` bytes (`8 L` for `d > 65536`) and a product of
        `O(D log D)`, whatever `d` is.

    Example:
        >>> params = {"w": jnp.ones((4, 4))}
        >>> tx = lrk.subspace.random(2, lrk.subspace.fastfood())
        >>> state = tx.init(jax.random.key(0), params)
        >>> z = {"subspace": {"z": jnp.asarray([1.0, 0.0])}}
        >>> delta = tx.apply(params, state._replace(trainable=z))["w"].d
        >>> round(float(jnp.linalg.norm(delta)), 4)
        1.0

    Notes:
        The transforms are products with constant matrices of 8 to 32 (up to `L = 128`,
        one) instead of `log2 L` passes; the first costs `d log d` only, as `z` fills
        but the first `d` of `L` places. Numbers drawn are not those of the authors'
        code.
        Seen in other code, and tested to be absent here: a backward pass that is not
        the transpose (rabeehk/compacter: divided by `sqrt(L)` of each tensor), and
        leaves with `L < d` that see the first `L` numbers only
        (jgamper/intrinsic-dimensionality).

    References:
        Le et al., Fastfood, 2013. Li et al., 2018, arXiv:1804.08838, and the authors'
        `rproj_layers_util.py`. Aghajanyan et al., 2020, arXiv:2012.13255: M = H G Pi H
        B.
    """

    def length(total: int, d: int) -> int:
        del d
        return power(total)

    return _fastfood("fastfood", length, nested=True)


def fastfood_stacked(block: int | None = None) -> Projection:
    """Fastfood in blocks on top of each other, as Le et al. stack them.

    `P z` is `ceil(D / L)` products `H G_k Pi H B z` of length `L`, each with its own
    `G_k`, of which the first `D` entries are kept: `O(D log d)` instead of `O(D log D)`
    with a single transform for each weight, as `Pi H B z` is the same for all. Norms
    and inner products of columns are as for `fastfood`.

    Args:
        block: `L`, rounded up to a power of two. None: the least that is `>= d`. With
            an int the same block serves every `d`, so that the projection is nested;
            then a `d` above it costs one more set of blocks for each `L` numbers.

    Returns:
        A projection for `random`. Fixed: as for `fastfood`, with a short `order`: `4 D`
        bytes.

    Raises:
        TypeError: If `block` is no int.
        ValueError: If it is below 1.

    Example:
        >>> lrk.subspace.fastfood_stacked().nested
        False
        >>> lrk.subspace.fastfood_stacked(1024).nested
        True

    Notes:
        Le et al. draw `B` and `Pi` for each block, and scale rows by `S`. Here all
        blocks share `B`, which only flips signs of `z`, and `Pi`: blocks differ by
        their Gaussian `G_k`, and no look-up or scatter of `D` entries is left. The
        normalisation does for `S`.
        The rows of all blocks are interleaved, in a layout in which the transform is
        two plain products.

    References:
        Le et al., Fastfood - approximating kernel expansions in loglinear time, 2013:
        V = S H G Pi H B, stacked for more rows than columns.
    """
    if block is not None:
        block = power(check_dimension("fastfood_stacked", block, "block"))

    def length(total: int, d: int) -> int:
        del total
        return power(d) if block is None else block

    return _fastfood("fastfood_stacked", length, nested=block is not None)
