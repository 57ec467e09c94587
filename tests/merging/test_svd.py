"""`svd`: the dense truncation, from factors; `discarded_energy` beside it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import discarded_energy, svd
from tests.merging.exact_cases import (
    PARAMS,
    WEIGHTS,
    adapters,
    assert_lives_on,
    assert_refuses,
    assert_slope,
    merged_by,
    sizes,
    trees,
    wide,
)
from tests.network import numbers
from tests.reference import merging_exact as reference
from tests.tolerances import assert_close
from tests.untyped import untyped


def truncated_sum(adapters, weights, rank=2):
    return reference.svd(reference.task_arithmetic(adapters, weights), rank)


two = functools.partial(svd, rank=2)


def test_it_is_the_dense_truncation():
    merged = two(trees(), WEIGHTS)
    assert_close(lrk.materialize(merged), merged_by(truncated_sum, trees(), WEIGHTS))
    assert [merged[p].rank for p in ("w", "layers", "heads")] == [2, 2, 2]
    assert_close(merged["w"].a.T @ merged["w"].a, jnp.eye(2))


def test_the_gradient_is_that_of_the_truncation():
    assert_slope(two, truncated_sum)


def test_it_lives_on():
    assert_lives_on(two)


@pytest.mark.parametrize("rank", [3, 4, 9])
def test_enough_rank_gives_the_exact_sum(rank):
    own, weights = trees()[:2], WEIGHTS[:2]
    merged = svd(own, weights, rank=rank)
    want = merged_by(reference.task_arithmetic, own, weights)
    assert_close(lrk.materialize(merged), want)
    assert merged["w"].rank == merged["layers"].rank == 3


def test_a_product_as_wide_as_the_weight_is_a_plain_delta():
    merged = svd(trees(), WEIGHTS, rank=9)
    assert isinstance(merged["w"], lrk.Delta)
    assert merged["layers"].a.shape == (2, 6, 4)
    want = merged_by(reference.task_arithmetic, trees(), WEIGHTS)
    assert_close(lrk.materialize(merged), want)


def test_one_adapter():
    merged = svd(trees()[:1], rank=1)
    want = merged_by(functools.partial(truncated_sum, rank=1), trees()[:1], [1.0])
    assert_close(lrk.materialize(merged), want)


@pytest.mark.parametrize("shape", [(6, 4), (4, 6)])
def test_plain_deltas_of_matrices_are_cut_too(shape):
    n, m = shape
    w, d = jnp.zeros(shape), numbers(1, n, m)
    a, b = numbers(2, n, 1), numbers(3, 1, m)
    own = [{"w": lrk.Delta(w, jnp.asarray(d))}, {"w": lrk.LowRank(w, a, b)}]
    x = 0.5 * np.float64(d) + 2 * np.float64(a) @ b
    got = lrk.materialize(svd(own, [0.5, 2.0], rank=2))["w"]
    assert_close(got, reference.svd(x, 2).astype(np.float32))
    energy = discarded_energy(own, [0.5, 2.0], rank=2)["w"]
    assert_close(energy, np.float32(reference.discarded_energy(x, 2)))


def test_discarded_energy_is_the_squared_error():
    found = discarded_energy(trees(), WEIGHTS, rank=2)
    assert set(found) == {"w", "layers", "heads"}
    for name in ("w", "heads", "layers/0", "layers/1"):
        own = [adapters(tree)[name] for tree in trees()]
        x = reference.task_arithmetic(own, WEIGHTS)
        path, *index = name.split("/")
        got = found[path][tuple(map(int, index))]
        assert_close(got, np.float32(reference.discarded_energy(x, 2)))
    run = jax.jit(lambda *own: discarded_energy(own, WEIGHTS, rank=2))
    assert_close(run(*trees()), found)


def test_nothing_is_discarded_of_nothing():
    zero = {"w": lrk.LowRank(jnp.ones((6, 4)), jnp.ones((6, 2)), jnp.zeros((2, 4)))}

    def share(weight):
        return discarded_energy([zero], [weight], rank=1)["w"]

    assert float(share(1.0)) == 0
    assert float(jax.grad(share)(1.0)) == 0
    assert_close(lrk.materialize(svd([zero], rank=1))["w"], jnp.ones((6, 4)))


def test_the_gradient_at_weights_of_zero_is_exact_where_nothing_is_cut():
    own = trees()[:2]
    probe = jnp.asarray(numbers(9, 6, 4))

    def total(weights):
        return jnp.sum(probe * svd(own, weights, rank=3)["w"].delta())

    got = jax.grad(total)(jnp.zeros(2))
    want = [np.sum(np.float64(probe) * reference.delta(adapters(t)["w"])) for t in own]
    assert_close(got, np.float32(want))


def test_the_gradient_where_a_kept_singular_value_repeats():
    w, eye = jnp.zeros((4, 4)), np.eye(4, dtype=np.float32)
    places = [(0, 0), (1, 1), (2, 2), (0, 1)]
    own = [{"w": lrk.LowRank(w, eye[:, [i]], eye[[j]])} for i, j in places]

    def delta(weights):
        return svd(own, weights, rank=2)["w"].delta()

    slope = jax.jit(jax.jacobian(delta))
    want = np.zeros((4, 4, 4), np.float32)
    for number, place in [(0, (0, 0)), (1, (1, 1)), (3, (0, 1))]:
        want[(*place, number)] = 1
    assert_close(slope(jnp.array([2.0, 2.0, 1.0, 0.0])), want)
    tied = slope(jnp.array([2.0, 1.0, 1.0, 0.0]))
    assert bool(jnp.isfinite(tied).all())


def test_it_forms_nothing_of_the_size_of_a_weight():
    own = wide()

    def run(weights):
        merged = svd(own, weights, rank=2)["w"].replace(w=None)
        return merged, discarded_energy(own, weights, rank=2)

    def slope(weights):
        return jax.grad(lambda w: jnp.sum(run(w)[0].b) + run(w)[1]["w"])(weights)

    assert max(sizes(run, jnp.ones(3))) == 40 * 6
    assert max(sizes(slope, jnp.ones(3))) == 40 * 6


def test_leaves_left_alone_are_the_base():
    assert two(trees(), WEIGHTS)["norm"] is PARAMS["norm"]


# --- messages ------------------------------------------------------------------------


def test_refusals():
    assert_refuses("svd", two)
    assert_refuses("discarded_energy", functools.partial(discarded_energy, rank=2))


@pytest.mark.parametrize("merge", [svd, discarded_energy])
def test_refuses_what_is_no_rank(merge):
    with pytest.raises(ValueError, match="rank must be at least 1, got 0"):
        merge(trees(), rank=0)
    message = "expected an int as rank, got 2.0"
    with untyped(), pytest.raises(TypeError, match=message):
        merge(trees(), rank=2.0)
