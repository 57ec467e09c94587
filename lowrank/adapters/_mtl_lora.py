"""MTL-LoRA: shared factors, and for each task a small matrix and a mixture of heads."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State, Transform, is_array
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._hydra import check_heads, draw_shared
from lowrank.adapters._lora import (
    Initializer,
    check_leaves,
    check_rank,
    draw_factor,
    kaiming,
    scale_of,
)
from lowrank.operators import LowRank


def task_factor(
    b: Float[Array, "*stack heads r out"],
    task: Float[Array, "*stack r r"],
    mix: Float[Array, "*stack heads"],
    temperature: Any,
) -> Float[Array, "*stack r out"]:
    """`Lambda_t sum_i softmax(w_t / tau)_i B_i`: what one task has for its `B`."""
    shares = jax.nn.softmax(mix / temperature, axis=-1)
    mean = jnp.sum(shares[..., None, None] * b, axis=-3)
    return jnp.matmul(task, mean)


def mtl_lora(
    rank: int,
    heads: int,
    *,
    temperature: Any = 0.1,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
) -> Transform:
    """MTL-LoRA: factors that all tasks share, turned and mixed for each of them.

    For one task `t`, a kernel `W: [n, m]` becomes
    `W + s A Lambda_t sum_i softmax(w_t / tau)_i B_i` with `A: [n, r]` and
    `B_i: [r, m]` shared by all tasks, `Lambda_t: [r, r]` and `w_t: [heads]` its own.
    For one task that is a plain low-rank term, which merges and materialises. Which
    leaves are shared is up to training: `partition` divides the state.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        heads: Number of heads `B_i`, at least 1.
        temperature: `tau`, above 0: the lower, the nearer to one head for each task.
            May be traced.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A`, called as `init(key, (fan_in, rank), float32)` for
            each stack index.

    Returns:
        A transform that is the identity at init: all heads are zero. Trainable,
        float32: to be shared, `a: [*stack, *in, r]` and `b: [*stack, heads, r, *out]`;
        a task's own, `task: [*stack, r, r]`, the identity at init, and
        `mix: [*stack, heads]`, uniform in (-1/sqrt(heads), 1/sqrt(heads)). Fixed:
        `scale`.

    Raises:
        TypeError: If `rank` or `heads` is not an int, or `temperature` is no number.
        ValueError: If `rank < 1`, `heads < 1`, `temperature <= 0`, or `alpha` and
            `scale` are both given; in `init`, if a selected leaf cannot be adapted; in
            `apply`, if the state is of another tree.

    Example:
        >>> tx = lrk.mtl_lora(2, 3)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((5, 4))})
        >>> private, shared = lrk.partition(state, lrk.matching("/(task|mix)$"))
        >>> sorted(private.trainable["w"]), sorted(shared.trainable["w"])
        (['mix', 'task'], ['a', 'b'])

    Notes:
        `mix` is random as in the authors' code: from zeros, the heads would get equal
        gradients and stay equal for ever. So init each task with a key of its own.

    References:
        Yang et al., MTL-LoRA, 2024, arXiv:2410.09437: the equation of its method,
        h_t = W x + sum_i softmax(w_t / tau)_i B_i Lambda_t A x (transposed: our kernels
        are `[in, out]`).
    """
    rank, heads = check_rank("mtl_lora", rank), check_heads("mtl_lora", heads)
    check_select("mtl_lora", select)
    number = scale_of("mtl_lora", rank, alpha, scale)
    _check_temperature(temperature)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("mtl_lora", key)
        chosen = selected("mtl_lora", params, select)
        found = resolve("mtl_lora", chosen, axes)
        check_leaves("mtl_lora", rank, chosen, found)
        trainable = {}
        for path, leaf in chosen.items():
            sizes = found[path].sizes(leaf.shape)
            square = (*sizes.stack, rank, rank)
            for_a, for_mix = jax.random.split(_tree.leaf_key(key, path))
            mix = draw_factor(kaiming, for_mix, sizes.stack, heads, 1)
            trainable[path] = {
                "a": draw_shared(init, for_a, sizes, rank),
                "b": jnp.zeros((*sizes.stack, heads, rank, *sizes.outputs)),
                "task": jnp.broadcast_to(jnp.eye(rank), square),
                "mix": mix[..., 0],
            }
        fixed = {p: {"scale": jnp.asarray(number, jnp.float32)} for p in chosen}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("mtl_lora", params)
        names = {"trainable": ("a", "b", "task", "mix"), "fixed": ("scale",)}
        _check.check_state("mtl_lora", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("mtl_lora", chosen, axes)
        new = {}
        for path, w in chosen.items():
            own, dims = state.trainable[path], found[path]
            b = own["b"]
            depth = len(dims.stack) + 2
            flat = b.reshape(*b.shape[:depth], -1)
            mine = task_factor(flat, own["task"], own["mix"], temperature)
            values = {
                "w": w,
                "a": own["a"],
                "b": mine.reshape(*mine.shape[:-1], *b.shape[depth:]),
                "scale": state.fixed[path]["scale"],
                "a_dims": dims.a_dims,
                "b_dims": dims.b_dims,
            }
            new[path] = LowRank._make(**values)
        _check.check_operators("mtl_lora", new)
        return _tree.replace("mtl_lora", params, new)

    return Transform(start, apply)


def _check_temperature(temperature: Any) -> None:
    """Refuse what is no positive number; a traced one is taken as it is.

    Raises:
        TypeError: If it is no number.
        ValueError: If it is not above 0.
    """
    if not _compat.is_known(temperature):
        return
    number = isinstance(temperature, int | float) or is_array(temperature)
    if isinstance(temperature, bool) or not number or np.shape(temperature) != ():
        raise TypeError(f"mtl_lora: temperature must be a number, got {temperature!r}.")
    if not temperature > 0:
        raise ValueError(f"mtl_lora: temperature must be above 0, got {temperature}.")
