"""A hash of a base: what a checkpoint keeps in place of the base itself."""

import hashlib
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from lowrank import _tree
from lowrank._base import PyTree, is_array

_BLOCK = 1 << 26  # bytes hashed at a time


def fingerprint(params: PyTree) -> str:
    """The SHA-256 of a parameter tree: of every path, dtype, shape and number.

    Leaves are taken in the order of their paths and streamed, one at a time on the
    host, so the hash does not depend on the order of a dict, the kind of the tree, or
    how leaves are spread over devices. Where a leaf lies on several processes each of
    them gathers it, and all get the same hash; so all must call this together.

    Args:
        params: Arrays, NumPy arrays (also mapped from disk), operators.

    Returns:
        64 hexadecimal digits, the same in every process, for every sharding.

    Raises:
        ValueError: If there is no array, or two leaves have one path.
        TypeError: If an array is abstract: it has no numbers.

    Example:
        >>> from lowrank import training
        >>> training.fingerprint({"w": jnp.ones(2), "b": jnp.zeros(2)})[:8]
        'de705f41'

    Notes:
        Bytes are little-endian, as on every machine that JAX runs on. A NaN counts by
        its bits, and -0.0 is not 0.0.
    """
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    names = _tree.path_strings([keys for keys, _ in flat])
    leaves = {n: x for n, (_, x) in zip(names, flat, strict=True) if is_array(x)}
    if not leaves or len(set(names)) < len(names):
        raise ValueError(
            "fingerprint: expected a tree of arrays with a path for each, got "
            f"{len(leaves)} at {len(set(names))} paths. Pass the parameters."
        )
    empty = [n for n, x in leaves.items() if isinstance(x, jax.ShapeDtypeStruct)]
    if empty:
        raise TypeError(
            f"fingerprint: no numbers at {_tree.quoted(empty)}. Pass arrays, not their "
            "shapes."
        )
    digest = hashlib.sha256()
    for name, leaf in sorted(leaves.items()):
        digest.update(f"{name} {leaf.dtype} {tuple(leaf.shape)}\n".encode())
        for block in _blocks(_on_host(leaf)):
            digest.update(block)
    return digest.hexdigest()


def _on_host(leaf: Any) -> np.ndarray:
    """A leaf's numbers; those of another process are fetched."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _blocks(host: np.ndarray) -> Iterator[memoryview]:
    """The bytes of an array in C order, some rows at a time."""
    rows = host.reshape(1) if host.ndim == 0 else host
    step = max(1, _BLOCK * len(rows) // max(rows.nbytes, 1))
    for start in range(0, len(rows), step):
        part = np.ascontiguousarray(rows[start : start + step])
        yield part.reshape(-1).view(np.uint8).data
