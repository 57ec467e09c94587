"""FacT: one tensor of all weights, as a tensor train or as a Tucker decomposition."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank._axes import Axes
from lowrank._base import Path, Transform
from lowrank._select import Select, is_matrix
from lowrank.adapters._lora import Initializer, check_rank, draw_factor, kaiming
from lowrank.adapters._modes import Modes
from lowrank.adapters._tensor import Arrays, Decomposition, nothing, tensor

xavier = jax.nn.initializers.xavier_uniform()


def tucker_middle(
    core: Float[Array, "r r r"], p: Float[Array, " r"]
) -> Float[Array, "r r"]:
    """`sum_k C_ijk p_k`: the core contracted with what one weight owns."""
    return core @ p


def fact_tt(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
) -> Transform:
    """FacT-TT: all weights share `U` and `V`, each has a small matrix between them.

    Each kernel `W_i: [n, m]` becomes `W_i + s U S_i V` with `U: [n, r]` and `V: [r, m]`
    shared by all leaves of as many inputs, or outputs, and `S_i: [r, r]` its own.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack is a weight of its own.
        init: Initializer of `U` and of each `S_i`, called as
            `init(key, (fan_in, r), float32)`.

    Returns:
        A transform that is the identity at init: `V` is zero. Trainable, float32: `a`
        (the paper's `U`) at `shared/in/n`, `b` (`V`) at `shared/out/m`, and
        `core: [*stack, r, r]` at the path of each leaf. Fixed: `scale`. What `apply`
        gives is a plain `LowRank` for each leaf.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted; in `apply`, if the state is of another
            tree.

    Example:
        >>> params = {"q": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}
        >>> state = lrk.fact_tt(2).init(jax.random.key(0), params)
        >>> {path: list(own) for path, own in state.trainable.items()}
        {'shared/in/4': ['a'], 'shared/out/4': ['b'], 'q': ['core'], 'v': ['core']}

    Notes:
        In the authors' code a weight of `4 d` inputs or outputs is four of the tensor's
        `d x d` slices; here each size has an outer factor of its own. Their dropout of
        0.1 between the factors is left out.

    References:
        Jie and Deng, FacT, 2022, arXiv:2212.03145: FacT-TT, `dW_i = s U S_i V^T`
        (transposed: our kernels are `[in, out]`); starts as in the authors' code,
        fact_tt.py.
    """
    rank = check_rank("fact_tt", rank)

    def draw(key: Array, stack: tuple[int, ...]) -> Arrays:
        return {"core": draw_factor(init, key, stack, rank, rank)}

    def right(modes: Arrays, own: Arrays, index: Arrays, b: Array) -> Array:
        del modes, index
        return own["core"] @ b

    return tensor(
        "fact_tt",
        rank,
        Decomposition({}, nothing, {"core": (rank, rank)}, draw, right),
        alpha=alpha,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_b=jax.nn.initializers.zeros,
    )


def fact_tk(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    init_core: Initializer = xavier,
) -> Transform:
    """FacT-TK: all weights share `U`, `V` and a core, each has a vector of `r` numbers.

    Each kernel `W_i: [n, m]` becomes `W_i + s U (sum_k p_ik C_k) V` with `U: [n, r]`
    and `V: [r, m]` shared by all leaves of as many inputs, or outputs, `C: [r, r, r]`
    by all (its last axis is `k`), and `p_i: [r]` its own.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack is a weight of its own.
        init: Initializer of `U`, called as `init(key, (n, r), float32)`, and of each
            `p_i`, as `init(key, (r, 1), float32)`.
        init_core: Initializer of `C`, called as `init_core(key, (r, r, r), float32)`.

    Returns:
        A transform that is the identity at init: `V` is zero. Trainable, float32: `a`
        (the paper's `U`) at `shared/in/n`, `b` (`V`) at `shared/out/m`, `core` at
        `shared/modes`, and `p: [*stack, r]` at the path of each leaf. Fixed: `scale`.
        What `apply` gives is a plain `LowRank` for each leaf.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted; in `apply`, if the state is of another
            tree.

    Example:
        >>> params = {"q": jnp.ones((4, 4)), "v": jnp.ones((4, 4))}
        >>> state = lrk.fact_tk(2).init(jax.random.key(0), params)
        >>> state.trainable["shared/modes"]["core"].shape, state.trainable["q"].keys()
        ((2, 2, 2), dict_keys(['p']))

    Notes:
        As for `fact_tt`. The authors draw all `p` as one Xavier matrix, whose bound
        falls with the number of weights; here a leaf's numbers depend on no other leaf.

    References:
        Jie and Deng, FacT, 2022, arXiv:2212.03145: FacT-TK, the Tucker form
        `dW_i = s U (sum_k p_ik C_k) V^T`; starts of `U`, `V` and `C` as in the authors'
        code, fact_tk.py.
    """
    rank = check_rank("fact_tk", rank)

    def draw_core(key: Array, modes: Modes) -> Arrays:
        del modes
        return {"core": init_core(key, (rank, rank, rank), jnp.float32)}

    def draw(key: Array, stack: tuple[int, ...]) -> Arrays:
        return {"p": draw_factor(init, key, stack, rank, 1)[..., 0]}

    def right(modes: Arrays, own: Arrays, index: Arrays, b: Array) -> Array:
        del index
        return tucker_middle(modes["core"], own["p"]) @ b

    core = {"core": (rank, rank, rank)}
    return tensor(
        "fact_tk",
        rank,
        Decomposition(core, draw_core, {"p": (rank,)}, draw, right),
        alpha=alpha,
        scale=scale,
        select=select,
        axes=axes,
        init=init,
        init_b=jax.nn.initializers.zeros,
    )
