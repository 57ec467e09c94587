"""A sampled chip: what is wrong with each cell, whatever is programmed into it."""

import zlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int8

from lowrank.linalg._draw import flat_normal, flat_uniform
from lowrank.rram._device import Device, check_parts
from lowrank.rram._effects import Clusters, Polynomial
from lowrank.rram._program import check_tile

OK, LRS, HRS, OPEN = 0, 1, 2, 3
"""Codes of a cell: healthy, stuck at low or high resistance, on an open line."""

Cells = Float[Array, "*stack pair rows cols"]
Codes = Int8[Array, "*stack pair rows cols"]


def sample(
    key: Array, shape: tuple[int, ...], device: Device, tile: int | None = None
) -> dict[str, Array]:
    """Draw the cells of one weight, seen as `[*stack, rows, cols]`.

    The draws depend on the key alone, not on the precision that is enabled: with one
    key, raising a rate only adds faults, spreads scale the same deviations, and a later
    time ages the same cells.

    Args:
        key: A random key.
        shape: `(*stack, rows, cols)`, of the weight.
        device: The device.
        tile: Rows of a tile: each has bit lines of its own. None: one tile.

    Returns:
        Arrays of shape `[*stack, 2, rows, cols]`, plus cells first: `code` (int8: 0
        healthy, 1 stuck at low resistance, 2 at high, 3 open), `gain` and `offset`
        (float32): a cell asked for `G` has `gain G + offset` uS, so a stuck one has a
        gain of 0 and its conductance as offset. With additive deviations also `shift`:
        it has `max(gain G + shift, 0) + offset`. With `Polynomial` noise also `theta`,
        a standard normal draw, which acts on `G` first.

    Raises:
        TypeError: If `device` is no `Device` or has parts of other kinds, or `tile` is
            no int.
        ValueError: If the shape has fewer than two axes, a number of the device is an
            array, or `tile` is not from 1 to the number of rows.

    Example:
        >>> chip = lrk.rram.sample(
        ...     jax.random.key(0), (3, 4), lrk.rram.Device(p_lrs=1.0, g_max=50.0)
        ... )
        >>> chip["code"].shape, float(chip["gain"].max()), float(chip["offset"].min())
        ((2, 3, 4), 0.0, 50.0)

    References:
        Order of effects: programming, ageing, faults last, so that stuck cells have
        neither noise nor drift.
    """
    check_parts("sample", device)
    if len(shape) < 2:
        raise ValueError(f"sample: expected (*stack, rows, cols), got {shape}.")
    check_tile("sample", tile, shape[-2])
    # A calibrated reference has ideal cells, which need no draw.
    cells = (*shape[:-2], 1 if device.scheme.reference else 2, *shape[-2:])
    code = _codes(key, cells, device)
    cut, dead = _open_lines(key, cells, device, tile)
    for line in (cut, dead):
        code = code if line is None else jnp.where(line, jnp.int8(OPEN), code)
    gain, shift, theta = _deviations(key, cells, device)
    healthy = code == OK
    chip = {
        "code": code,
        "gain": jnp.where(healthy, gain, 0.0),
        "offset": jnp.where(healthy, 0.0, _stuck(key, code, device)),
    }
    if shift is not None:
        chip["shift"] = jnp.where(healthy, shift, 0.0)
    if theta is not None:
        chip["theta"] = theta
    return _calibrated(chip, cut) if device.scheme.reference else chip


def _own(key: Array, name: str) -> Array:
    """A key for each kind of draw, so that no effect moves another's numbers."""
    return jax.random.fold_in(key, np.uint32(zlib.crc32(name.encode())))


def _codes(key: Array, cells: tuple[int, ...], device: Device) -> Codes:
    """Which cells are stuck. Rates enter from both ends of one uniform number."""
    code = jnp.zeros(cells, jnp.int8)
    if not (_never(device.p_lrs) and _never(device.p_hrs)):
        u = _uniform(_own(key, "fault"), cells, device.clusters)
        code = jnp.where(u < device.p_hrs, jnp.int8(HRS), code)
        healthy = 1.0 - jnp.asarray(device.p_lrs, jnp.float32)
        code = jnp.where(u >= healthy, jnp.int8(LRS), code)
    return code


