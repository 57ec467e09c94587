"""LoRI: a frozen random factor beside a trained, sparse one."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import (
    Initializer,
    check_leaves,
    check_rank,
    draw_factor,
    kaiming,
    scale_of,
)
from lowrank.operators import LowRank

_IMPLEMENTATION = "threefry2x32"
_ADVICE = "Extract it with lrk.lori_mask from a state of the same selection and rank"


def scatter(
    values: Float[Array, " k"], index: Int[Array, " k"], shape: tuple[int, ...]
) -> Float[Array, "..."]:
    """A dense array with some entries set; indices out of range are dropped."""
    flat = jnp.zeros(math.prod(shape), values.dtype)
    # Added, not set: addition is linear, so its gradient is one gather and no more.
    return flat.at[index].add(values, mode="drop").reshape(shape)


def lori(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    mask: Mapping[Path, Any] | None = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = kaiming,
    store_a: bool = True,
) -> Transform:
    """LoRI: freeze a random `A`, train `B`, dense (LoRI-D) or sparse (LoRI-S).

    A kernel `W: [n, m]` becomes `W + (alpha / r) A (B * M)` with `A: [n, r]` drawn once
    and fixed, `B: [r, m]` zero at init, and a 0/1 mask `M` of the shape of `B`.
    Without a mask all of `B` is trained. With one only its kept entries exist: `b`
    holds their values, so gradients and optimizer state are as small as the mask.

    Args:
        rank: Inner size `r`, at least 1 and at most the smaller side of each leaf.
        alpha: The scale is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        mask: None for LoRI-D. For LoRI-S, a concrete array of zeros and ones for each
            selected path, of the shape of that leaf's `B`: what `lori_mask` returns.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`.
        init: Initializer of `A`, called as `init(key, (fan_in, rank), float32)`.
        store_a: Whether the state holds `A`, or the seed that it is drawn from again in
            each `apply`. Both give the same `A` on one JAX version and backend.

    Returns:
        A transform that is the identity at init. Trainable: `b`, float32, `[*stack, r,
        *out]`, or `[k]` under a mask. Fixed: `a` (or `seed`, two uint32 numbers),
        `scale` and, under a mask, `index`, the places of the values in the flattened
        `B`.

    Raises:
        TypeError: If `rank` is not an int, or a mask is traced.
        ValueError: If `rank < 1`, `alpha` and `scale` are both given, or a mask holds
            other numbers than 0 and 1; in `init`, if a selected leaf cannot be adapted
            or its mask is missing or mis-shaped; in `apply`, if the state is of
            another tree.

    Example:
        >>> params = {"w": jnp.ones((4, 3))}
        >>> dense = lrk.lori(2)
        >>> state = dense.init(jax.random.key(0), params)
        >>> b = jnp.arange(6.0).reshape(2, 3)  # as if it had been trained
        >>> trained = state._replace(trainable={"w": {"b": b}})
        >>> mask = lrk.lori_mask(trained, density=0.5)
        >>> sparse = lrk.lori(2, mask=mask).init(jax.random.key(0), params)
        >>> sparse.trainable["w"]["b"].shape
        (3,)

    Notes:
        The authors redraw `A` for LoRI-S, since no seed is set; here the same key gives
        the same `A` as LoRI-D, and another key redraws it. They mask gradients of a
        dense `B`, which is the same function while weight decay is zero. Two tasks
        started from one key share `A`: use a key for each task.

    References:
        Zhang et al., LoRI, 2025, arXiv:2504.07448: h = x W0 + x A_t (B_t * M_t), the
        figure on its method; init of `A` as in the authors' code (PEFT's default).
    """
    rank = check_rank("lori", rank)
    check_select("lori", select)
    number = scale_of("lori", rank, alpha, scale)
    kept = None if mask is None else kept_entries("lori", mask)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("lori", key)
        chosen = selected("lori", params, select)
        found = resolve("lori", chosen, axes)
        check_leaves("lori", rank, chosen, found)
        shapes = {p: _shapes(x, found[p], rank) for p, x in chosen.items()}
        if kept is not None:
            check_masks("lori", kept, {p: s.b for p, s in shapes.items()}, _ADVICE)
        trainable, fixed = {}, {}
        for path, shape in shapes.items():
            seed = jax.random.bits(_tree.leaf_key(key, path), (2,), jnp.uint32)
            own = {"a": _draw(init, seed, shape)} if store_a else {"seed": seed}
            fixed[path] = {**own, "scale": jnp.asarray(number, jnp.float32)}
            size: tuple[int, ...] = shape.b
            if kept is not None:
                fixed[path]["index"] = jnp.asarray(kept[path].index)
                size = kept[path].index.shape
            # From the host: `jnp.zeros` would compile once for each number of ones.
            trainable[path] = {"b": jnp.asarray(np.zeros(size, np.float32))}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("lori", params)
        names = _fixed_names(state)
        _check.check_state("lori", leaves, state, trainable=("b",), fixed=names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("lori", chosen, axes)
        new = {}
        for path, w in chosen.items():
            shape, fixed = _shapes(w, found[path], rank), state.fixed[path]
            a = fixed["a"] if "a" in fixed else _draw(init, fixed["seed"], shape)
            b = state.trainable[path]["b"]
            if "index" in fixed:
                b = scatter(b, fixed["index"], shape.b)
            dims = found[path]
            held = {"a_dims": dims.a_dims, "b_dims": dims.b_dims}
            values = {"w": w, "a": a, "b": b, "scale": fixed["scale"]}
            new[path] = LowRank._make(**values, **held)
        _check.check_operators("lori", new)
        return _tree.replace("lori", params, new)

    return Transform(start, apply)


def _fixed_names(state: State) -> tuple[str, ...]:
    """What every fixed leaf must have: `A` is stored for all leaves or for none."""
    fixed = state.fixed if isinstance(state.fixed, Mapping) else {}
    stored = any("a" in leaf for leaf in fixed.values())
    return ("a" if stored else "seed", "scale")


class _Factors(NamedTuple):
    """Shapes of the two factors of a leaf, and the sizes they come from."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    stack: tuple[int, ...]
    fan_in: int
    rank: int


