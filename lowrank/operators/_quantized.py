"""A frozen weight in few bits, formed anew wherever it multiplies."""

from typing import Any, ClassVar

import jax
from jaxtyping import Array

from lowrank import _compat
from lowrank._axes import Axes
from lowrank.linalg import blocks_of, coarse_count, from_coarse, from_int8, from_nf4
from lowrank.operators._held import Held
from lowrank.operators._rows import Dims, from_matrix, matrix_shape


class Quantized(Held):
    """A weight that stands for `scale * level(code)`, block by block.

    A block is a run of rows of one column; each has a scale. The weight is formed in
    its dtype for each product and is not kept for the backward pass, which forms it
    again: what stays in memory are the codes.

    Args:
        code: `[*stack, rows, cols]`, int8: multiples of the scale; or uint8 `[*stack,
            rows / 2, cols]`: two levels of NF4 a byte, rows padded to whole blocks.
        scale: `[*stack, blocks, cols]`: float32; or 8-bit floats, if `coarse` is given.
        coarse: Scale of every 256 scales, `[*stack, groups]`; None: there is none.
        middle: Mean of the scales, `[*stack]`; None with `coarse`.
        block: Rows of a block; even for NF4.
        shape: Shape of the weight in its own layout.
        axes: Which of its axes are stacks, rows and columns.
        dtype: Dtype of the weight. The arithmetic is in float32.

    Attributes:
        sizes: Shape of the weight.
        kind: Dtype of the weight.

    Returns:
        An operator: a pytree node with children `code, scale, coarse, middle`. Its
        dense form is the weight that products see; it counts as frozen. It declines
        look-ups (an embedding table) and slices of rows or columns.

    Raises:
        ValueError: If the parts do not fit each other.

    Example:
        >>> from lowrank.operators import Quantized
        >>> code = jnp.asarray([[127, 0], [-127, 127]], jnp.int8)
        >>> op = Quantized(code, jnp.full((1, 2), 0.5 / 127), block=2, shape=(2, 2),
        ...     axes=lrk.Axes((), (0,), (1,)), dtype=jnp.float32)
        >>> lrk.lift(jnp.matmul)(jnp.ones((1, 2)), op).tolist()
        [[0.0, 0.5]]

    References:
        Dettmers et al., QLoRA, 2023, arXiv:2305.14314, section 3: 4-bit NormalFloat,
        double quantisation.
    """

    fields = ("code", "scale", "coarse", "middle")
    static = ("block", "sizes", "axes", "kind")
    base_fields = fields
    own_trained = False
    held: ClassVar[dict[str, int]] = {"code": 2, "scale": 2, "coarse": 1, "middle": 0}

    code: Array
    scale: Array
    coarse: Array | None
    middle: Array | None
    block: int

    def __init__(
        self,
        code: Array,
        scale: Array,
        coarse: Array | None = None,
        middle: Array | None = None,
        *,
        block: int,
        shape: Dims,
        axes: Axes,
        dtype: Any,
    ) -> None:
        values = {
            "code": code,
            "scale": scale,
            "coarse": coarse,
            "middle": middle,
            "block": block,
            "sizes": tuple(shape),
            "axes": Axes(*map(tuple, axes)),
            "kind": jax.numpy.dtype(dtype),
        }
        for name, value in values.items():
            object.__setattr__(self, name, value)
        if (reason := self.mismatch()) is not None:
            raise ValueError(f"Quantized: {reason}.")

    @property
    def packed(self) -> bool:
        """Whether a byte holds two rows."""
        return self.code.dtype == jax.numpy.uint8

    @property
    def aval(self) -> Any:
        """Abstract value of the weight, varying as the scales vary."""
        own = jax.ShapeDtypeStruct(self.sizes, self.kind)
        return _compat.join_varying(own, (self.code, self.scale))

    def mismatch(self) -> str | None:
        """Why the parts do not fit each other, or None."""
        if (reason := self.mislabelled()) is not None:
            return reason
        if self.block < 1 or (self.packed and self.block % 2):
            return f"expected a block of at least 1 row, even for NF4, got {self.block}"
        *stack, rows, cols = matrix_shape(self, self.axes)
        blocks = blocks_of(rows, self.block)
        held = blocks * self.block // 2 if self.packed else rows
        wanted: dict[str, Dims] = {
            "code": (*stack, held, cols),
            "scale": (*stack, blocks, cols),
        }
        if self.coarse is not None:
            wanted["coarse"] = (*stack, coarse_count(blocks, cols))
            wanted["middle"] = tuple(stack)
        got = {name: getattr(self, name) for name in wanted}
        bad = [
            f"{name} {None if x is None else tuple(x.shape)}, expected {wanted[name]}"
            for name, x in got.items()
            if x is None or tuple(x.shape) != wanted[name]
        ]
        if not bad:
            return None
        return f"a weight of {self.sizes} does not fit {'; '.join(bad)}"

    def dense(self) -> Array:
        """The weight, in its dtype."""
        scale = self.scale
        if self.coarse is not None and self.middle is not None:
            scale = from_coarse(scale, self.coarse, self.middle)
        if self.packed:
            rows = matrix_shape(self, self.axes)[-2]
            matrix = from_nf4(self.code, scale, self.block, rows)
        else:
            matrix = from_int8(self.code, scale, self.block)
        return from_matrix(matrix, self.sizes, self.axes).astype(self.kind)

    def contract(self, x: Array, spec: Any) -> Any:
        """The product with the weight, which is formed for it."""
        return _forgetful(spec)(self, x)

    def conv(self, x: Array, spec: Any) -> Any:
        """The convolution with the weight, which is formed for it."""
        return _forgetful(spec)(self, x)

    def scaled(self, factor: Any) -> Any:
        """Another scale."""
        if self.coarse is None or self.middle is None:
            return self.replace(scale=self.scale * _like(factor, self.scale))
        own = {name: getattr(self, name) for name in ("coarse", "middle")}
        return self.replace(**{n: x * _like(factor, x) for n, x in own.items()})


def _like(factor: Any, x: Array) -> Array:
    return jax.numpy.asarray(factor, x.dtype)


def _forgetful(spec: Any) -> Any:
    """`spec(x, W)`; the backward pass forms the weight again from its codes."""
    return jax.checkpoint(lambda op, x: spec(x, op.dense()))
