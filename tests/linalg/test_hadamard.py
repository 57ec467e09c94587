"""The Walsh-Hadamard transform by blocks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.linalg import hadamard_blocks
from lowrank.linalg._hadamard import block_sizes
from tests.network import numbers
from tests.reference.subspace_projections import hadamard as reference
from tests.tolerances import assert_close

hadamard = lrk.linalg.hadamard


@pytest.mark.parametrize("length", [1, 2, 8, 512])
def test_is_the_product_with_the_matrix(length):
    x = numbers(1, 2, 3, length)
    want = (x.astype(np.float64) @ reference(length)).astype(np.float32)
    assert_close(hadamard(jnp.asarray(x)), want)


def test_is_its_own_adjoint_and_inverse():
    x, g = (jnp.asarray(numbers(i, 512)) for i in (1, 2))
    (back,) = jax.linear_transpose(hadamard, x)(g)
    assert_close(back, hadamard(g))
    assert_close(jax.jit(hadamard)(hadamard(x)), 512 * x)


def test_maps_and_differentiates():
    x, v = (jnp.asarray(numbers(i, 3, 8)) for i in (1, 2))
    assert_close(jax.vmap(hadamard)(x), hadamard(x))
    assert_close(jax.vmap(hadamard, 1)(x.T), hadamard(x))
    _, slope = jax.jvp(hadamard, (x,), (v,))
    assert_close(slope, hadamard(v))
    grad = jax.grad(lambda x: jnp.vdot(hadamard(x), v))(x)
    assert_close(grad, hadamard(v))


def test_keeps_the_dtype():
    x = jnp.asarray([1.0, 2.0], jnp.bfloat16)
    assert_close(hadamard(x), jnp.asarray([3.0, -1.0], jnp.bfloat16))


@pytest.mark.parametrize("q", [2, 256])
def test_blocks_are_transforms_over_two_axes(q):
    x, g = (jnp.asarray(numbers(i, 2, 3, q)) for i in (1, 2))

    def by_hand(x):
        return jnp.swapaxes(hadamard(jnp.swapaxes(x, 0, 1).reshape(3, -1)), 0, 1)

    want = by_hand(x).reshape(2, q, 3).swapaxes(1, 2)
    assert_close(hadamard_blocks(x), want)
    (back,) = jax.linear_transpose(hadamard_blocks, x)(g)
    assert_close(back, hadamard_blocks(g))


def test_blocks_are_few_and_small():
    for bits in range(25):
        sizes = block_sizes(2**bits)
        assert np.prod(sizes) == 2**bits
        assert max(sizes) <= 128
    assert len(block_sizes(2**20)) <= 5


def test_refuses_other_lengths():
    for length in (0, 6):
        with pytest.raises(ValueError, match=f"power of two, got {length}. Pad it"):
            hadamard(jnp.ones(length))