def _shapes(leaf: Any, axes: Axes, rank: int) -> _Factors:
    sizes = axes.sizes(tuple(leaf.shape))
    a = (*sizes.stack, *sizes.inputs, rank)
    b = (*sizes.stack, rank, *sizes.outputs)
    return _Factors(a, b, sizes.stack, math.prod(sizes.inputs), rank)


def _draw(init: Initializer, seed: Array, shape: _Factors) -> Array:
    """`A` from its seed, by one generator whatever the user's keys are made of."""
    key = jax.random.wrap_key_data(seed, impl=_IMPLEMENTATION)
    drawn = draw_factor(init, key, shape.stack, shape.fan_in, shape.rank)
    return drawn.reshape(shape.a)


class Kept(NamedTuple):
    """The kept entries of one mask."""

    index: np.ndarray
    shape: tuple[int, ...]


def kept_entries(who: str, mask: Mapping[Path, Any]) -> dict[Path, Kept]:
    """Places of the ones of every mask.

    Raises:
        TypeError: If a mask is traced.
        ValueError: If a mask holds other numbers than 0 and 1.
    """
    traced = [p for p, m in mask.items() if not _is_array(m)]
    if traced:
        raise TypeError(
            f"{who}: the mask is not concrete at {traced}, but its number of ones is a "
            "shape. Make it outside jit."
        )
    arrays = {path: np.asarray(m) for path, m in mask.items()}
    wrong = [p for p, m in arrays.items() if not np.isin(m, (0, 1)).all()]
    if wrong:
        raise ValueError(f"{who}: masks must hold 0 and 1, unlike those at {wrong}.")
    return {
        path: Kept(np.flatnonzero(m).astype(np.int32), m.shape)
        for path, m in arrays.items()
    }


def _is_array(mask: Any) -> bool:
    return isinstance(mask, np.ndarray) or _compat.is_concrete(mask)


def check_masks(
    who: str, kept: Mapping[Path, Kept], wanted: Mapping[Path, Any], advice: str
) -> None:
    """Refuse masks that do not fit the selected leaves.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [f"'{path}': no mask" for path in wanted if path not in kept]
    bad += [f"'{path}': not selected" for path in kept if path not in wanted]
    bad += [
        f"'{path}': expected shape {wanted[path]}, got {kept[path].shape}"
        for path in wanted
        if path in kept and kept[path].shape != wanted[path]
    ]
    if bad:
        raise ValueError(f"{who}: the mask does not fit: {'; '.join(bad)}. {advice}.")