def _open_lines(
    key: Array, cells: tuple[int, ...], device: Device, tile: int | None
) -> tuple[Array | None, Array | None]:
    """Open word lines and open bit lines, to be broadcast; None where there are none.

    A word line drives both cells of its weights. A bit line ends with its tile.
    """
    *stack, pair, rows, cols = cells
    size = rows if tile is None else tile
    rates = {"row": device.p_row, "column": device.p_column}
    shapes = {
        "row": (*stack, 1, rows, 1),
        "column": (*stack, pair, -(-rows // size), cols),
    }
    cut, dead = (
        None
        if _never(rate)
        else jax.random.uniform(_own(key, n), shapes[n], jnp.float32) < rate
        for n, rate in rates.items()
    )
    if dead is not None and dead.shape[-2] > 1:
        dead = jnp.repeat(dead, size, axis=-2)[..., :rows, :]
    return cut, dead


def _never(rate: Any) -> bool:
    """Whether a rate is known to be zero, so that nothing needs to be drawn."""
    return isinstance(rate, (int, float)) and rate == 0


def _uniform(
    key: Array, cells: tuple[int, ...], clusters: Clusters | None
) -> Float[Array, "*cells"]:
    """A uniform number for each cell; neighbours depend on each other in clusters."""
    if clusters is None:
        return flat_uniform(key, cells)
    *stack, pair, rows, cols = cells
    plane = (*stack, rows, pair * cols)  # the two columns of a weight lie side by side
    white, rough = jax.random.normal(key, (2, *plane), jnp.float32)
    share = jnp.asarray(clusters.share, jnp.float32)
    z = jnp.sqrt(share) * _smooth(white, clusters.length)
    z = z + jnp.sqrt(1.0 - share) * rough
    u = jax.scipy.special.ndtr(z).reshape(*stack, rows, cols, pair)
    u = jnp.minimum(u, 1.0 - 2.0**-24)  # as of a uniform draw: never 1
    return jnp.moveaxis(u, -1, -3)


def _smooth(
    white: Float[Array, "*stack n m"], length: Any
) -> Float[Array, "*stack n m"]:
    """White noise smoothed by a Gaussian of some cells, of variance 1 everywhere."""
    n, m = white.shape[-2:]
    rows, cols = np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(m)[None, :]
    squared = jnp.asarray(rows**2 + cols**2, jnp.float32)
    transfer = jnp.exp(-2.0 * (jnp.pi * length) ** 2 * squared)
    # The mean of |transfer|^2 over all frequencies is the variance; those between the
    # ends of the half spectrum stand for two.
    twice = np.full(cols.shape, 2.0, np.float32)
    twice[:, 0] = 1.0
    if m % 2 == 0:
        twice[:, -1] = 1.0
    variance = (transfer**2 * twice).sum() / (n * m)
    field = jnp.fft.irfft2(jnp.fft.rfft2(white) * transfer, s=(n, m))
    return field / jnp.sqrt(variance)


def _deviations(
    key: Array, cells: tuple[int, ...], device: Device
) -> tuple[Cells, Cells | None, Cells | None]:
    """`(gain, shift, theta)` of healthy cells, after programming and ageing."""
    gain, shift, theta = jnp.ones(cells, jnp.float32), None, None
    if device.write is not None:
        drawn = flat_normal(_own(key, "write"), cells)
        if isinstance(device.write, Polynomial):
            theta = drawn
        else:
            gain, shift = device.write.linear(drawn, device.g_max)
    if device.drift is not None:
        phi = flat_normal(_own(key, "drift"), cells)
        left = device.drift.gain(phi, device.time)
        gain, shift = gain * left, None if shift is None else shift * left
    if device.relaxation is not None:
        phi = flat_normal(_own(key, "relaxation"), cells)
        moved = device.relaxation.offset(phi, device.time)
        shift = moved if shift is None else shift + moved
    return gain, shift, theta


def _stuck(key: Array, code: Codes, device: Device) -> Cells:
    """Conductance of stuck cells in uS; 0 on open lines."""
    lrs = device.g_max if device.g_lrs is None else device.g_lrs
    hrs = device.g_min if device.g_hrs is None else device.g_hrs
    low = _level(_own(key, "lrs"), code.shape, lrs)
    high = _level(_own(key, "hrs"), code.shape, hrs)
    stuck = jnp.where(code == LRS, low, high)
    return jnp.where(code == OPEN, 0.0, stuck).astype(jnp.float32)


def _level(key: Array, shape: tuple[int, ...], value: Any) -> Any:
    """One conductance, or one for each cell from a range."""
    if not isinstance(value, (tuple, list)):
        return value
    u = jax.random.uniform(key, shape, jnp.float32)
    return value[0] + (value[1] - value[0]) * u


def _calibrated(chip: dict[str, Array], cut: Array | None) -> dict[str, Array]:
    """The same chip with ideal cells in the place of the minus cells.

    An open word line, `cut`, drives them as little as the others.
    """

    def both(name: str, x: Array) -> Array:
        ideal = jnp.full_like(x, 1 if name == "gain" else 0)
        if cut is not None and name in ("code", "gain"):
            off = jnp.asarray(OPEN if name == "code" else 0, x.dtype)
            ideal = jnp.where(cut, off, ideal)
        return jnp.concatenate([x, ideal], axis=-3)

    return {name: both(name, x) for name, x in chip.items()}
