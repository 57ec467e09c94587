"""What a sweep that resumes calls its runs."""

import hashlib
from typing import Any

import jax
import numpy as np

from lowrank._base import PyTree

_DIGITS = 12


def content(*trees: PyTree) -> str:
    """The first digits of a hash of trees: of every path, dtype, shape and number.

    Args:
        *trees: Pytrees of arrays, numbers and random keys.

    Returns:
        12 hexadecimal digits; the same in every process.
    """
    digest = hashlib.sha256()
    for keys, leaf in jax.tree_util.tree_flatten_with_path(trees)[0]:
        host = _on_host(leaf)
        name = jax.tree_util.keystr(keys)
        digest.update(f"{name} {host.dtype} {host.shape}\n".encode())
        digest.update(host.tobytes())
    return digest.hexdigest()[:_DIGITS]


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(
        leaf.dtype, jax.dtypes.prng_key
    ):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf)
