"""SHiRA: train a few entries of a weight, wherever they are."""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from lowrank import _check, _tree
from lowrank._base import Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import scale_of
from lowrank.adapters._lori import check_masks, kept_entries, scatter
from lowrank.adapters._lori_mask import check_density
from lowrank.operators import Delta


def draw_places(key: Key[Array, ""], size: int, count: int) -> Int[Array, " k"]:
    """Some of the places of an array, at random, in order."""
    drawn = jax.random.choice(key, size, (count,), replace=False)
    return jnp.sort(drawn).astype(jnp.int32)


def _source(density: float | None, mask: Any) -> tuple[float, Any]:
    """The share of random places, or the places of a mask.

    Raises:
        TypeError: If a mask is traced.
        ValueError: If not one of the two is given, or it is wrong.
    """
    if (density is None) == (mask is None):
        raise ValueError("shira: pass one of density and mask.")
    if density is None:
        return 0.0, kept_entries("shira", mask)
    check_density("shira", density)
    return density, None


def shira(
    density: float | None = None,
    *,
    mask: Mapping[Path, Any] | None = None,
    scale: Any = None,
    select: Select = is_matrix,
) -> Transform:
    """SHiRA: train a sparse delta of the weight itself, of high rank.

    A leaf `W` of any shape becomes `W + s D`, where `D` is zero but at `k` places, at
    random (a share of all entries) or where a mask says.

    Args:
        density: Share of the entries of each leaf to train, in (0, 1], at random places
            that `init` draws.
        mask: In place of `density`, a concrete array of zeros and ones for each
            selected path, of the shape of the leaf; `score_mask` makes one from any
            scores.
        scale: `s`; None for 1. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.

    Returns:
        A transform that is the identity at init. Trainable: `b`, the `k` values,
        float32. Fixed: `index`, their places in the flattened leaf, and `scale`.
        `stack` pads states of masks with other numbers of ones.

    Raises:
        TypeError: If a mask is traced.
        ValueError: If not one of `density` and `mask` is given, the density lies
            outside (0, 1], or a mask holds other numbers than 0 and 1; in `init`, if a
            selected leaf is not floating or its mask does not fit; in `apply`, if the
            state is of another tree.

    Example:
        >>> tx = lrk.shira(0.25)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> state.trainable["w"]["b"].shape, state.fixed["w"]["index"].shape
        ((3,), (3,))

    Notes:
        PEFT trains as many entries as a LoRA of rank `r` has: a density of
        `r (n + m) / (n m)`. The authors mask the gradients of all of `W`.

    References:
        Bhardwaj et al., SHiRA, 2024, arXiv:2406.13175: section 3.1, a fixed mask
        `M: {0, 1}` of the shape of `W` times its gradient. So what was trained differs
        from `W` by `M * D`, and `D` is zero elsewhere.
    """
    check_select("shira", select)
    number = scale_of("shira", 1, None, scale)
    share, kept = _source(density, mask)

    def places(key: Array, path: Path, size: int) -> Array:
        if kept is not None:
            return jnp.asarray(kept[path].index)
        count = max(1, int(share * size))
        return draw_places(_tree.leaf_key(key, path), size, count)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("shira", key)
        chosen = selected("shira", params, select)
        if bad := [p for p, leaf in chosen.items() if not is_floating(leaf)]:
            raise ValueError(
                f"shira: cannot train {bad}: not floating. Leave them out with select=."
            )
        shapes = {path: tuple(leaf.shape) for path, leaf in chosen.items()}
        if kept is not None:
            check_masks("shira", kept, shapes, "Make it of the shapes of the leaves")
        trainable, fixed = {}, {}
        for path, shape in shapes.items():
            index = places(key, path, math.prod(shape))
            # From the host: `jnp.zeros` would compile once for each number of ones.
            trainable[path] = {"b": jnp.asarray(np.zeros(index.shape, np.float32))}
            fixed[path] = {"index": index, "scale": jnp.asarray(number, jnp.float32)}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("shira", params)
        names = {"trainable": ("b",), "fixed": ("index", "scale")}
        _check.check_state("shira", leaves, state, **names)
        new = {}
        for path, fix in state.fixed.items():
            values = fix["scale"] * state.trainable[path]["b"]
            d = scatter(values, fix["index"], tuple(leaves[path].shape))
            new[path] = Delta._make(w=leaves[path], d=d)
        _check.check_operators("shira", new)
        return _tree.replace("shira", params, new)

    return Transform(init, apply)
