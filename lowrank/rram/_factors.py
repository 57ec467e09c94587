"""Adapters on RRAM: the factors themselves on crossbars."""

import math
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowrank import _check, _tree
from lowrank._base import Path, PyTree, State, Transform
from lowrank._select import Select, check_select, selected
from lowrank.operators import LowRank
from lowrank.rram._chip import sample
from lowrank.rram._crossbar import device_numbers
from lowrank.rram._device import Device, check_parts
from lowrank.rram._program import check_tile, deploy

_NAMES = ("a", "b")


def factors(
    device: Device,
    *,
    tile: int | None = None,
    columns: bool = True,
    select: Select,
) -> Transform:
    """Put the factors of low-rank adapters on crossbars of their own.

    A leaf that stands for `W + s A B` becomes `W + s dep(A) dep(B)`, with `dep` the
    weights that a chip ends up with. Only the outermost adapter is deployed; its base
    stays what it is, so `chain(crossbar(d1), lora(r), factors(d2))` has both on RRAM.

    Args:
        device: The numbers of the device: effects on weights only.
        tile: Rows of a tile, as for `crossbar`; None: one tile for each factor.
        columns: As for `crossbar`.
        select: Which leaves; each must be a `LowRank` where this transform meets it.

    Returns:
        A transform with nothing trainable. Fixed: the cells of both factors, as
        `a/gain`, `b/gain`, ..., with stacks in front, and the device's numbers.

    Raises:
        TypeError: If `device` is no `Device` or `tile` no int.
        ValueError: If the device has converters, read noise or wires; in `init` and
            `apply`, if a selected leaf is no low-rank adapter, a factor has fewer rows
            than a tile, or the chip was sampled for another tree.

    Example:
        >>> device = lrk.rram.Device(p_hrs=0.1)
        >>> on_chip = lrk.rram.factors(device, select=lrk.is_matrix)
        >>> tx = lrk.chain(lrk.lora(2), on_chip)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> state.fixed[1]["w"]["a/code"].shape
        (2, 4, 2)

    References:
        Atleus and HaLoRA keep adapters digital; here either can be tried.
    """
    check_parts("factors", device)
    if device.acts_in_product:
        raise ValueError(
            "factors: the device has converters, read noise or wires, which act inside "
            "a product. Leave them out, with device.replace(dac=None, ...)."
        )
    check_tile("factors", tile)
    check_select("factors", select)
    numbers = device_numbers(device)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("factors", key)
        chosen = selected("factors", params, select)
        _check_adapters(chosen, tile)
        fixed = {}
        for path, op in chosen.items():
            cells = {}
            for i, name in enumerate(_NAMES):
                own = _tree.leaf_key(key, f"{path}/{name}")
                drawn = sample(own, _shapes(op)[i], device, tile)
                cells |= {f"{name}/{n}": x for n, x in drawn.items()}
            fixed[path] = cells | numbers
        return State({}, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("factors", params)
        _check.check_state("factors", leaves, state, fixed=("a/gain", "b/gain"))
        chosen = {path: leaves[path] for path in state.fixed}
        _check_adapters(chosen, tile)
        _check_cells(chosen, state)
        new = {}
        for path, op in chosen.items():
            values = {}
            for name, shape in zip(_NAMES, _shapes(op), strict=True):
                factor, chip = getattr(op, name), _cells(state.fixed[path], name)
                matrix = factor.astype(jnp.float32).reshape(shape)
                back = deploy(matrix, chip, device.scheme, tile, columns)
                values[name] = back.reshape(factor.shape).astype(factor.dtype)
            new[path] = op.replace(**values)
        return _tree.replace("factors", params, new)

    return Transform(init, apply)


def _shapes(op: LowRank) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """`(*stack, rows, cols)` of both factors: what meets the rank is flattened."""
    depth = len(op.stack)
    stack, rank = op.a.shape[:depth], op.a.shape[-1]
    share = max(1, rank * math.prod(stack))
    rows, cols = op.a.size // share, op.b.size // share
    return (*stack, rows, rank), (*stack, rank, cols)


def _cells(fixed: Mapping[str, Array], name: str) -> dict[str, Any]:
    """The chip of one factor."""
    own = {n.removeprefix(f"{name}/"): x for n, x in fixed.items() if f"{name}/" in n}
    return own | {n: x for n, x in fixed.items() if "/" not in n}


def _check_adapters(chosen: Mapping[Path, Any], tile: int | None) -> None:
    """Refuse leaves that are no adapter, or too small for a tile.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        if not isinstance(leaf, LowRank):
            bad.append(f"'{path}' is {type(leaf).__name__}, no LowRank")
        elif tile is not None and min(s[-2] for s in _shapes(leaf)) < tile:
            rows = [s[-2] for s in _shapes(leaf)]
            bad.append(f"'{path}' has factors of {rows} rows, tile={tile}")
    if bad:
        raise ValueError(
            f"factors: {'; '.join(bad)}. Put it behind lrk.lora or lrk.lori in the "
            "chain, with the same select=."
        )


def _check_cells(chosen: Mapping[Path, Any], state: State) -> None:
    """Refuse a chip that was sampled for another tree.

    Raises:
        ValueError: If it was; all leaves are named.
    """
    bad = []
    for path, op in chosen.items():
        for name, (*stack, rows, cols) in zip(_NAMES, _shapes(op), strict=True):
            cells = (*stack, 2, rows, cols)
            have = tuple(state.fixed[path][f"{name}/gain"].shape)
            if have != cells:
                bad.append(f"'{path}' {name}: expected cells {cells}, got {have}")
    if bad:
        raise ValueError(
            f"factors: the chip was sampled for another tree: {'; '.join(bad)}. Pass "
            "the tree that init saw."
        )
