"""A chip with a measured defect map in the place of its sampled faults."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from lowrank import _compat, _tree
from lowrank._base import Path, PyTree, State
from lowrank.rram._assign import chips_of, is_chip
from lowrank.rram._chip import HRS, LRS, OK, OPEN

Arrays = Mapping[Path, Any]


def with_faults(
    state: State, codes: Arrays, conductances: Arrays | None = None
) -> State:
    """Put a measured defect map (fault mask) in the place of a chip's sampled faults.

    Every other property of the cells stays: their deviations, and the numbers of the
    device. So one map can be met with write noise, levels or converters of any kind,
    and by everything that takes the state of a chip.

    Args:
        state: The state of `crossbar`, or that of a chain that holds it.
        codes: By path, integers `[*stack, 2, rows, cols]`, plus cells first: `OK`,
            `LRS`, `HRS` or `OPEN`. Leaves that it does not name keep their cells.
        conductances: By path, measured conductances in uS, of the shape of the codes,
            at least 0: read where a cell is stuck, and nowhere else. None, or no such
            path: cells stuck at low resistance have `g_max`, at high `g_min`. Open
            cells have 0 uS.

    Returns:
        The same state with the `code`, `gain`, `offset` and `shift` of these leaves
        replaced. May be called under `jit` and `vmap`, where shapes alone are checked.

    Raises:
        TypeError: If codes are no integers.
        ValueError: If the state holds no chip, or has been stacked; if a path is not
            on the chip, a shape is another, a code is none of the four, or the
            conductance of a stuck cell is negative or not finite; if a cell that was
            sampled as faulty is healthy in the map, and others have deviations.

    Example:
        >>> device = lrk.rram.Device(g_min=10.0, g_max=110.0)
        >>> tx, params = lrk.rram.crossbar(device), {"w": jnp.asarray([[1.0], [0.5]])}
        >>> chip = tx.init(jax.random.key(0), params)
        >>> codes = jnp.zeros((2, 2, 1), int).at[1, 0].set(lrk.rram.LRS)
        >>> known = lrk.rram.with_faults(chip, {"w": codes})
        >>> tx.apply(params, known)["w"].round(3).tolist()  # 1 - 1, and 0.5
        [[0.0], [0.5]]
        >>> known = lrk.rram.with_faults(chip, {"w": codes}, {"w": 60.0 + 0.0 * codes})
        >>> tx.apply(params, known)["w"].round(3).tolist()
        [[0.5], [0.5]]

    Notes:
        Sample the chip from a device without faults: `sample` keeps no deviation of a
        cell that is stuck, so one that the map calls healthy would be ideal among
        others that are not. That is refused where the numbers are known, and a gain of
        1 under `jit`.
        With `Offset` the minus cells are the reference, taken as calibrated: `OK`.

    References:
        Chen et al., DATE 2017, and Song et al., ITT-RNA, 2020: a map for each chip,
        known from tests of its cells.
    """
    chips, given = chips_of("with_faults", state), conductances or {}
    _check_paths(chips, codes, given)
    _check_shapes(chips, codes, given)
    _check_values(chips, codes, given)
    new = {path: _mapped(chips[path], codes[path], given.get(path)) for path in codes}
    return state._replace(fixed=_replaced(state.fixed, new))


def _mapped(chip: Mapping[str, Array], code: Any, given: Any) -> dict[str, Array]:
    """The cells of one leaf with other faults."""
    code = jnp.asarray(code).astype(jnp.int8)
    low, high = chip["g_max"], chip["g_min"]
    if given is not None:
        low = high = jnp.asarray(given, jnp.float32)
    stuck = jnp.where(code == LRS, low, jnp.where(code == HRS, high, 0.0))
    healthy, drawn = code == OK, chip["code"] == OK
    new = {
        "code": code,
        "gain": jnp.where(healthy, jnp.where(drawn, chip["gain"], 1.0), 0.0),
        "offset": jnp.where(healthy, 0.0, stuck).astype(jnp.float32),
    }
    if "shift" in chip:
        new["shift"] = jnp.where(healthy, chip["shift"], 0.0)
    return {**chip, **new}


def _replaced(part: PyTree, new: Mapping[Path, Any]) -> PyTree:
    """The fixed half of a state, or of a chain's, with the chips of some leaves new."""
    if not isinstance(part, Mapping):
        return tuple(_replaced(member, new) for member in part)
    return {
        path: new[path] if path in new and is_chip(leaf) else leaf
        for path, leaf in part.items()
    }


