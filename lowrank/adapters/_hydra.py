"""HydraLoRA: one factor over the inputs, several heads, and a router between them."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import (
    Initializer,
    check_leaves,
    check_rank,
    draw_factor,
    kaiming,
    scale_of,
)
from lowrank.operators import Routed


def check_heads(who: str, heads: Any) -> int:
    """A number of heads as an int; what is no positive integer is refused.

    Raises:
        TypeError: If it is not an int.
        ValueError: If it is below 1.
    """
    if isinstance(heads, bool) or not isinstance(heads, int):
        raise TypeError(f"{who}: heads must be an int, got {heads!r}.")
    if heads < 1:
        raise ValueError(f"{who}: heads must be at least 1, got {heads}.")
    return heads


def draw_shared(init: Initializer, key: Array, sizes: Axes, width: int) -> Array:
    """A factor `[*stack, *in, width]`."""
    drawn = draw_factor(init, key, sizes.stack, math.prod(sizes.inputs), width)
    return drawn.reshape(*sizes.stack, *sizes.inputs, width)


def hydra(
    rank: int,
    heads: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
) -> Transform:
    """HydraLoRA: one shared `A`, several heads `B_i`, weighted for each token.

    A product `x W` with `W: [n, m]` becomes `x W + s sum_i softmax(x G)_i (x A) B_i`
    with `A: [n, r]`, `B_i: [r, m]` and the router `G: [n, heads]`. A task needs no
    name: the router tells inputs apart. As the weights depend on the input, there is no
    dense form, so nothing is merged into the base; see `mtl_lora` for that.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        heads: Number of heads, at least 1.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A` and of the router, called as
            `init(key, (fan_in, width), float32)` for each stack index.

    Returns:
        A transform that is the identity at init: all heads are zero. Trainable,
        float32: `a: [*stack, *in, r]`, `b: [*stack, heads, r, *out]` and
        `router: [*stack, *in, heads]`. Fixed: `scale`.

    Raises:
        TypeError: If `rank` or `heads` is not an int.
        ValueError: If `rank < 1`, `heads < 1`, or `alpha` and `scale` are both given;
            in `init`, if a selected leaf cannot be adapted; in `apply`, if the state is
            of another tree.

    Example:
        >>> tx = lrk.hydra(2, 3)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((5, 4))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'a': (5, 2), 'b': (3, 2, 4), 'router': (5, 3)}

    Notes:
        The router's softmax is taken in float32, as in the authors' code. The paper
        finds the number of heads by clustering the data; here it is an argument.

    References:
        Tian et al., HydraLoRA, 2024, arXiv:2404.19245: eqs. 2 to 4 (transposed: our
        kernels are `[in, out]`).
    """
    rank, heads = check_rank("hydra", rank), check_heads("hydra", heads)
    check_select("hydra", select)
    number = scale_of("hydra", rank, alpha, scale)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("hydra", key)
        chosen = selected("hydra", params, select)
        found = resolve("hydra", chosen, axes)
        check_leaves("hydra", rank, chosen, found)
        trainable = {}
        for path, leaf in chosen.items():
            sizes = found[path].sizes(leaf.shape)
            for_a, for_router = jax.random.split(_tree.leaf_key(key, path))
            trainable[path] = {
                "a": draw_shared(init, for_a, sizes, rank),
                "b": jnp.zeros((*sizes.stack, heads, rank, *sizes.outputs)),
                "router": draw_shared(init, for_router, sizes, heads),
            }
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("hydra", params)
        names = {"trainable": ("a", "b", "router"), "fixed": ("scale",)}
        _check.check_state("hydra", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("hydra", chosen, axes)
        new = {}
        for path, w in chosen.items():
            own, dims = state.trainable[path], found[path]
            factors = {name: own[name] for name in ("a", "b", "router")}
            held = {"a_dims": dims.a_dims, "b_dims": dims.b_dims}
            scaled = {"scale": state.fixed[path]["scale"]}
            new[path] = Routed._make(w=w, **factors, **scaled, **held)
        _check.check_operators("hydra", new)
        return _tree.replace("hydra", params, new)

    return Transform(start, apply)
