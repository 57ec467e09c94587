"""Numbers on the host, whichever processes hold them."""

from typing import Any

import jax
from jax.experimental import multihost_utils

from lowrank._base import PyTree


def fetched(tree: PyTree) -> PyTree:
    """A tree as NumPy arrays, whole on every process; all of them must ask."""

    def whole(leaf: Any) -> Any:
        split = isinstance(leaf, jax.Array) and not (
            leaf.is_fully_addressable or leaf.is_fully_replicated
        )
        return multihost_utils.process_allgather(leaf, tiled=True) if split else leaf

    return jax.device_get(jax.tree.map(whole, tree))
