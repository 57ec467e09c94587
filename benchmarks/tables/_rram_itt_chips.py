"""Chips for one net: sampled with spare rows, and seated under a net's weights.

Every method meets the same chips: each is sampled with its spare rows, which a method
without an assignment leaves unused. Moving weights to other rows and turning the sign
of a column is moving the map's rows and swapping the two cells of that column's pairs;
it is done once, to the map, and costs no step anything. A test holds it against the
transforms `permute` and `flip`.
"""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from lowrank import rram

G_MIN, G_MAX, LEVELS = 10.0, 100.0, 64
SCHEME = rram.OneSided()
Path = str


class Numbers(NamedTuple):
    """What differs between points: traced, so that a sweep compiles once.

    Attributes:
        lrs: Share of cells stuck at low resistance.
        hrs: Share of cells stuck at high resistance.
        sigma: Spread of the lognormal write noise.
    """

    lrs: Any
    hrs: Any
    sigma: Any


def device(numbers: Numbers) -> rram.Device:
    """The device of a point."""
    return rram.Device(
        g_min=G_MIN,
        g_max=G_MAX,
        levels=LEVELS,
        p_lrs=numbers.lrs,
        p_hrs=numbers.hrs,
        write=rram.Lognormal(numbers.sigma),
    )


def on_chip(path: Path, leaf: Any) -> bool:
    """Kernels sit on the chip, biases are digital."""
    del path
    return len(leaf.shape) > 1


class Layout(NamedTuple):
    """Where the kernels of a net lie.

    Attributes:
        axes: Axes of each kernel, in order of depth.
        shapes: Rows and columns of each kernel.
        spare: Rows that each crossbar has beyond those.
    """

    axes: Mapping[Path, lrk.Axes]
    shapes: Mapping[Path, tuple[int, int]]
    spare: Mapping[Path, int]

    @property
    def stages(self) -> tuple[Any, ...]:
        """A predicate for each layer, in order of depth: its kernel and its bias."""
        parts = [re.escape(path.rpartition("/")[0]) for path in self.shapes]
        return tuple(lrk.matching(f"^{part}/") for part in parts)

    def transform(self, numbers: Numbers) -> lrk.Transform:
        """The crossbar, for chips as they are seated."""
        return rram.crossbar(device(numbers), select=on_chip, axes=self.axes)

    def matrices(self, params: Any) -> dict[Path, jax.Array]:
        """The kernels as matrices: rows are inputs, columns outputs."""
        found = {}
        for keys, leaf in jax.tree_util.tree_flatten_with_path(params)[0]:
            path = jax.tree_util.keystr(keys, simple=True, separator="/")
            if path in self.shapes:
                spec = self.axes[path]
                order = (*spec.inputs, *spec.outputs)
                found[path] = jnp.transpose(leaf, order).reshape(self.shapes[path])
        return found

    def unmoved(self, chips: int) -> dict[Path, np.ndarray]:
        """The assignment that moves nothing, for some chips."""
        return {
            path: np.tile(np.arange(rows, dtype=np.int32), (chips, 1))
            for path, (rows, _) in self.shapes.items()
        }


def layout(
    params: Any, axes: Mapping[Path, lrk.Axes], spare: int, conv_spare: int = 0
) -> Layout:
    """Reads off where the kernels lie; paths sort in order of depth.

    Convolutions have `conv_spare` rows more: `rram.permute` and `rram.itt` give them
    none, as a kernel of several input axes has no axis that they could lengthen.
    """
    tx = rram.crossbar(rram.Device(), select=on_chip, axes=axes)
    chip = jax.eval_shape(tx.init, jax.random.key(0), params).fixed
    shapes = {path: tuple(chip[path]["gain"].shape[-2:]) for path in sorted(chip)}
    more = {p: spare if len(axes[p].inputs) == 1 else conv_spare for p in shapes}
    return Layout({path: axes[path] for path in shapes}, shapes, more)


def sampled(lay: Layout, numbers: Numbers, key: jax.Array) -> lrk.State:
    """A chip with its spare rows, as the transform's state over matrices."""
    tall = {
        path: jnp.zeros((rows + lay.spare[path], cols))
        for path, (rows, cols) in lay.shapes.items()
    }
    return rram.crossbar(device(numbers)).init(key, tall)


def seated(
    chip: lrk.State,
    rows: Mapping[Path, jax.Array],
    signs: Mapping[Path, jax.Array] | None = None,
) -> lrk.State:
    """The chip as the net's own rows and columns see it.

    Args:
        chip: A chip with spare rows.
        rows: For each path the row of the crossbar that each row of the weight sits on.
        signs: For each path the sign of each column; None turns none.

    Returns:
        A state for the transform of the layout: row `r` of a weight meets the cells of
        row `rows[r]`, and where a column is turned, plus and minus cells are swapped.
    """
    fixed = {}
    for path, cells in chip.fixed.items():
        own = dict(cells)
        for name, cell in cells.items():
            if cell.shape != cells["gain"].shape:  # a number of the device
                continue
            taken = jnp.take(cell, rows[path], axis=-2)
            if signs is not None:
                turned = jnp.flip(taken, axis=-3)
                taken = jnp.where(signs[path][None, None] < 0, turned, taken)
            own[name] = taken
        fixed[path] = own
    return lrk.State({}, fixed)
