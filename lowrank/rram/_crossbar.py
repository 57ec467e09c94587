"""Weights on RRAM crossbars: the transform."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.operators import Crossbar
from lowrank.operators import _dispatch as ask
from lowrank.operators._crossbar import NUMBERS
from lowrank.operators._rows import from_matrix, matrix_shape, to_matrix
from lowrank.rram._chip import sample
from lowrank.rram._device import Device, check_parts
from lowrank.rram._effects import Converter, Polynomial
from lowrank.rram._program import check_tile, deploy, difference, program

_CELLS = ("code", "gain", "offset")


def crossbar(
    device: Device,
    *,
    tile: int | None = None,
    columns: bool = True,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """Put weights on RRAM crossbars: a sampled chip, programmed with what it meets.

    `init` samples the chip: which cells are stuck, and how far each deviates. It does
    not look at the weights, so one chip can be programmed with others. `apply` programs
    the weights: `x = w / s` with `s` the largest magnitude of a column, a pair of cells
    with conductances `G+` and `G-` for each weight, and back `s (G+ - G-) / (g_max -
    g_min)`. Effects that touch the weight alone give a plain array. Converters, read
    noise and wires act inside the product: they give a `Crossbar` operator.

    Args:
        device: The numbers of the device.
        tile: Rows of one tile; partial sums are converted for each tile and added
            digitally. None: one tile, whatever the size.
        columns: Whether each column of a tile has its own scale, or each tile one.
        select: Which leaves sit on RRAM; called once, in `init`.
        axes: As for `lora`; inputs are the rows of the crossbar, outputs its columns.

    Returns:
        A transform with nothing trainable. Fixed, for each path: the cells (`code`,
        `gain`, `offset`, of shape `[*stack, 2, rows, cols]`: see `sample`) and the
        device's numbers. Gradients with respect to the weights pass straight through
        the rounding to levels, are those of the programmed cell otherwise, and zero
        where that cell is stuck. With read noise or a noisy ADC `apply` needs a key.

    Raises:
        TypeError: If `device` is no `Device` or has parts of other kinds, or `tile` is
            no int.
        ValueError: If `tile < 1` or a number of the device is an array; in `init` and
            `apply`, if a selected leaf cannot be laid on a crossbar or has fewer rows
            than a tile; in `apply`, if the chip was sampled for another tree, or a leaf
            has no dense form to program.

    Example:
        >>> device = lrk.rram.Device(p_lrs=0.1, p_hrs=0.1, levels=64)
        >>> tx = lrk.chain(lrk.rram.crossbar(device), lrk.lora(1))
        >>> params = {"w": jnp.ones((4, 3))}
        >>> state = tx.init(jax.random.key(0), params)
        >>> state.fixed[0]["w"]["code"].shape  # two cells for each weight
        (2, 4, 3)
        >>> adapted = tx.apply(params, state)  # a digital adapter on an analog base
        >>> type(adapted["w"]).__name__
        'LowRank'

    Notes:
        What the chip is programmed with is formed: `chain(lora(r), crossbar(device))`
        puts the merged weight on the chip, and its gradient is that of the full weight.
        A frozen weight that is programmed inside a training step is programmed again
        in every step: apply the crossbar once, outside, and chain the rest onto it.

    References:
        Song et al., ITT-RNA, 2020, DOI 10.1109/TCAD.2020.2989373: overview figure (the
        differential pair). The effects have their sources in their own classes.
    """
    check_parts("crossbar", device)
    check_tile("crossbar", tile)
    check_select("crossbar", select)
    numbers = device_numbers(device)
    noisy = device.stochastic
    wanted = (*_CELLS, *numbers)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("crossbar", key)
        chosen = selected("crossbar", params, select)
        found = resolve("crossbar", chosen, axes)
        shapes = {path: matrix_shape(w, found[path]) for path, w in chosen.items()}
        _check_leaves(chosen, shapes, tile)
        fixed = {}
        for path, shape in shapes.items():
            cells = sample(_tree.leaf_key(key, path), shape, device, tile)
            fixed[path] = cells | numbers
        return State({}, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        leaves = _tree.leaves("crossbar", params)
        _check.check_state("crossbar", leaves, state, fixed=wanted)
        if noisy:
            _check.check_key("crossbar", key, "apply(params, state, key=key)")
        chosen = {path: leaves[path] for path in state.fixed}
        found = resolve("crossbar", chosen, axes)
        shapes = {path: matrix_shape(w, found[path]) for path, w in chosen.items()}
        _check_leaves(chosen, shapes, tile)
        _check_chip(chosen, shapes, state)
        new: dict[Path, Any] = {}
        for path, w in chosen.items():
            dense, chip = ask.dense(w), state.fixed[path]
            matrix = to_matrix(dense.astype(jnp.float32), found[path])
            if not device.acts_in_product:
                back = deploy(matrix, chip, device.scheme, tile, columns)
                value = from_matrix(back, dense.shape, found[path])
                new[path] = value.astype(dense.dtype)
                continue
            form = program if "wire" in numbers else difference
            pair, scale = form(matrix, chip, device.scheme, tile, columns)
            if "wire" not in numbers:
                pair = pair[..., None, :, :]
            own = _tree.leaf_key(key, path) if noisy and key is not None else None
            new[path] = _operator(
                dense,
                pair,
                scale,
                _known(chip, numbers),
                own,
                found[path],
                tile,
                device,
            )
        return _tree.replace("crossbar", params, new)

    return Transform(init, apply)


def device_numbers(device: Device) -> dict[str, Array]:
    """The numbers that programming and products need, as arrays by name."""
    named: dict[str, Any] = {
        "g_min": device.g_min,
        "g_max": device.g_max,
        "levels": device.levels,
        "read": device.read,
        "wire": device.wire,
    }
    if isinstance(device.write, Polynomial):
        named["coefficients"] = device.write.coefficients
        named["reference"] = device.write.reference
    for name, converter in (("dac", device.dac), ("adc", device.adc)):
        if converter is not None:
            named |= _converter(name, converter)
    present = {n: v for n, v in named.items() if v is not None}
    return {n: jnp.asarray(v, jnp.float32) for n, v in present.items()}


def _converter(name: str, converter: Converter) -> dict[str, Any]:
    numbers = {f"{name}_bits": converter.bits, f"{name}_limit": converter.limit}
    return numbers | ({"adc_noise": converter.noise} if name == "adc" else {})


def _check_leaves(
    chosen: Mapping[Path, Any],
    shapes: Mapping[Path, tuple[int, ...]],
    tile: int | None,
) -> None:
    """Refuse leaves that are not floating or smaller than a tile.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        rows = shapes[path][-2]
        if not is_floating(leaf):
            bad.append(f"{_tree.describe(path, leaf)}: not floating")
        elif tile is not None and tile > rows:
            bad.append(f"{_tree.describe(path, leaf)}: {rows} rows, tile={tile}")
    if bad:
        raise ValueError(
            f"crossbar: cannot lay {'; '.join(bad)} on a crossbar. Pass a tile of at "
            "most that many rows (None: one tile for each leaf), or leave these out "
            "with select=."
        )


