"""LoRTA: one CP decomposition for the changes of all layers and projections."""

from collections.abc import Mapping
from typing import Any

import jax
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, check_rank, kaiming
from lowrank.adapters._modes import Groups, Modes, draw_modes, member_rows, mode_shapes
from lowrank.adapters._tensor import Arrays, Decomposition, nothing, tensor

_normal = jax.nn.initializers.normal(1.0)


def cp_factor(
    layer: Float[Array, " r"], type_: Float[Array, " r"], b: Float[Array, "r m"]
) -> Float[Array, "r m"]:
    """`diag(c_layer * c_type) B`: what one leaf has for its `B`."""
    return (layer * type_)[:, None] * b


def with_heads(
    head: Float[Array, "h r"], b: Float[Array, "r k"]
) -> Float[Array, "r h*k"]:
    """`B` of all heads from one of a single head: column `(h, k)` is `c_h * B_k`."""
    return (head.T[:, :, None] * b[:, None, :]).reshape(b.shape[0], -1)


def lorta(
    rank: int,
    groups: Groups,
    *,
    heads: int | None = None,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_mode: Initializer = _normal,
) -> Transform:
    r"""LoRTA: the changes of all weights are one tensor of CP rank `r`.

    The kernel of layer `l` and type `t`, `W_lt: [n, m]`, becomes
    `W_lt + s A diag(c_l * d_t) B` with `A: [n, r]` and `B: [r, m]` shared by all leaves
    of as many inputs, or outputs, and rows `c_l`, `d_t` of `layer: [layers, r]` and
    `type: [types, r]`. With heads the columns of `B` are `e_h * B_k`, for a row `e_h`
    of `head: [heads, r]` and `B: [r, m / heads]`.

    Args:
        rank: CP rank `r`, at least 1 and at most the smaller side of each leaf.
        groups: Layer and type of each leaf: a regular expression with the groups
            `layer` and `type`, or a function `path -> (layer, type)`. A leaf with stack
            axes is as many layers, numbered by its stack (behind the name that
            `groups` gives, if any); without a group `type` all leaves are of one type.
        heads: Number of parts of the outputs that share one `B`; None for no such mode.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A`, called as `init(key, (n, r), float32)`.
        init_mode: Initializer of each row of `layer`, `type` and `head`, called as
            `init_mode(key, (r,), float32)` with a key of the row's own name.

    Returns:
        A transform that is the identity at init: `B` is zero. Trainable, float32: `a`
        at `shared/in/n`, `b` at `shared/out/m`, and `layer`, `type` (and `head`) at
        `shared/modes`. Fixed, at the path of each leaf: `scale`, and `layer_row` and
        `type_row`, the rows that are the leaf's, int32. What `apply` gives is a plain
        `LowRank` for each leaf.

    Raises:
        TypeError: If `rank` or `heads` is not an int, or `groups` neither expression
            nor function.
        ValueError: If `rank < 1`, `heads < 1`, `alpha` and `scale` are both given, or
            `groups` does not compile or names no group; in `init`, if a selected leaf
            cannot be adapted, has no layer or type, or shares both with another; in
            `apply`, if the state is of another tree.

    Example:
        >>> params = {"0": {"q": jnp.ones((4, 4))}, "1": {"q": jnp.ones((4, 4))}}
        >>> tx = lrk.lorta(2, r"^(?P<layer>\d+)/(?P<type>\w+)")
        >>> state = tx.init(jax.random.key(0), params)
        >>> {path: sorted(own) for path, own in state.trainable.items()}
        {'shared/in/4': ['a'], 'shared/out/4': ['b'], 'shared/modes': ['layer', 'type']}
        >>> state.fixed["1/q"]["layer_row"].tolist(), lrk.count(state)
        (1, (22, 0))

    Notes:
        The paper's tensor has one size of weights; here each size has an outer factor
        of its own. Heads divide the outputs of every leaf, those of an output
        projection too. The starts of the factors are ours: one is zero, as in the
        paper, and the others are drawn; the authors' code was not compared.

    References:
        Hounie et al., LoRTA, 2024, arXiv:2410.04060: the CP decomposition over inputs,
        head dimension, heads, layers and projections, `dT = sum_k a_k o b_k o e_k o c_k
        o d_k` with `o` the outer product (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("lorta", rank)

    def draw(key: Array, modes: Modes) -> Arrays:
        return draw_modes("lorta", init_mode, key, modes, heads, (rank,))

    def right(modes: Arrays, own: Arrays, index: Arrays, b: Array) -> Array:
        del own
        whole = b if heads is None else with_heads(modes["head"], b)
        return cp_factor(*member_rows(modes, index), whole)

    return tensor(
        "lorta",
        rank,
        Decomposition(mode_shapes(heads, rank), draw, {}, nothing, right),
        alpha=alpha,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_b=jax.nn.initializers.zeros,
        groups=groups,
        heads=heads,
    )
