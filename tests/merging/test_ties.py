"""TIES: against the paper in NumPy and against three published codes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import ties
from lowrank.merging._ties import (
    agrees,
    count,
    disjoint_mean,
    elect,
    elect_up,
    largest,
    ranks,
    trim,
)
from tests.merging.signs import (
    PARAMS,
    changes,
    compare,
    dense,
    golden,
    options,
    split_flat,
    stored,
    trees,
)
from tests.network import numbers
from tests.reference import merging_signs as reference
from tests.tolerances import assert_close

WEIGHTS, DENSITY, *_ = options()


# --- arrays ----------------------------------------------------------------------


def test_counts_are_exact_and_at_least_one():
    assert [int(count(d, 100)) for d in (0.29, 0.3, 1.0, 0.001)] == [28, 30, 100, 1]
    assert [int(count(jnp.float32(d), 100)) for d in (0.3, 1.0, 0.001)] == [30, 100, 1]
    assert int(count(0.001, 100, least=0)) == 0
    assert count(np.array([0.5, 0.25]), 8).tolist() == [4, 2]


def test_ranks_break_ties_by_position():
    x = jnp.array([[1.0, -2.0, 2.0, 0.0], [3.0, 3.0, -3.0, 3.0]])
    assert ranks(x).tolist() == [[2, 0, 1, 3], [0, 1, 2, 3]]
    for number in range(1, 5):
        assert np.array_equal(largest(x, number), ranks(x) < number)


def test_trim_keeps_an_exact_number_among_equal_entries():
    x = jnp.array([[1.0, -1.0, 1.0, -1.0], [0.0, 4.0, -1.0, 5.0]])
    assert trim(x, 0.5).tolist() == [[1, -1, 0, 0], [0, 4, 0, 5]]
    each = trim(x, np.array([0.25, 0.75]))
    assert each.tolist() == [[1, 0, 0, 0], [0, 4, -1, 5]]


def test_trim_of_any_size_is_the_reference():
    x = numbers(1, 3, 11)
    for density in (0.05, 0.5, 0.99, 1.0):
        want = np.stack([reference.trim(row, density) for row in x])
        assert_close(trim(jnp.asarray(x), density), want.astype(np.float32))


def test_zero_sums_take_the_sign_of_most_or_plus():
    x = jnp.array([[1.0, -2.0, -3.0], [-1.0, -1.0, 1.0]])
    assert elect(x).tolist() == [-1, -1, -1]
    assert elect_up(x).tolist() == [1, -1, -1]
    assert agrees(x, elect(x)).tolist() == [[False, True, True], [True, True, False]]
    assert disjoint_mean(x, agrees(x, elect(x))).tolist() == [-1, -1.5, -3]


def test_nothing_that_agrees_gives_zero():
    x = jnp.zeros((2, 3))
    assert disjoint_mean(x, agrees(x, elect(x))).tolist() == [0, 0, 0]


# --- published code --------------------------------------------------------------


def test_of_the_authors_with_zero_sums():
    x = jnp.asarray(golden()["whole/flat"])
    kept = trim(x, 0.75)
    merged = disjoint_mean(kept, agrees(kept, elect(kept)))
    assert_close(merged, golden()["whole/merged"])


def test_of_the_authors_trims_the_model_as_one_vector():
    compare(ties(trees(), density=DENSITY), split_flat(golden()["ties/merged"]))


@pytest.mark.parametrize("conformance", ["peft", "peft_svd"])
def test_of_peft(conformance):
    kind = conformance.replace("peft", "peft/ties")
    merged = ties(trees(False), WEIGHTS, density=DENSITY, conformance=conformance)
    compare(merged, stored(kind))


def test_of_peft_merges_each_factor_and_keeps_the_rank():
    merged = ties(trees(False), WEIGHTS, density=DENSITY, conformance="peft")
    for path in ("first", "second"):
        for factor in "ab":
            got = np.asarray(getattr(merged[path], factor))
            want = golden()[f"peft/ties/{path}/{factor}"].T
            np.testing.assert_allclose(got, want, 2e-5, 1e-6)
    assert lrk.split(merged["first"])[0] is PARAMS["first"]
    assert merged["bias"] is PARAMS["bias"]


@pytest.mark.parametrize("normalize", [None, True, False])
def test_of_mergekit(normalize):
    merged = ties(
        trees(),
        WEIGHTS,
        density=DENSITY,
        conformance="mergekit",
        normalize=normalize,
    )
    compare(merged, stored(f"mergekit/ties/{int(normalize is not False)}"))


# --- the reference ---------------------------------------------------------------


def test_is_the_paper_with_weights_and_scale():
    paths = list(PARAMS)
    models = [[own[p] for p in paths] for own in dense()]
    want = reference.ties(models, WEIGHTS, 0.3)
    merged = ties(trees(), WEIGHTS, density=0.3, scale=0.5)
    compare(merged, {p: 0.5 * y for p, y in zip(paths, want, strict=True)})


def test_one_density_for_each_tree():
    density = [0.3, 0.6, 1.0]
    merged = ties(trees(), WEIGHTS, density=density, conformance="mergekit")
    for path, got in changes(merged).items():
        own = [
            reference.trim(c[path], d) for c, d in zip(dense(), density, strict=True)
        ]
        want = reference.ties_of_mergekit(own, WEIGHTS, True)
        np.testing.assert_allclose(got, want, 2e-5, 5e-6)


@pytest.mark.parametrize("conformance", ["peft", "peft_svd", "mergekit"])
def test_each_layer_of_a_stack_is_a_tensor(conformance):
    params = {"w": jnp.asarray(numbers(1, 2, 4, 3))}

    def tree(seed, at=slice(None)):
        a, b = numbers(seed, 2, 4, 2)[at], numbers(seed + 1, 2, 2, 3)[at]
        b = b * np.array([1.0, 10.0])[at].reshape(-1, *(1,) * (b.ndim - 1))
        scale = jnp.array([0.5, -2.0])[at]
        return {"w": lrk.LowRank(params["w"][at], a, b.astype(np.float32), scale)}

    def merge(at):
        own = [tree(5, at), tree(7, at)]
        merged = ties(own, [1.0, 0.3], density=0.4, conformance=conformance)
        return lrk.split(merged["w"])[1][0].delta()

    assert_close(merge(slice(None)), np.stack([merge(0), merge(1)]))


def test_weights_may_differ_by_path():
    weights = [{"first": 2.0, "second": -1.0, "bias": 0.5}, 1.0, 1.0]
    merged = ties(trees(), weights, density=DENSITY, conformance="mergekit")
    for path, factor in weights[0].items():
        own = [reference.trim(c[path], DENSITY) for c in dense()]
        want = reference.ties_of_mergekit(own, [factor, 1.0, 1.0], True)
        np.testing.assert_allclose(changes(merged)[path], want, 2e-5, 5e-6)


def test_weights_have_gradients():
    def total(weights):
        merged = ties(trees(), weights, density=DENSITY)
        return sum(jnp.sum(leaf.d**2) for leaf in merged.values())

    slope = jax.grad(total)(jnp.array([0.7, 1.3, 0.4]))
    assert bool(jnp.isfinite(slope).all() & (slope > 1e-3).all())


# --- messages --------------------------------------------------------------------


def test_normalize_is_of_mergekit_alone():
    with pytest.raises(ValueError, match=r"ties: normalize is an option of .*mergekit"):
        ties(trees(), density=0.5, normalize=True)


def test_peft_needs_one_term_of_one_rank_and_names_every_other():
    message = (
        r"ties: conformance='peft' .* unlike 'bias' \(Delta\); 'first' \(rank 2, rank "
        r"1\)\. Merge changes with conformance='peft_svd' or 'paper'\."
    )
    other = dict(trees()[0])
    other["first"] = lrk.LowRank(PARAMS["first"], jnp.ones((4, 1)), jnp.ones((1, 3)))
    with pytest.raises(ValueError, match=message):
        ties([trees()[0], other], density=0.5, conformance="peft")


def test_peft_refuses_two_terms_of_one_tree():
    twice = dict(trees(False)[0])
    twice["first"] = lrk.LowRank(twice["first"], jnp.ones((4, 2)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"unlike 'first' \(rank 2, rank 2\)"):
        ties([twice], density=0.5, conformance="peft")
