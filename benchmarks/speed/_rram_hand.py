"""The same chip model written by hand for these two networks: what lowrank is held to.

Each weight keeps three numbers: the slopes of its plus and minus cell and a constant,
so that a deployed weight is `s (slope(sign of x) round(x) + constant)`. The gradient is
that slope, kept from the forward pass. Only what is timed here is supported: pairs of
cells on one side, no other write noise, no clipping at 0 uS.
"""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from benchmarks.speed._rram_nets import DIMENSIONS, NOISE, Noise, Problem

Cells = tuple[jax.Array, jax.Array, jax.Array]

G_MIN, G_MAX = 10.0, 100.0  # uS, as `lrk.rram.Device`'s defaults


class Numbers(NamedTuple):
    """The device's numbers, so that they can be swept.

    Attributes:
        write: Lognormal write noise.
        p_lrs: Share of cells stuck at low resistance.
        p_hrs: Share of cells stuck at high resistance.
    """

    write: Any = NOISE.write
    p_lrs: Any = NOISE.p_lrs
    p_hrs: Any = NOISE.p_hrs


def sample(key: jax.Array, shape: tuple[int, ...], numbers: Numbers) -> Cells:
    """Draws the cells of one weight."""
    faults, noise = jax.random.split(key)
    pair = (2, *shape)
    u = jax.random.uniform(faults, (math.prod(pair),)).reshape(pair)
    gain = jnp.exp(numbers.write * _normal(noise, pair))
    low, high = u >= 1.0 - numbers.p_lrs, u < numbers.p_hrs
    gain = jnp.where(low | high, 0.0, gain)
    offset = jnp.where(low, G_MAX, jnp.where(high, G_MIN, 0.0))
    return condensed(gain, offset)


def condensed(gain: jax.Array, offset: jax.Array) -> Cells:
    """Three numbers for each weight from gains and offsets of its two cells."""
    constant = G_MIN * (gain[0] - gain[1]) + offset[0] - offset[1]
    return gain[0], gain[1], constant / (G_MAX - G_MIN)


@jax.custom_vjp
def deploy(w: jax.Array, cells: Cells, scale: jax.Array, steps: Any) -> jax.Array:
    """A weight `[..., cols]` as the chip holds it, rounded to levels."""
    return _deploy(w, cells, scale, steps)[0]


def _deploy(
    w: jax.Array, cells: Cells, scale: jax.Array, steps: Any
) -> tuple[jax.Array, jax.Array]:
    plus, minus, constant = cells
    slope = jnp.where(w > 0, plus, minus)
    rounded = jnp.round(w * (steps / scale)) / steps
    return scale * (slope * rounded + constant), slope


def _backward(slope: jax.Array, g: jax.Array) -> tuple[Any, ...]:
    return g * slope, None, None, None


deploy.defvjp(_deploy, _backward)


def spans(rows: int, tile: int | None) -> list[tuple[int, int]]:
    """First and last row of every tile."""
    tile = rows if tile is None else tile
    return [(i, min(i + tile, rows)) for i in range(0, rows, tile)]


def _scale(w: jax.Array) -> jax.Array:
    """The largest magnitude of each column."""
    axes = tuple(range(w.ndim - 1))
    return lax.stop_gradient(jnp.abs(w)).max(axes, keepdims=True)


def _normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """The same numbers as `jax.random.normal`, drawn flat: twice as fast on a CPU."""
    return jax.random.normal(key, (math.prod(shape),)).reshape(shape)


