"""Nested dicts of arrays as one flat dict whose names carry the dtypes, and back."""

from collections.abc import Mapping
from typing import Any

import numpy as np

STEP = "::"  # between the keys of a nested dict


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, np.ndarray]:
    """Gives each array of a nested dict one name that also carries its dtype."""
    flat = {}
    for key, value in tree.items():
        if STEP in str(key):
            raise ValueError(f"session: array name {key!r} may not hold {STEP!r}.")
        name = f"{prefix}{STEP}{key}"
        if isinstance(value, Mapping):
            flat.update(flatten(value, name))
            continue
        array = np.asarray(value)
        if array.dtype == object:
            raise TypeError(
                f"session: cannot store {name[len(STEP) :]!r}: expected an array, got "
                f"{type(value).__name__}. Convert it first."
            )
        stored = array
        if array.dtype.kind == "V":  # bfloat16 and its like: not known to npz
            stored = array.view(f"u{array.dtype.itemsize}")
        flat[f"{name}@{array.dtype.name}"] = stored
    return flat


def nest(flat: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Rebuilds the nested dict from the names."""
    tree: dict[str, Any] = {}
    for name, array in flat.items():
        path, _, dtype = name.rpartition("@")
        *parents, leaf = path.split(STEP)[1:]
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        if array.dtype.name != dtype and not dtype.startswith("str"):
            import ml_dtypes  # only for types that NumPy lacks

            array = array.view(getattr(ml_dtypes, dtype))
        node[leaf] = array
    return tree
