"""Checks of device numbers, where they are concrete."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat


def concrete(value: Any) -> np.ndarray | None:
    """A number or array that can be looked at, or None."""
    if isinstance(value, (bool, str)) or value is None:
        return None
    if isinstance(value, (int, float, np.number, np.ndarray)):
        return np.asarray(value, np.float64)
    if isinstance(value, jax.Array) and _compat.is_concrete(value):
        return np.asarray(value, np.float64)
    return None


def check(who: str, **numbers: Any) -> None:
    """Refuse numbers out of their range.

    Args:
        who: Name of the class, for messages.
        **numbers: For each name `(value, low, high)`, with a fourth entry `"above"`
            where `low` itself is not allowed. None stands for no bound, or no value.

    Raises:
        ValueError: If a concrete number lies outside, or is not finite.
    """
    for name, (value, low, high, *open_) in numbers.items():
        known = concrete(value)
        if known is None:
            continue
        under = low is not None and bool(
            (known <= low).any() if open_ else (known < low).any()
        )
        over = high is not None and bool((known > high).any())
        if under or over or not np.isfinite(known).all():
            left = "" if low is None else f"{'above' if open_ else 'at least'} {low}"
            right = "" if high is None else f"at most {high}"
            want = " and ".join(part for part in (left, right) if part)
            raise ValueError(f"{who}: {name} must be {want or 'finite'}, got {value}.")


def clip_floor(x: Any) -> Any:
    """Not below 0."""
    return jnp.maximum(x, 0.0)
