"""`lego`: rank-one units in clusters, against sums over known clusters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import lego
from lowrank.merging._lego import centroids, k_means
from tests.merging.exact_cases import (
    PARAMS,
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

KEY = jax.random.key(0)
SIGNED = (0.5, -1.25, 2.0)
two = functools.partial(lego, rank=2, key=KEY)


@pytest.mark.parametrize("rank", [5, 9])
def test_with_a_cluster_for_each_unit_it_is_the_sum_reweighted(rank):
    exact = lego(trees(), SIGNED, rank=rank, key=KEY, scale=1.0)
    want = merged_by(reference.task_arithmetic, trees(), SIGNED)
    assert_close(lrk.materialize(exact), want)
    # Ranks 2, 1 and 2: 5/3 in the mean, of 5.
    plain = lego(trees(), SIGNED, rank=rank, key=KEY)
    less = {p: (3**-0.5 if p != "bias" else 1) * (want[p] - PARAMS[p]) for p in want}
    want = jax.tree.map(lambda w, d: w + d, PARAMS, less)
    assert_close(lrk.materialize(plain), want)


def near(groups, noise=0.02):
    """Trees of rank 2 whose units lie close to a few directions, as told by groups."""
    w = jnp.zeros((6, 4))
    own = []
    for t, pair in enumerate(groups):
        unit = [numbers(20 + g, 10) + noise * numbers(t, 10) for g in pair]
        a, b = np.stack([u[:6] for u in unit], 1), np.stack([u[6:] for u in unit])
        own.append({"w": lrk.LowRank(w, a, b)})
    return own


GROUPS = [(0, 1), (1, 2), (2, 0)]
KNOWN = [[0, 5], [1, 2], [3, 4]]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_clear_clusters_become_their_means_at_the_mean_length(seed):
    own = near(GROUPS)
    merged = lego(own, rank=3, key=jax.random.key(seed))["w"]
    parts = [(x["w"].scale, x["w"].a, np.asarray(x["w"].b)) for x in own]
    units = reference.units(parts, [1, 1, 1])
    want = reference.lego(units, KNOWN, 6, (2 / 3) ** 0.5)
    assert merged.rank == 3
    assert_close(merged.delta(), want.astype(np.float32))


def permuted(tree, order):
    order = jnp.array(order)
    op = tree["w"]
    return {"w": op.replace(a=op.a[:, order], b=op.b[order])}


def test_the_order_of_units_and_of_trees_does_not_matter():
    own = [{"w": t["w"]} for t in trees((2, 2, 2))]
    merged = lrk.materialize(lego(own, rank=3, key=KEY))
    turned = [permuted(own[2], [1, 0]), own[0], permuted(own[1], [1, 0])]
    assert_close(lrk.materialize(lego(turned, rank=3, key=KEY)), merged)
    other = lrk.materialize(lego(own, rank=3, key=jax.random.key(3)))
    assert float(jnp.max(jnp.abs(other["w"] - merged["w"]))) > 1e-3


def test_one_cluster_is_the_mean_of_all_units():
    def mean(adapters, weights):
        units = reference.units(adapters, weights)
        every = [list(range(len(units)))]
        return reference.lego(units, every, 6, (len(units) / len(adapters)) ** 0.5)

    one = functools.partial(lego, rank=1, key=KEY)
    assert_close(
        lrk.materialize(one(trees(), SIGNED)), merged_by(mean, trees(), SIGNED)
    )
    assert_slope(one, mean)


def test_each_layer_of_a_stack_has_its_own_clusters():
    first, second = near(GROUPS), near([(2, 0), (0, 1), (1, 2)])
    own = [
        {"w": jax.tree.map(lambda *x: jnp.stack(x), a["w"], b["w"])}
        for a, b in zip(first, second, strict=True)
    ]
    own = [{"w": lrk.LowRank(jnp.zeros((2, 6, 4)), t["w"].a, t["w"].b)} for t in own]
    merged = lego(own, rank=3, key=KEY)["w"].delta()
    for i, group in enumerate((first, second)):
        want = lego(group, rank=3, key=jax.random.key(7))["w"].delta()
        assert_close(merged[i], want)


def test_leaves_have_their_own_draws():
    own = [{"v": t["w"], "w": t["w"]} for t in trees((2, 2, 2))]
    differ = []
    for seed in range(4):
        merged = lego(own, rank=3, key=jax.random.key(seed))
        gap = jnp.max(jnp.abs(merged["v"].delta() - merged["w"].delta()))
        differ.append(float(gap) > 1e-3)
    assert any(differ)


def test_it_lives_on():
    assert_lives_on(two)


def test_one_adapter_can_be_pruned():
    merged = lego(trees()[:1], rank=1, key=KEY)
    units = reference.units([adapters(trees()[0])["w"]], [1.0])
    want = reference.lego(units, [[0, 1]], 6, 2**0.5)
    assert_close(merged["w"].delta(), want.astype(np.float32))


def test_unadapted_and_plain_leaves():
    plain = {"w": lrk.Delta(PARAMS["w"], jnp.ones((6, 4))), "norm": PARAMS["norm"]}
    merged = lego([plain, plain], [1.0, 2.0], rank=1, key=KEY)
    assert_close(merged["w"].delta(), jnp.full((6, 4), 3.0))
    assert merged["norm"] is PARAMS["norm"]


def test_gradients_are_finite_at_units_of_zero():
    w = jnp.zeros((6, 4))
    zero = {"w": lrk.LowRank(w, jnp.zeros((6, 2)), jnp.zeros((2, 4)))}

    def total(weights):
        return jnp.sum(lego([zero, zero], weights, rank=2, key=KEY)["w"].delta())

    assert_close(jax.grad(total)(jnp.array([1.0, 0.0])), jnp.zeros(2))


def test_it_forms_nothing_of_the_size_of_a_weight():
    own = wide()
    found = sizes(lambda w, k: lego(own, w, rank=3, key=k)["w"].b, jnp.ones(3), KEY)
    assert max(found) == 6 * 70


# --- k-means -------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
def test_k_means_ends_where_lloyd_stands_still(seed):
    x = jnp.asarray(numbers(seed, 12, 3))
    found = np.asarray(k_means(jax.random.key(seed), x, 4, 30))
    means = np.stack([np.asarray(x, np.float64)[found == i].mean(0) for i in range(4)])
    far = np.sum((np.asarray(x)[:, None] - means[None]) ** 2, -1)
    assert (np.argmin(far, axis=-1) == found).all()
    assert len(set(found.tolist())) == 4


def test_k_means_starts_from_rows_apart():
    # Two rows of ten are far away: a start that is uniform would often miss them.
    x = np.zeros((12, 2), np.float32)
    x[:10] += 0.01 * numbers(1, 10, 2)
    x[10], x[11] = (100, 0), (0, 100)
    run = jax.jit(lambda key: k_means(key, jnp.asarray(x), 3, 1))
    for seed in range(8):
        found = np.asarray(run(jax.random.key(seed)))
        assert len({int(found[0]), int(found[10]), int(found[11])}) == 3
        assert len(set(found[:10].tolist())) == 1


def test_an_empty_cluster_adds_nothing():
    x = jnp.asarray(numbers(1, 3, 2))
    found = centroids(x, jnp.array([0, 2, 2]), 4)
    assert_close(found[0], x[0])
    assert_close(found[jnp.array([1, 3])], jnp.zeros((2, 2)))
    lengths = np.linalg.norm(np.asarray(x, np.float64)[1:], axis=1)
    assert_close(jnp.linalg.norm(found[2]), np.float32(lengths.mean()))


def test_equal_rows_are_one_cluster():
    same = [{"w": trees((1, 1, 1))[0]["w"]}] * 3
    merged = lego(same, rank=2, key=KEY, scale=1.0)
    assert_close(merged["w"].delta(), same[0]["w"].delta())


# --- messages ------------------------------------------------------------------------


def test_refusals():
    assert_refuses("lego", two)


def test_refuses_wrong_numbers_and_keys():
    with pytest.raises(ValueError, match="lego: rank must be at least 1, got 0"):
        lego(trees(), rank=0, key=KEY)
    with pytest.raises(ValueError, match="lego: iterations must be at least 1, got 0"):
        lego(trees(), rank=1, key=KEY, iterations=0)
    with pytest.raises(ValueError, match="lego: scale must be a finite number"):
        lego(trees(), rank=1, key=KEY, scale=jnp.ones(2))
    with untyped():
        with pytest.raises(TypeError, match="lego: expected an int as rank, got '2'"):
            lego(trees(), rank="2", key=KEY)
        with pytest.raises(TypeError, match="expected an int as iterations, got 2.0"):
            lego(trees(), rank=1, key=KEY, iterations=2.0)
        with pytest.raises(TypeError, match=r"lego: expected one .*Call lego\(trees"):
            lego(trees(), rank=1, key=0)
