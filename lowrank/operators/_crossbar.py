"""A weight that is programmed on RRAM and multiplies as its arrays do."""

import math
from collections.abc import Mapping
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._axes import Axes
from lowrank._base import Array, Operator
from lowrank.linalg import crossbar_weights, mvm, tile_count
from lowrank.operators import _dispatch as ask
from lowrank.operators._crossbar_conv import crossbar_conv
from lowrank.operators._held import Held
from lowrank.operators._rows import moved, used_as

Dims = tuple[int, ...]
NUMBERS = ("dac_bits", "dac_limit", "adc_bits", "adc_limit", "adc_noise")
NUMBERS += ("read", "wire")


class Crossbar(Held):
    """A weight that stands for `scale (G+ - G-) / unit`, with what acts in a product.

    In the order of physics: the inputs are converted (DAC), each tile of rows sums its
    currents over cells with IR drop and fresh read noise, each column of each tile is
    converted (ADC), and tiles are added. A vector is what one product sums over: a
    token, or the patch of a convolution. Effects without numbers cost nothing; without
    any, it is the product with `programmed_weight()`.

    It declines what an array of cells cannot do: sums over its columns (a tied
    embedding used backwards), look-ups, slices of rows or columns. Scales, added arrays
    and adapters around it are digital.

    Args:
        pair: Conductances in uS, `[*stack, 2, rows, cols]`: plus, then minus cells; or
            their difference, `[*stack, 1, rows, cols]`, where there is no `wire`.
        scale: Weight of one unit, `[*stack, tiles, cols]` or `[*stack, tiles, 1]`.
        unit: Difference of conductances in uS that stands for `scale`.
        numbers: Scalars of the effects that are there, by name: `dac_bits`, `dac_limit`
            (range of the inputs; by default the largest entry of each vector),
            `adc_bits`, `adc_limit` (range of a tile's sum of inputs in DAC ranges times
            weights in scales; by default its largest column), `adc_noise` (standard
            deviation in the same unit, before rounding), `read` (standard deviation of
            each cell in uS), `wire` (ohm between two cells).
        key: One random key, where there is `read` or `adc_noise`. Each product, layer
            and time step folds its own number in.
        tile: Rows of a tile; None: all.
        shape: Shape of the weight in its own layout; by default `[*stack, rows, cols]`.
        axes: Which of its axes are stacks, rows (inputs) and columns (outputs), each in
            the order in which they are flattened.
        dtype: Dtype of the weight; by default that of `pair`. The arithmetic is in
            float32 or wider.

    Attributes:
        sizes: Shape of the weight.
        kind: Dtype of the weight.

    Returns:
        An operator: a pytree node with children `pair, scale, unit, numbers, key`. It
        has no dense form. It counts as trained, because the conductances may be those
        of trained weights. Gradients reach `x`, `pair` and `scale`; they pass straight
        through rounding, and treat noise as a constant.

    Raises:
        ValueError: If the parts do not fit each other, a number is unknown or the key
            is missing.

    Example:
        >>> pair = jnp.array([[[100.0], [10.0]], [[10.0], [55.0]]])
        >>> op = lrk.operators.Crossbar(pair, jnp.ones((1, 1)), 90.0)
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[0.5]]

    References:
        Song et al., ITT-RNA, 2020, DOI 10.1109/TCAD.2020.2989373: overview figure
        (pairs of cells on two columns). Converters and output-referred read noise as in
        aihwkit's `IOParameters` and `w_noise`.
    """

    fields = ("pair", "scale", "unit", "numbers", "key")
    static = ("tile", "sizes", "axes", "kind")
    base_fields = fields
    own_dense = False
    held: ClassVar[dict[str, int]] = {"pair": 3, "scale": 2}

    pair: Array
    scale: Array
    unit: Array
    numbers: dict[str, Array]
    key: Any
    tile: int | None

    def __init__(
        self,
        pair: ArrayLike,
        scale: ArrayLike,
        unit: Any,
        numbers: Mapping[str, Any] | None = None,
        key: Any = None,
        *,
        tile: int | None = None,
        shape: Dims | None = None,
        axes: Axes | None = None,
        dtype: Any = None,
    ) -> None:
        pair, scale = jnp.asarray(pair), jnp.asarray(scale)
        depth, wide = max(pair.ndim - 3, 0), jnp.promote_types(pair.dtype, jnp.float32)
        natural = (*pair.shape[:depth], *pair.shape[depth + 1 :])
        plain = Axes(tuple(range(depth)), (depth,), (depth + 1,))
        values = {
            "pair": pair,
            "scale": scale,
            "unit": jnp.asarray(unit, wide),
            "numbers": {n: jnp.asarray(v, wide) for n, v in (numbers or {}).items()},
            "key": key,
            "tile": tile,
            "sizes": natural if shape is None else tuple(shape),
            "axes": plain if axes is None else Axes(*map(tuple, axes)),
            "kind": jnp.dtype(pair.dtype if dtype is None else dtype),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if unknown := sorted(set(self.numbers) - set(NUMBERS)):
            raise ValueError(f"Crossbar: unknown numbers {unknown}. Use {NUMBERS}.")
        if self.stochastic and key is None:
            raise ValueError("Crossbar: read or ADC noise needs key=.")
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Crossbar: {reason}.")

    # What it is.

    @property
    def stochastic(self) -> bool:
        """Whether there is noise that is fresh in each product."""
        return "read" in self.numbers or "adc_noise" in self.numbers

    @property
    def exact_grad(self) -> bool:
        """Whether nothing is rounded or drawn."""
        return not (self.stochastic or self.converts)

    @property
    def converts(self) -> bool:
        """Whether inputs or sums are converted."""
        return any(name.startswith(("dac", "adc")) for name in self.numbers)

    @property
    def aval(self) -> Any:
        """Abstract value of the weight, varying as the conductances vary."""
        own = jax.ShapeDtypeStruct(self.sizes, self.kind)
        return _compat.join_varying(own, (self.pair, self.scale))

    def mismatch(self) -> str | None:
        """Why the parts do not fit each other, or None."""
        if (reason := self.mislabelled()) is not None:
            return reason
        stack, inputs, outputs = self.axes.sizes(self.sizes)
        rows, cols = math.prod(inputs), math.prod(outputs)
        if self.tile is not None and not 1 <= self.tile <= max(rows, 1):
            return f"tile must be from 1 to the {rows} rows, got {self.tile}"
        cells, tiles = (*stack, 2, rows, cols), tile_count(rows, self.tile)
        formed = (*stack, 1, rows, cols)  # two cells on wires cannot be one
        fits = [cells] if "wire" in self.numbers else [cells, formed]
        scales = [(*stack, tiles, cols), (*stack, tiles, 1)]
        if self.pair.shape in fits and self.scale.shape in scales:
            return None
        return (
            f"conductances {tuple(self.pair.shape)} with scale "
            f"{tuple(self.scale.shape)} do not fit a weight of {self.sizes} in "
            f"tiles of {self.tile}: expected {cells} and {scales[0]} or {scales[1]}"
        )

    def programmed_weight(self) -> Array:
        """The weight that its cells stand for: no converters, no fresh noise.

        Returns:
            An array of the operator's shape and dtype. With `wire` it is what the array
            multiplies by, IR drop included.
        """
        return self.laid_out(self.scale).astype(self.kind)

    def laid_out(self, scale: Array) -> Array:
        """`scale (G+ - G-) / unit` in the layout of the weight."""
        matrix = crossbar_weights(self.pair, scale, self.unit, self.numbers, self.tile)
        order = sum(self.axes, ())
        split = matrix.reshape([self.sizes[d] for d in order])
        back = [order.index(d) for d in range(len(order))]
        return jnp.transpose(split, back)

    # Products.

    def at(self, site: int, step: Any = 0) -> Operator:
        """A key of its own for each equation and iteration."""
        return self._folded(site, step)

    def _folded(self, *numbers: Any) -> Operator:
        if not self.stochastic:
            return self
        key = self.key
        for number in numbers:
            key = jax.random.fold_in(key, number)
        return self.replace(key=key)

    def place_key(self, x: Array) -> Any:
        """The key, another one on each device that has vectors or cells of its own."""
        key = self.key
        if self.stochastic:
            seen = (_compat.varying(_compat.abstract(v)) for v in (x, self.pair))
            for axis in sorted(frozenset().union(*seen), key=str):
                key = jax.random.fold_in(key, lax.axis_index(axis))
        return key

    def multiply(self, x: Array, stack: Dims, precision: Any) -> Array:
        """`[*stack, n, rows]` to `[*stack, n, cols]`."""
        pair, scale = (self.stacked(name, stack) for name in self.held)
        options = {"tile": self.tile, "key": self.place_key(x), "precision": precision}
        return mvm(x, pair, scale, self.unit, self.numbers, **options)

    def contract(self, x: Array, spec: Any) -> Any:
        """The product, where exactly the input axes are summed."""
        xl, wl, out = spec.labels(x.ndim, self.ndim)
        axes = used_as(self.sizes, self.axes, xl, wl, out)
        if axes is None:
            return NotImplemented
        stack, inputs, outputs = ([wl[d] for d in dims] for dims in axes)
        sizes, length = axes.sizes(self.sizes), dict(zip(xl, x.shape, strict=True))
        free = [n for n in xl if n not in wl]
        count = math.prod(length[n] for n in free)
        rows = moved(x, xl, [n for n in stack if n in xl] + free + inputs)
        # Members of a stack that are not batched all see the same vectors.
        lead = [length.get(n, 1) for n in stack]
        rows = rows.reshape(*lead, count, math.prod(sizes.inputs))
        rows = jnp.broadcast_to(rows, (*sizes.stack, *rows.shape[-2:]))
        y = self.multiply(rows, sizes.stack, spec.precision)
        y = y.reshape(*sizes.stack, *(length[n] for n in free), *sizes.outputs)
        return moved(y, stack + free + outputs, out).astype(self._result(x, spec))

    def _result(self, x: Array, spec: Any) -> Any:
        return spec.preferred_element_type or ask.common_dtype(x, self)

    def conv(self, x: Array, spec: Any) -> Any:
        """The product with each patch of the input."""
        y = crossbar_conv(x, self, spec)
        return y if ask.declined(y) else y.astype(self._result(x, spec))

    # Digital, around the array.

    def scaled(self, factor: Any) -> Any:
        """Another scale of the outputs."""
        return self.replace(scale=self.scale * jnp.asarray(factor, self.scale.dtype))
