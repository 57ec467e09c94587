"""Random numbers in bulk: those of `jax.random`, drawn faster on a CPU."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank import _compat

Array = jax.Array
_CHUNK = 2**14  # numbers of one turn: they stay in the first caches
_FEW = 2**13  # below it there is nothing to gain
_MANY = 2**31  # from here on a counter has a second word
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))
_PARITY = 0x1BD11BDA
_LOWEST = float(np.nextafter(np.float32(-1), np.float32(0)))  # above an infinity


def flat_normal(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Standard normal numbers.

    Args:
        key: A random key.
        shape: Of the result.
        dtype: Of the result.

    Returns:
        `jax.random.normal(key, (size,), dtype).reshape(shape)`, bit for bit, before
        XLA fuses either with what comes after it.
    """
    return _drawn("normal", key, shape, dtype)


def flat_uniform(key: Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> Array:
    """Uniform numbers in [0, 1).

    Args:
        key: A random key.
        shape: Of the result.
        dtype: Of the result.

    Returns:
        `jax.random.uniform(key, (size,), dtype).reshape(shape)`, bit for bit.
    """
    return _drawn("uniform", key, shape, dtype)


def _drawn(kind: str, key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
    size = math.prod(shape)
    plain = getattr(jax.random, kind)
    small = not _FEW <= size < _MANY or jnp.dtype(dtype) != jnp.float32
    if small or not _compat.is_plain_threefry(key):
        return plain(key, (size,), dtype).reshape(shape)
    return _bulk(jax.random.key_data(key), kind, size).reshape(shape)


@functools.partial(jax.jit, static_argnums=(1, 2))
def _bulk(words: Array, kind: str, size: int) -> Array:
    """On a CPU in chunks; elsewhere one kernel does it."""

    def plain(words: Array) -> Array:
        key = jax.random.wrap_key_data(words, impl="threefry2x32")
        return getattr(jax.random, kind)(key, (size,))

    def chunks(words: Array) -> Array:
        if kind == "uniform":
            return _in_chunks(words, size, lowest=0.0).reshape(-1)[:size]
        # A loop of its own: XLA would take these logarithms into its fusion with the
        # next product, and evaluate them there one by one.
        drawn = lax.map(_normal, _in_chunks(words, size, lowest=_LOWEST))
        return drawn.reshape(-1)[:size]

    return lax.platform_dependent(words, cpu=chunks, default=plain)


def _normal(u: Array) -> Array:
    return np.float32(math.sqrt(2)) * lax.erf_inv(u)


def _in_chunks(words: Array, size: int, lowest: float) -> Array:
    """Uniform numbers from `lowest` to 1, `[chunks, numbers]`, and a few more.

    `jax.random` keeps the rounds of its counters as a loop on a CPU, over arrays as
    large as the result; here all rounds of a few numbers are one.
    """
    count = max(2, -(-size // _CHUNK))
    step = -(-size // count)
    places, low = lax.iota(jnp.uint32, step), np.float32(lowest)

    def one(start: Array) -> Array:
        bits = _threefry(words, start + places)
        ones = (bits >> np.uint32(9)) | np.uint32(0x3F800000)  # of a float in [1, 2)
        u = lax.bitcast_convert_type(ones, jnp.float32) - np.float32(1)
        return u if lowest == 0 else jnp.maximum(low, u * (np.float32(1) - low) + low)

    return lax.map(one, jnp.arange(count, dtype=jnp.uint32) * np.uint32(step))


def _threefry(words: Array, counter: Array) -> Array:
    """Threefry-2x32 of `(0, counter)`, its two words joined by xor."""
    keys = (words[0], words[1], words[0] ^ words[1] ^ np.uint32(_PARITY))
    x, y = jnp.broadcast_to(keys[0], counter.shape), counter + keys[1]
    for turn in range(5):
        for by in _ROTATIONS[turn % 2]:
            x = x + y
            y = x ^ ((y << np.uint32(by)) | (y >> np.uint32(32 - by)))
        x = x + keys[(turn + 1) % 3]
        y = y + keys[(turn + 2) % 3] + np.uint32(turn + 1)
    return x ^ y
