"""Whether an adapter has room for what a data set says."""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank import _compat
from lowrank._base import Array, State
from lowrank._combine import count


class Capacity(NamedTuple):
    """Bits that an adapter may hold, and bits that the data ask for.

    Attributes:
        parameters: Trained numbers.
        available: Bits that they may hold.
        needed: Bits that the data ask for.

    Example:
        >>> lrk.analysis.Capacity(10, jnp.asarray(20.0), jnp.asarray(5.0)).load.item()
        0.25
    """

    parameters: int
    available: Array
    needed: Array

    @property
    def load(self) -> Array:
        """`needed / available`: above one the adapter is too small for the data."""
        return self.needed / self.available

    @property
    def fits(self) -> Array:
        """Whether the data fit."""
        return self.needed <= self.available


def capacity(
    state: State | int,
    *,
    nats: ArrayLike | None = None,
    bits: ArrayLike | None = None,
    bits_per_parameter: ArrayLike = 2.0,
) -> Capacity:
    """Compare the bits that an adapter can hold with those that the data hold.

    A rule of thumb: LoRA keeps up with full fine-tuning while

        bits_per_parameter * parameters >= sum of -log2 p(token)

    over the first epoch, when each token is new to the model that predicts it.

    Args:
        state: A state, whose trainable parameters are counted, or their number.
        nats: The sum (not the mean) of the negative log-likelihoods in the first epoch,
            in nats, as a cross entropy gives them.
        bits: The same in bits. Pass one of the two.
        bits_per_parameter: What one number can hold, above 0.

    Returns:
        Both sides, with `load` and `fits`; arrays, as the likelihood may be traced.

    Raises:
        TypeError: If `state` is neither a `State` nor an int.
        ValueError: If neither or both of `nats` and `bits` are given, one is negative
            or not finite, nothing is trained, or `bits_per_parameter` is not positive.

    Example:
        >>> found = lrk.analysis.capacity(1000, bits=1500.0)
        >>> float(found.available), float(found.load), bool(found.fits)
        (2000.0, 0.75, True)

    Notes:
        Heuristic on both sides: two bits for each parameter is what language models
        were found to memorise, and the likelihood of the first epoch bounds from above
        what there is to learn, noise included.

    References:
        Thinking Machines Lab, LoRA without regret, 2025: the section on capacity. Allen
        Zhu and Li, Physics of language models 3.3, 2024, arXiv:2404.05405: two bits for
        each parameter (unverified).
    """
    if (nats is None) == (bits is None):
        raise ValueError(
            "capacity: expected one of nats and bits, got both or neither. Pass the "
            "summed negative log-likelihood of the first epoch."
        )
    if isinstance(state, bool) or not isinstance(state, State | int):
        raise TypeError(
            f"capacity: expected a State or a number of parameters, got "
            f"{type(state).__name__}."
        )
    number = state if isinstance(state, int) else count(state)[0]
    if number < 1:
        raise ValueError(f"capacity: expected trained parameters, got {number}.")
    value = nats if bits is None else bits
    _check_number("the likelihood", value, strictly=False)
    _check_number("bits_per_parameter", bits_per_parameter, strictly=True)
    needed = jnp.asarray(value, jnp.float32)
    needed = needed if nats is None else needed / math.log(2)
    available = jnp.asarray(bits_per_parameter, jnp.float32) * number
    return Capacity(number, available, needed)


def _check_number(name: str, x: ArrayLike | None, *, strictly: bool) -> None:
    """Refuse what is not a number of at least (strictly: above) zero.

    Raises:
        ValueError: If it is known and is not.
    """
    if x is None or not _compat.is_known(x):
        return
    values = jnp.asarray(x)
    good = jnp.isfinite(values) & ((values > 0) if strictly else (values >= 0))
    if not bool(jnp.all(good)):
        least = "above 0" if strictly else "of at least 0"
        raise ValueError(
            f"capacity: expected {name} as a finite number {least}, got {x}."
        )
