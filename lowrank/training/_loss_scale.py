"""A loss scale that finds its own size, for gradients in float16."""

import math
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank._base import Array


class Scale(NamedTuple):
    """The loss scale of an adapter, as it stands.

    Attributes:
        scale: What the loss is multiplied by, float32.
        good: Steps with finite gradients since it last changed, int32.
    """

    scale: Array
    good: Array


class LossScale(NamedTuple):
    """How the loss is scaled, so that gradients in float16 do not underflow.

    The loss is multiplied by a power of two, the gradients are divided by it. Where
    they are not finite, that step is left out and the scale goes down by `factor`;
    after `interval` finite steps in a row it goes up by it. Each adapter has a scale of
    its own.

    Args:
        initial: Where the scale starts.
        interval: Finite steps after which it grows, at least 1.
        factor: What it grows and shrinks by, above 1.
        smallest: Where it ends to shrink, above 0.
        largest: Where it ends to grow, at least `initial` and `smallest`.

    Example:
        >>> scaling = lrk.training.LossScale(initial=8.0, interval=2)
        >>> scale = scaling.start(2)
        >>> finite = jnp.asarray([True, False])
        >>> scaling.after(scaling.after(scale, finite), finite).scale.tolist()
        [16.0, 2.0]

    References:
        Micikevicius et al., Mixed Precision Training, 2017, arXiv:1710.03740: section
        on loss scaling.
    """

    initial: float = 2.0**15
    interval: int = 2000
    factor: float = 2.0
    smallest: float = 1.0
    largest: float = 2.0**24

    def start(self, number: int) -> Scale:
        """The scales of so many adapters."""
        scale = jnp.full(number, self.initial, jnp.float32)
        return Scale(scale, jnp.zeros(number, jnp.int32))

    def after(self, scale: Scale, finite: Array) -> Scale:
        """The scale after a step."""
        good = jnp.where(finite, scale.good + 1, 0)
        grown = good >= self.interval
        more = jnp.minimum(scale.scale * self.factor, self.largest)
        up = jnp.where(grown, more, scale.scale)
        down = jnp.maximum(scale.scale / self.factor, self.smallest)
        return Scale(jnp.where(finite, up, down), jnp.where(grown, 0, good))


def checked_loss_scale(who: str, given: Any) -> LossScale | None:
    """The loss scale that was asked for.

    Raises:
        TypeError: If it is none.
        ValueError: If a number is out of range.
    """
    if given is None:
        return None
    if not isinstance(given, LossScale):
        raise TypeError(
            f"{who}: loss_scale must be a LossScale or None, got {given!r}. Pass "
            "lrk.training.LossScale()."
        )
    fits = given.initial > 0 and given.interval >= 1
    fits = fits and given.factor > 1 and given.smallest > 0
    if not (fits and max(given.initial, given.smallest) <= given.largest < math.inf):
        raise ValueError(
            f"{who}: loss_scale needs initial > 0, interval >= 1, factor > 1, "
            f"smallest > 0 and a finite largest not below these, got {given}."
        )
    return given
