"""Classes of device numbers, and checks of these where they are concrete."""

import dataclasses
from typing import Any, TypeVar

import jax
import numpy as np

from lowrank import _compat

_T = TypeVar("_T")


def node(cls: type[_T]) -> type[_T]:
    """Make a dataclass a pytree that is checked when a user makes it, and only then.

    A gradient, a sum of two devices or their axes for `vmap` has the class of a device
    without being one: rebuilding it must not look at its numbers.
    """
    kind: Any = cls
    fields = dataclasses.fields(kind)
    static = [f.name for f in fields if f.metadata.get("static")]
    names = [f.name for f in fields if f.name not in static]

    def flatten(whole: Any) -> tuple[list[Any], tuple[Any, ...]]:
        keys = map(jax.tree_util.GetAttrKey, names)
        values = [getattr(whole, name) for name in names]
        own = tuple(getattr(whole, name) for name in static)
        return list(zip(keys, values, strict=True)), own

    def unflatten(own: tuple[Any, ...], values: Any) -> Any:
        whole = object.__new__(cls)
        for name, value in zip([*names, *static], [*values, *own], strict=True):
            object.__setattr__(whole, name, value)
        return whole

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


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
        TypeError: If a value is no number at all.
        ValueError: If a concrete number lies outside, or is not finite.
    """
    for name, (value, low, high, *open_) in numbers.items():
        if isinstance(value, (bool, np.bool_, str, list, tuple, dict)):
            raise TypeError(f"{who}: {name} must be a number, got {value!r}.")
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


def check_whole(who: str, **numbers: Any) -> None:
    """Refuse concrete numbers of steps or levels that are not whole.

    Raises:
        ValueError: If there are any.
    """
    for name, value in numbers.items():
        known = concrete(value)
        if known is not None and bool((known != np.round(known)).any()):
            raise ValueError(f"{who}: {name} must be a whole number, got {value}.")