class Chip(NamedTuple):
    """A network's products through a chip.

    Attributes:
        params: The network's parameters.
        cells: The cells of each layer; None: ideal ones.
        tile: Rows of a tile, or None.
        noise: The noise set.
        key: For fresh read noise; None: without.
        converters: Whether inputs and sums are converted.
    """

    params: Mapping[str, Mapping[str, Any]]
    cells: Mapping[str, Cells] | None
    tile: int | None
    noise: Noise
    key: Any
    converters: bool

    def dense(self, name: str, x: jax.Array) -> jax.Array:
        """`x @ W`, tile by tile."""
        w, total = self.params[name]["w"], jnp.zeros(())
        x = self._dac(x)
        for i, (start, end) in enumerate(spans(w.shape[0], self.tile)):
            part, scale = self._weight(name, start, end)
            rows = x[:, start:end]
            y = rows @ part
            if self.key is not None:
                energy = (rows * rows).sum(-1, keepdims=True)
                y = y + self._drawn(name, i, y.shape, energy) * scale
            y = self._adc(y, scale)
            total = total + y if i else y
        return total

    def conv(self, name: str, x: jax.Array, padding: str) -> jax.Array:
        """The convolution; a tile holds the whole kernel."""
        w = self.params[name]["w"]
        x = self._dac(x)
        part, scale = self._weight(name, 0, w.shape[0])
        options: dict[str, Any] = {"dimension_numbers": DIMENSIONS}
        y = lax.conv_general_dilated(x, part, (1, 1), padding, **options)
        scale = scale.reshape(1, 1, 1, -1)
        if self.key is not None:
            energy = lax.stop_gradient(x * x).sum(-1, keepdims=True)
            window = (1, *w.shape[:2], 1)
            energy = lax.reduce_window(
                energy, 0.0, lax.add, window, (1, 1, 1, 1), padding
            )
            y = y + self._drawn(name, 0, y.shape, energy) * scale
        return self._adc(y, scale)

    def _weight(self, name: str, start: int, end: int) -> tuple[Any, jax.Array]:
        w = self.params[name]["w"][start:end]
        scale = _scale(w)
        if self.cells is None:
            return w, scale
        cells = tuple(cell[start:end] for cell in self.cells[name])
        return deploy(w, cells, scale, self.noise.levels - 1.0), scale

    def _drawn(
        self, name: str, tile: int, shape: tuple[int, ...], energy: jax.Array
    ) -> jax.Array:
        """Read noise of a product, of which nothing is differentiated."""
        layer = list(self.params).index(name)
        key = jax.random.fold_in(self.key, 16 * layer + tile)
        norm = lax.stop_gradient(jnp.sqrt(energy))
        return self.noise.weight * norm * _normal(key, shape)

    def _dac(self, x: jax.Array) -> jax.Array:
        limit = self.noise.input_limit
        return _converted(x, limit, self.noise.steps) if self.converters else x

    def _adc(self, y: jax.Array, scale: jax.Array) -> jax.Array:
        limit = self.noise.output_limit * self.noise.input_limit * scale
        return _converted(y, limit, self.noise.steps) if self.converters else y


def _converted(x: jax.Array, limit: Any, steps: int) -> jax.Array:
    """Clipped and rounded, straight through the rounding."""
    clipped = jnp.clip(x, -limit, limit)
    unit = limit / steps
    rounded = jnp.round(clipped / unit) * unit
    return clipped + lax.stop_gradient(rounded - clipped)


def cells_of(params: Any, key: jax.Array, numbers: Numbers) -> dict[str, Cells]:
    """Draws a chip for a network."""
    found = {}
    for i, (name, layer) in enumerate(params.items()):
        shape = layer["w"].shape
        found[name] = sample(jax.random.fold_in(key, i), shape, numbers)
    return found


def from_lowrank(problem: Problem, fixed: Mapping[str, Any]) -> dict[str, Cells]:
    """The cells of a chip that lowrank sampled, so that both deploy the same one."""
    found = {}
    for name, layer in problem.params.items():
        own = fixed[f"{name}/w"]
        gain, offset = np.asarray(own["gain"]), np.asarray(own["offset"])
        shape = (2, *layer["w"].shape)
        found[name] = condensed(
            jnp.asarray(gain.reshape(shape)), jnp.asarray(offset.reshape(shape))
        )
    return found
