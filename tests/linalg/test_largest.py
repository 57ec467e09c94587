"""`largest`: the mask that a stable sort by magnitude gives, without the sort."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.linalg import largest
from tests.network import numbers


def by_sorting(x, count):
    """Earlier entries first among equal ones."""
    order = np.argsort(-np.abs(np.asarray(x, np.float64)), axis=-1, kind="stable")
    return np.argsort(order, axis=-1, kind="stable") < count


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("count", [0, 1, 5, 12, 20])
def test_it_is_the_mask_of_a_stable_sort(count, dtype):
    x = jnp.asarray(numbers(1, 3, 12)).astype(dtype)
    np.testing.assert_array_equal(largest(x, count), by_sorting(x, count))


@pytest.mark.parametrize("count", range(9))
def test_of_equal_entries_the_earlier_stay(count):
    x = jnp.array([[2.0, -1.0, 0.0, 1.0, -2.0, 0.0, 1.0, -0.0]])
    np.testing.assert_array_equal(largest(x, count), by_sorting(x, count))


def test_zeros_infinities_and_tiny_numbers_have_their_places():
    x = jnp.array([0.0, 1e-38, jnp.inf, -3e38, 1e-30, -jnp.inf])
    for count in range(7):
        np.testing.assert_array_equal(largest(x, count), by_sorting(x, count))
    assert largest(x.at[0].set(jnp.nan), 1).tolist() == [True] + [False] * 5


def test_each_row_may_have_its_own_count_which_may_be_traced():
    x = jnp.asarray(numbers(2, 2, 3, 12))
    counts = jnp.array([[[2]], [[7]]])
    np.testing.assert_array_equal(jax.jit(largest)(x, counts), by_sorting(x, counts))
    swept = jax.vmap(lambda n: largest(x, n))(jnp.array([3, 4]))
    np.testing.assert_array_equal(swept[1], by_sorting(x, 4))


def test_what_it_keeps_has_its_gradient():
    x = jnp.asarray(numbers(3, 12))

    def total(x):
        return jnp.sum(jnp.where(largest(x, 4), x, 0) ** 2)

    np.testing.assert_array_equal(
        jax.grad(total)(x), np.where(by_sorting(x, 4), 2 * x, 0)
    )
