"""Numbers on the host, whichever processes hold them."""

from typing import Any

import jax
from jax.experimental import multihost_utils

from lowrank._base import PyTree


def gathered(tree: PyTree) -> PyTree:
    """A tree whose arrays every process can read; all processes must ask."""

    def whole(leaf: Any) -> Any:
        split = isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return multihost_utils.process_allgather(leaf, tiled=True) if split else leaf

    return jax.tree.map(whole, tree)


def fetched(tree: PyTree) -> PyTree:
    """A tree as NumPy arrays, whole on every process; all processes must ask."""
    return jax.device_get(gathered(tree))