def _check_paths(chips: Arrays, codes: Arrays, given: Arrays) -> None:
    """Refuse maps of leaves that are on no chip.

    Raises:
        ValueError: If there are any.
    """
    for what, paths, known in (
        ("codes", codes, chips),
        ("conductances", given, codes),
    ):
        if missing := [path for path in paths if path not in known]:
            whole = "the chip lacks" if known is chips else "the codes lack"
            near = _tree.quoted(_tree.nearest(missing, known))
            raise ValueError(
                f"with_faults: {what} has {_tree.quoted(missing)}, which {whole}; the "
                f"nearest are {near}."
            )


def _check_shapes(chips: Mapping[Path, Any], codes: Arrays, given: Arrays) -> None:
    """Refuse arrays of another shape than the cells, and codes that are no integers.

    Raises:
        TypeError: If codes are no integers.
        ValueError: If a shape is another, or the state is that of many chips.
    """
    bad = []
    for path in codes:
        want = tuple(chips[path]["gain"].shape)
        if np.ndim(chips[path]["g_max"]):
            many = np.shape(chips[path]["g_max"])
            raise ValueError(
                f"with_faults: '{path}' has cells of many chips, {many}. Call it "
                "inside jax.vmap or lrk.map_tasks."
            )
        maps = {"codes": codes[path], "conductances": given.get(path)}
        bad += [
            f"{what} of '{path}': expected {want}, got {np.shape(value)}"
            for what, value in maps.items()
            if value is not None and np.shape(value) != want
        ]
    if bad:
        raise ValueError(
            f"with_faults: {'; '.join(bad)}. A map has the plus and the minus cell of "
            "each weight, [*stack, 2, rows, cols], as `code` in the state of the chip."
        )
    kinds = {path: jnp.result_type(code) for path, code in codes.items()}
    if wrong := [
        f"'{p}' of {k}" for p, k in kinds.items() if not jnp.issubdtype(k, jnp.integer)
    ]:
        raise TypeError(
            f"with_faults: codes must be integers, got {', '.join(wrong)}. They are "
            "lrk.rram.OK, LRS, HRS and OPEN."
        )


def _check_values(chips: Mapping[Path, Any], codes: Arrays, given: Arrays) -> None:
    """Refuse numbers that no cell has, where they are known.

    Raises:
        ValueError: If there are any; all leaves are named.
    """
    bad, ideal = [], []
    for path in codes:
        if not _compat.is_known(codes[path]):
            continue
        code = np.asarray(codes[path])
        if (unknown := np.setdiff1d(code, (OK, LRS, HRS, OPEN))).size:
            bad.append(f"codes {', '.join(map(str, unknown))} of '{path}'")
        if path in given and _compat.is_known(given[path]):
            g = np.asarray(given[path])[(code == LRS) | (code == HRS)]
            wrong = g[~(np.isfinite(g) & (g >= 0))]
            bad += (
                [f"{wrong[0]:g} uS of a stuck cell of '{path}'"] if wrong.size else []
            )
        if _compat.is_known(chips[path]["gain"]):
            ideal += [path] if _heals(chips[path], code) else []
    if bad:
        raise ValueError(
            f"with_faults: got {'; '.join(bad)}. Codes are 0 (healthy), 1 and 2 (stuck "
            "at low and at high resistance) and 3 (open); conductances are at least 0."
        )
    if ideal:
        raise ValueError(
            f"with_faults: cells of {_tree.quoted(ideal)} were sampled as faulty, so "
            "have no deviation, and are healthy in the map. Sample the chip from a "
            "device without faults: device.replace(p_lrs=0.0, p_hrs=0.0)."
        )


def _heals(chip: Mapping[str, Any], code: np.ndarray) -> bool:
    """Whether faulty cells become healthy beside cells that have deviations."""
    drawn = np.asarray(chip["code"]) == OK
    varied = "shift" in chip or bool((np.asarray(chip["gain"])[drawn] != 1).any())
    return varied and bool((~drawn & (code == OK)).any())
