"""How a signed weight is laid on the conductances of a pair of cells.

`x` is a weight over its scale, in [-1, 1]; `t` is a conductance over its range,
`(G - g_min) / (g_max - g_min)`, in [0, 1]. A weight is read back as
`scale * gain * (t_plus - t_minus)`.
"""

import dataclasses
from typing import ClassVar, Protocol, runtime_checkable

import jax.numpy as jnp
from jaxtyping import Array, Float

Cells = Float[Array, "*cells"]


@runtime_checkable
class Scheme(Protocol):
    """A way to lay a weight on two cells; hashable and compared by value."""

    gain: ClassVar[float]
    reference: ClassVar[bool]

    def targets(self, x: Cells) -> tuple[Cells, Cells]:
        """Targets of the plus and the minus cell for weights in [-1, 1]."""
        ...


@dataclasses.dataclass(frozen=True)
class OneSided:
    """One cell of the pair holds the weight, the other the zero state.

    `t+ = relu(x)`, `t- = relu(-x)`. A weight of zero has both cells at `g_min`.

    Example:
        >>> [float(t) for t in lrk.rram.OneSided().targets(jnp.asarray(-0.5))]
        [0.0, 0.5]

    References:
        Song et al., ITT-RNA, 2020: overview figure; CrossSim's balanced core,
        `ONE_SIDED`.
    """

    gain: ClassVar[float] = 1.0
    reference: ClassVar[bool] = False

    def targets(self, x: Cells) -> tuple[Cells, Cells]:
        """Targets of the plus and the minus cell."""
        # Not relu: a weight of exactly zero must have a gradient, to be able to leave.
        positive = x > 0
        return jnp.where(positive, x, 0.0), jnp.where(positive, 0.0, -x)


@dataclasses.dataclass(frozen=True)
class TwoSided:
    """Both cells move, about the middle: `t = (1 +- x) / 2`.

    Example:
        >>> [float(t) for t in lrk.rram.TwoSided().targets(jnp.asarray(-0.5))]
        [0.25, 0.75]

    References:
        CrossSim's balanced core, `TWO_SIDED`.
    """

    gain: ClassVar[float] = 1.0
    reference: ClassVar[bool] = False

    def targets(self, x: Cells) -> tuple[Cells, Cells]:
        """Targets of the plus and the minus cell."""
        return 0.5 * (1.0 + x), 0.5 * (1.0 - x)


@dataclasses.dataclass(frozen=True)
class Offset:
    """One cell a weight, against a reference at the middle: `t+ = (1 + x) / 2`.

    The reference is taken to be calibrated: it has no faults and no noise. Where a word
    line is open it is not driven either. With an even number of levels none lies at the
    middle: cell and reference take the same neighbour there, so that a weight of zero
    stays zero, and the ends of the range are half a level off.

    Example:
        >>> [float(t) for t in lrk.rram.Offset().targets(jnp.asarray(-0.5))]
        [0.25, 0.5]

    References:
        aihwkit's single device map; NeuroSim's dummy column.
    """

    gain: ClassVar[float] = 2.0
    reference: ClassVar[bool] = True

    def targets(self, x: Cells) -> tuple[Cells, Cells]:
        """Targets of the cell and of the reference."""
        return 0.5 * (1.0 + x), jnp.full_like(x, 0.5)


@dataclasses.dataclass(frozen=True)
class HighZero:
    """A weight of zero has both cells at `g_max`, and one is lowered for any other.

    `t+ = 1 - relu(-x)`, `t- = 1 - relu(x)`: cells stuck at low resistance are harmless
    for small weights.

    Example:
        >>> [float(t) for t in lrk.rram.HighZero().targets(jnp.asarray(-0.5))]
        [0.5, 1.0]

    References:
        Yuan et al., ISQED 2021, as cited by later work: zero maps to both cells at
        `g_max`.
    """

    gain: ClassVar[float] = 1.0
    reference: ClassVar[bool] = False

    def targets(self, x: Cells) -> tuple[Cells, Cells]:
        """Targets of the plus and the minus cell."""
        positive = x > 0
        return jnp.where(positive, 1.0, 1.0 + x), jnp.where(positive, 1.0 - x, 1.0)