def _check_chip(
    chosen: Mapping[Path, Any],
    shapes: Mapping[Path, tuple[int, ...]],
    state: State,
) -> None:
    """Refuse a chip that was sampled for another tree, and leaves without a value.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad, formless = [], []
    for path, leaf in chosen.items():
        *stack, rows, cols = shapes[path]
        cells, have = (*stack, 2, rows, cols), state.fixed[path]["gain"].shape
        if tuple(have) != cells:
            bad.append(f"'{path}': expected cells {cells}, got {tuple(have)}")
        if isinstance(leaf, Operator) and not leaf.has_dense:
            formless.append(f"'{path}' ({type(leaf).__name__})")
    if bad:
        raise ValueError(
            f"crossbar: the chip was sampled for another tree: {'; '.join(bad)}. Pass "
            "the tree that init saw; call apply inside jax.vmap or lrk.map_tasks for "
            "many chips."
        )
    if formless:
        raise ValueError(
            f"crossbar: no weight to program at {', '.join(formless)}, which acts "
            "inside the product. Put the crossbar before it in the chain, or leave it "
            "out."
        )


def _known(chip: Mapping[str, Array], numbers: Mapping[str, Any]) -> dict[str, Array]:
    """Of a chip that knows more effects in the product, those of this device."""
    return {n: x for n, x in chip.items() if n not in NUMBERS or n in numbers}


def _operator(
    dense: Array,
    pair: Array,
    scale: Array,
    chip: Mapping[str, Array],
    key: Array | None,
    axes: Axes,
    tile: int | None,
    device: Device,
) -> Crossbar:
    """The operator of one leaf."""
    numbers = {n: chip[n] for n in NUMBERS if n in chip}
    if "read" in chip:
        # The operator takes both cells to be noisy; a calibrated reference is not.
        share = 0.5**0.5 if device.scheme.reference else 1.0
        numbers["read"] = share * chip["read"] * chip["g_max"]
    unit = (chip["g_max"] - chip["g_min"]) / device.scheme.gain
    return Crossbar(
        pair,
        scale,
        unit,
        numbers,
        key,
        shape=dense.shape,
        axes=axes,
        tile=tile,
        dtype=dense.dtype,
    )
