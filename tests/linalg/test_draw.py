"""Random numbers in bulk are those of `jax.random`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg._draw import flat_normal, flat_uniform

PLAIN = {"normal": jax.random.normal, "uniform": jax.random.uniform}
OWN = {"normal": flat_normal, "uniform": flat_uniform}
# Below what is drawn in chunks, two chunks, and more of them than fit evenly.
SHAPES = [(), (3, 5), (2**13,), (2, 5003), (3, 7, 2341)]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("kind", PLAIN)
def test_they_are_the_same_numbers(kind, shape):
    key = jax.random.key(7)
    want = PLAIN[kind](key, (int(np.prod(shape)),)).reshape(shape)
    got = OWN[kind](key, shape)
    assert got.dtype == jnp.float32
    np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("kind", PLAIN)
def test_keys_of_every_kind(kind):
    size = (2**13,)
    for key in (jax.random.key_data(jax.random.key(3)), jax.random.key(3, impl="rbg")):
        np.testing.assert_array_equal(OWN[kind](key, size), PLAIN[kind](key, size))


def test_other_dtypes_are_drawn_in_their_own_way():
    key, size = jax.random.key(1), (2**13,)
    want = jax.random.normal(key, size, jnp.bfloat16)
    np.testing.assert_array_equal(flat_normal(key, size, jnp.bfloat16), want)


def test_many_keys_at_once():
    keys = jax.random.split(jax.random.key(5), 2)
    size = (2**13 + 1,)
    got = jax.jit(jax.vmap(lambda key: flat_normal(key, size)))(keys)
    np.testing.assert_array_equal(got[1], jax.random.normal(keys[1], size))


def test_another_generator_of_counters_is_left_alone():
    key, size = jax.random.key(2), (2**13,)
    with jax.threefry_partitionable(False):
        want = jax.random.normal(key, size)
        np.testing.assert_array_equal(flat_normal(key, size), want)
