"""Weights and numbers of a merge, checked."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._base import Path


def check_weights(who: str, weights: Any, number: int) -> list[Any]:
    """One weight for each tree; ones where none are given.

    A weight is a number, or a mapping from paths to numbers.

    Raises:
        ValueError: If their number is wrong, one is no real scalar, or a concrete one
            is not finite.
    """
    if weights is None:
        return [1.0] * number
    try:
        listed: list[Any] = list(weights)
    except TypeError:
        raise ValueError(
            f"{who}: expected {number} weights, one number for each tree, got "
            f"{weights!r}."
        ) from None
    flat = [x for w in listed for x in (w.values() if isinstance(w, Mapping) else [w])]
    if len(listed) != number or any(np.shape(w) != () for w in flat):
        shapes = [np.shape(w) for w in flat]
        raise ValueError(
            f"{who}: expected {number} weights, one number for each tree, got "
            f"{len(listed)} of shapes {shapes}."
        )
    if odd := [w for w in flat if not _is_number(w)]:
        raise ValueError(f"{who}: expected numbers as weights, got {odd}.")
    numbers = [w for w in flat if _compat.is_known(w)]
    if not all(np.isfinite(np.asarray(w)).all() for w in numbers):
        raise ValueError(f"{who}: the weights must be finite, got {listed}.")
    return listed


def _is_number(value: Any) -> bool:
    """Whether a value is a real number, traced or not."""
    dtype = value.dtype if hasattr(value, "dtype") else np.asarray(value).dtype
    real = (jnp.floating, jnp.integer, np.bool_)
    return any(jnp.issubdtype(dtype, kind) for kind in real)


def check_number(who: str, name: str, value: Any) -> None:
    """Refuse what is no finite number; a traced one only by its shape.

    Raises:
        ValueError: If it is not.
    """
    fits = np.shape(value) == () and _is_number(value)
    if not fits or (_compat.is_known(value) and not np.isfinite(np.asarray(value))):
        raise ValueError(f"{who}: {name} must be a finite number, got {value!r}.")


def weights_by_path(
    who: str, weights: Any, number: int, paths: Iterable[Path]
) -> dict[Path, list[Any]]:
    """For each adapted leaf, one weight of each tree.

    Args:
        who: Name of the merge, for messages.
        weights: None for ones; or for each tree a number, or a mapping from each
            adapted path to a number.
        number: How many trees there are.
        paths: The leaves that any tree adapts.

    Raises:
        ValueError: As `check_weights`; or if a mapping lacks an adapted path, or has a
            path that no tree adapts. All are named.
    """
    listed, known = check_weights(who, weights, number), list(paths)
    maps = [w for w in listed if isinstance(w, Mapping)]
    missing = [f"'{p}'" for p in known if any(p not in w for w in maps)]
    extra = dict.fromkeys(f"'{p}'" for w in maps for p in w if p not in known)
    if missing or extra:
        raise ValueError(
            f"{who}: weights by path must name the adapted leaves: missing "
            f"{', '.join(missing) or 'none'}; not adapted {', '.join(extra) or 'none'}."
        )
    return {p: [w[p] if isinstance(w, Mapping) else w for w in listed] for p in known}
