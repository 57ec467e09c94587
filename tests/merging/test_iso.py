"""`iso` and `iso_cts`: one singular value, over the support or as published."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import iso, iso_cts
from lowrank.merging._iso import shares
from tests.merging.subspace import (
    WEIGHTS,
    added,
    by_matrix,
    expected,
    golden,
    golden_trees,
    trees,
)
from tests.network import numbers
from tests.reference import merging_subspace as reference
from tests.tolerances import assert_close

W = jnp.zeros((8, 6))
PAIRS = [(numbers(i, 8, 2), numbers(i + 9, 2, 6)) for i in (1, 2, 3)]
OWN = [{"w": lrk.LowRank(W, a, b)} for a, b in PAIRS]
DENSE = [(a.astype(np.float64) @ b).T for a, b in PAIRS]


def singular_values(tree):
    return np.linalg.svd(lrk.materialize(tree)["w"], compute_uv=False)


@pytest.mark.parametrize("merge", [iso, iso_cts])
def test_all_singular_values_are_equal_and_the_scale_multiplies_them(merge):
    values = singular_values(merge(OWN[:2], [0.5, 2.0], scale=jnp.array(3.0)))
    assert_close(values[:4], np.full(4, values[0]))
    assert values[4:].max() < 1e-5 * values[0]
    assert_close(3 * singular_values(merge(OWN[:2], [0.5, 2.0]))[:4], values[:4])


def test_the_published_forms_are_over_all_directions():
    # Three tasks of rank two fill all six directions.
    merged = lrk.materialize(iso(OWN, WEIGHTS, conformance="paper"))["w"]
    want = reference.iso(DENSE, WEIGHTS, published=True).T.astype(np.float32)
    assert_close(merged, want)
    assert_close(lrk.materialize(iso(OWN, WEIGHTS))["w"], want)
    options = {"common": 0.5, "conformance": "paper"}
    merged = lrk.materialize(iso_cts(OWN, WEIGHTS, **options))["w"]
    want = reference.iso_cts(DENSE, WEIGHTS, 0.5, published=True)
    assert_close(merged, want.T.astype(np.float32))


def test_of_a_thin_sum_the_published_mean_is_diluted_by_null_directions():
    # Two of six directions: a third of the mean, and four directions out of nothing.
    full, own = (singular_values(iso(OWN[:1], conformance=c)) for c in ("paper", None))
    assert_close(full, np.full(6, own[0] / 3))
    assert own[2:].max() < 1e-6


def test_nothing_left_to_the_tasks_is_iso():
    want = added(iso(trees(), WEIGHTS))
    assert_close(added(iso_cts(trees(), WEIGHTS, common=1.0)), want)
    # Five directions: 4 are common, and one cannot be shared out among three tasks.
    rounded = iso_cts(trees(), WEIGHTS)["first"]
    assert_close(rounded.delta(), iso(trees(), WEIGHTS)["first"].delta())


@pytest.mark.parametrize("common", [0.2, 0.4])
def test_tasks_add_directions_of_their_own(common):
    merged = iso_cts(trees(), WEIGHTS, common=common)
    want = by_matrix(reference.iso_cts, WEIGHTS, common)
    got, want = np.asarray(added(merged)), expected(want).astype(np.float32)
    assert_close(got, want)
    assert float(jnp.abs(got - added(iso(trees(), WEIGHTS))).max()) > 1e-2


@pytest.mark.parametrize("merge", [iso, iso_cts])
def test_null_directions_count_for_nothing(merge):
    # Twice the same task: four ranks, two directions.
    want = 2 * lrk.materialize(iso(OWN[:1]))["w"]
    options = {} if merge is iso else {"common": 1.0}
    assert_close(lrk.materialize(merge([OWN[0]] * 2, **options))["w"], want)


def test_directions_are_shared_out_equally():
    assert shares(128, 8, 0.8) == (104, 3)
    assert shares(5, 3, 0.0) == (2, 1)  # never more than there are


def test_the_derivative_holds_where_singular_values_repeat():
    a, b = np.eye(8, 4, dtype=np.float32), np.eye(4, 6, dtype=np.float32)
    own = [{"w": lrk.LowRank(W, a[:, i : i + 2], b[i : i + 2])} for i in (0, 2)]

    def entry(weights):  # the mean of w_1, w_1, w_2, w_2
        return lrk.materialize(iso(own, weights))["w"][0, 0]

    assert_close(jax.grad(entry)(jnp.ones(2)), jnp.full(2, 0.5))


def test_what_is_no_matrix_is_summed_or_as_published_averaged():
    base = lrk.base(trees()[0])["bias"]
    total = WEIGHTS[0] * 2 + WEIGHTS[2]
    own = [{"w": OWN[0]["w"], "bias": t["bias"]} for t in trees()]
    for merge in (iso, iso_cts):
        merged = lrk.materialize(merge(own, WEIGHTS, scale=2.0))["bias"]
        assert_close(merged, base + 2 * total)
        merged = merge(own, WEIGHTS, scale=2.0, conformance="paper")
        assert_close(lrk.materialize(merged)["bias"], base + 2 * total / 3)


def test_the_authors_code_gives_the_same():
    own = golden_trees("full")
    for conformance in ("paper", None):  # the sum has full rank
        merged = iso(own, conformance=conformance)
        assert_close(lrk.materialize(merged), golden("iso"))
        merged = iso_cts(own, common=0.5, conformance=conformance)
        assert_close(lrk.materialize(merged), golden("iso_cts"))
    assert_close(lrk.materialize(iso(golden_trees("thin"))), golden("core_tv_iso"))


# --- messages ------------------------------------------------------------------------


@pytest.mark.parametrize("merge", [iso, iso_cts])
def test_refuses_options_out_of_range(merge):
    name = merge.__name__
    message = f"{name}: expected conformance=None or 'paper', got 'peft'"
    with pytest.raises(ValueError, match=message):
        merge(OWN, conformance="peft")
    message = rf"{name}: scale must be a finite number, got Array"
    with pytest.raises(ValueError, match=message):
        merge(OWN, scale=jnp.ones(2))


@pytest.mark.parametrize("common", [-0.1, 1.5])
def test_refuses_a_common_share_out_of_range(common):
    with pytest.raises(ValueError, match=r"iso_cts: expected common in \[0, 1\], got"):
        iso_cts(OWN, common=common)
