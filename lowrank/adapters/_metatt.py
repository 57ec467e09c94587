"""MetaTT: one tensor train for the changes of all layers and types of weights."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, check_rank
from lowrank.adapters._modes import Groups, Modes, draw_modes, member_rows, mode_shapes
from lowrank.adapters._tensor import Arrays, Decomposition, nothing, tensor


def eye(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Ones on the diagonal: an initializer that draws nothing."""
    del key
    return jnp.eye(*shape, dtype=dtype)


def train_factor(
    layer: Float[Array, "r r"], type_: Float[Array, "r r"], b: Float[Array, "r m"]
) -> Float[Array, "r m"]:
    """`G_2[l] G_3[t] G_4`: what one leaf has for its `B`."""
    return layer @ (type_ @ b)


def with_heads(
    head: Float[Array, "h r r"], b: Float[Array, "r k"]
) -> Float[Array, "r m"]:
    """The core of all outputs from that of one head: columns `h` are `G_4[h] G_5`."""
    return jnp.einsum("hrs,sk->rhk", head, b).reshape(b.shape[0], -1)


def metatt(
    rank: int,
    groups: Groups,
    *,
    heads: int | None = None,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = jax.nn.initializers.zeros,
    init_core: Initializer = eye,
    init_b: Initializer = eye,
) -> Transform:
    r"""MetaTT: the changes of all weights are one tensor train over layers and types.

    The kernel of layer `l` and type `t`, `W_lt: [n, m]`, becomes
    `W_lt + s G_1 G_2[l] G_3[t] G_4` with `G_1: [n, r]` and `G_4: [r, m]` shared by all
    leaves of as many inputs, or outputs, `G_2: [layers, r, r]` and
    `G_3: [types, r, r]`. With heads there is a core `[heads, r, r]` more before the
    last, `[r, m / heads]`.

    Args:
        rank: TT rank `r`, at least 1 and at most the smaller side of each leaf.
        groups: Layer and type of each leaf, as for `lorta`.
        heads: Number of parts of the outputs that share the last core; None for four
            cores (MetaTT-4D), a number for five (5D).
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `G_1`, called as `init(key, (n, r), float32)`.
        init_core: Initializer of each matrix of the cores between, called as
            `init_core(key, (r, r), float32)` with a key of the member's own name.
        init_b: Initializer of the last core, called as `init_b(key, (r, m), float32)`.

    Returns:
        A transform that is the identity at init (with the default `init`). Trainable,
        float32: `a` at `shared/in/n`, `b` at `shared/out/m`, and `layer`, `type` (and
        `head`) at `shared/modes`. Fixed, at the path of each leaf: `scale`, and
        `layer_row` and `type_row`, which members of those cores are the leaf's, int32.
        What `apply` gives is a plain `LowRank` for each leaf.

    Raises:
        TypeError: If `rank` or `heads` is not an int, or `groups` neither expression
            nor function.
        ValueError: If `rank < 1`, `heads < 1`, `alpha` and `scale` are both given, or
            `groups` does not compile or names no group; in `init`, if a selected leaf
            cannot be adapted, has no layer or type, or shares both with another; in
            `apply`, if the state is of another tree.

    Example:
        >>> params = {"0": {"q": jnp.ones((4, 4))}, "1": {"q": jnp.ones((4, 4))}}
        >>> tx = lrk.metatt(2, r"^(?P<layer>\d+)/(?P<type>\w+)")
        >>> state = tx.init(jax.random.key(0), params)
        >>> {n: g.shape for n, g in state.trainable["shared/modes"].items()}
        {'layer': (2, 2, 2), 'type': (1, 2, 2)}
        >>> type(tx.apply(params, state)["0"]["q"]).__name__
        'LowRank'

    Notes:
        The paper's tensor has one size of weights; here each size has outer cores of
        its own. All inner ranks are equal. The paper's sweeps that change ranks during
        training (DMRG) are not part of a transform. By default nothing is drawn: the
        first core is zero and all others are (rectangular) identities; the authors'
        code was not compared.

    References:
        Lopez-Piqueres et al., MetaTT, 2025, arXiv:2506.09105: MetaTT-4D,
        `dW_lt = s G_1 G_2[l] G_3[t] G_4`, and MetaTT-5D, `s G_1 G_2[l] G_3[t] G_4[h]
        G_5` for the columns of head `h`.
    """
    rank = check_rank("metatt", rank)

    def draw(key: Array, modes: Modes) -> Arrays:
        return draw_modes("metatt", init_core, key, modes, heads, (rank, rank))

    def right(modes: Arrays, own: Arrays, index: Arrays, b: Array) -> Array:
        del own
        whole = b if heads is None else with_heads(modes["head"], b)
        return train_factor(*member_rows(modes, index), whole)

    return tensor(
        "metatt",
        rank,
        Decomposition(mode_shapes(heads, rank, rank), draw, {}, nothing, right),
        alpha=alpha,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_b=init_b,
        groups=groups,
        heads=heads,
    )
