"""DARE: against published code given its masks, and in the mean over draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import concat, dare
from lowrank.merging._dare import drop_by_density, drop_by_norm
from tests.merging.signs import (
    PARAMS,
    changes,
    compare,
    dense,
    golden,
    options,
    split_flat,
    stored,
    stored_masks,
    trees,
    use_masks,
)
from tests.reference import merging_signs as reference
from tests.untyped import untyped

WEIGHTS, DENSITY, _, _, TRIM = options()
KEY = jax.random.key(0)


# --- published code, given its masks ---------------------------------------------


@pytest.mark.parametrize("conformance", ["peft", "peft_svd"])
@pytest.mark.parametrize("elect", [False, True])
def test_of_peft(conformance, elect, monkeypatch):
    kind = "dare_ties" if elect else "dare_linear"
    kind += conformance.removeprefix("peft")
    use_masks(monkeypatch, stored_masks(f"peft/{kind}/mask"))
    merged = dare(
        trees(False),
        WEIGHTS,
        density=DENSITY,
        key=KEY,
        elect=elect,
        conformance=conformance,
    )
    compare(merged, stored(f"peft/{kind}"))


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_of_mergekit(elect, normalize, monkeypatch):
    kind = f"mergekit/dare_{'ties' if elect else 'linear'}/{int(bool(normalize))}"
    use_masks(monkeypatch, stored_masks(f"{kind}/mask"))
    merged = dare(
        trees(),
        WEIGHTS,
        density=DENSITY,
        key=KEY,
        elect=elect,
        conformance="mergekit",
        normalize=normalize,
    )
    compare(merged, stored(kind))


@pytest.mark.parametrize("trim", [None, TRIM])
def test_elected_goes_through_the_ties_of_its_authors(trim, monkeypatch):
    masks = [split_flat(mask) for mask in golden()["dare_ties/mask"]]
    use_masks(monkeypatch, lambda path, _, t: masks[t][path])
    merged = dare(trees(), density=DENSITY, key=KEY, elect=True, trim=trim)
    compare(merged, split_flat(golden()["dare_ties/merged"]))


def test_is_the_paper_given_a_mask(monkeypatch):
    masks = stored_masks("mergekit/dare_linear/0/mask")
    use_masks(monkeypatch, masks)
    density = [0.5, 0.25, 0.75]
    merged = dare(trees(), WEIGHTS, density=density, key=KEY, scale=3.0)
    for path, got in changes(merged).items():
        own = [
            reference.dare(c[path], masks(path, 0, t), density[t])
            for t, c in enumerate(dense())
        ]
        want = 3 * reference.weighted_sum(own, WEIGHTS)
        np.testing.assert_allclose(got, want, 2e-5, 5e-6)


# --- draws -----------------------------------------------------------------------


def test_the_mean_over_draws_is_the_weighted_sum():
    draws, density = 4000, 0.3
    u = jax.random.uniform(jax.random.key(3), (draws, 2, 2, 3))
    x = jnp.broadcast_to(jnp.arange(1.0, 7.0).reshape(1, 2, 3), (2, 2, 3))
    found = jax.vmap(lambda u: drop_by_density(x, density, u))(u)
    error = np.asarray(x) * np.sqrt((1 - density) / density / draws)
    assert np.all(np.abs(np.asarray(found.mean(0)) - x) < 4 * error)
    assert np.all(np.asarray(jnp.std(found, 0)) > 10 * error)


def test_the_mean_of_merged_trees_is_the_exact_merge():
    keys = jax.random.split(jax.random.key(1), 2000)

    def change(key):
        merged = dare(trees(), WEIGHTS, density=0.5, key=key)
        return {path: merged[path].d for path in PARAMS}

    found = jax.jit(jax.vmap(change))(keys)
    want = changes(concat(trees(), WEIGHTS))
    for path, x in found.items():
        error = np.asarray(x.std(0)) / np.sqrt(len(keys))
        off = np.abs(np.asarray(x.mean(0)) - want[path].T)
        assert np.all(off < 4.5 * error), path
        assert np.all(error > 0), path


def test_the_norm_is_kept_and_nothing_is_divided_by_zero():
    x = jnp.stack([jnp.ones((1, 2, 3)), jnp.zeros((1, 2, 3)), -jnp.ones((1, 2, 3))])
    u = jnp.zeros((3, 1, 2, 3)).at[0, 0, 0].set(0.9).at[2].set(0.9)
    found = drop_by_norm(x, 0.5, u)
    assert found[0, 0].tolist() == [[0, 0, 0], [2, 2, 2]]
    assert not found[1:].any()


def test_what_is_dropped_depends_on_key_path_and_place_alone():
    w = {p: jnp.zeros((8, 8)) for p in ("v", "w")}
    ones = {p: lrk.Delta(x, jnp.ones((8, 8))) for p, x in w.items()}

    def kept(own, key=KEY, path="w"):
        return np.asarray(dare(own, density=0.5, key=key)[path].d)

    one = kept([ones])
    assert np.array_equal(one, kept([ones]))
    assert np.array_equal(one, kept([{"w": ones["w"]}]))
    assert np.array_equal(one, kept([ones, w]))
    others = [kept([ones], jax.random.key(1)), kept([ones], path="v"), kept([w, ones])]
    assert all(0.2 < np.mean(one != other) < 0.8 for other in others)


def test_the_factors_of_one_leaf_are_dropped_apart():
    w = jnp.zeros((8, 8))
    tree = {"w": lrk.LowRank(w, jnp.ones((8, 8)), jnp.ones((8, 8)))}
    merged = dare([tree], density=0.5, key=KEY, conformance="peft")["w"]
    assert 0.2 < np.mean((merged.a != 0) != (merged.b != 0)) < 0.8


# --- messages --------------------------------------------------------------------


def test_needs_a_key():
    with pytest.raises(TypeError, match="missing .* argument: 'key'"):
        dare(trees(), density=0.5)
    with untyped(), pytest.raises(TypeError, match="dare: expected one random key"):
        dare(trees(), density=0.5, key=jnp.zeros(3))
    message = r"dare: .* got NoneType\. Call dare\(trees, \.\.\., key=jax"
    with untyped(), pytest.raises(TypeError, match=message):
        dare(trees(), density=0.5, key=None)


def test_trim_is_of_an_election_as_in_the_paper():
    with pytest.raises(ValueError, match=r"dare: trim is a part .* Pass elect=True"):
        dare(trees(), density=0.5, key=KEY, trim=0.2)
    with pytest.raises(ValueError, match=r"dare: trim is an option of .*'paper'"):
        dare(trees(), density=0.5, key=KEY, trim=0.2, elect=True, conformance="peft")
    with pytest.raises(ValueError, match=r"dare: trim must be a number in \(0, 1\]"):
        dare(trees(), density=0.5, key=KEY, trim=0.0, elect=True)


def test_normalize_is_of_mergekit_alone():
    with pytest.raises(ValueError, match=r"dare: normalize is an option of .*mergekit"):
        dare(trees(), density=0.5, key=KEY, normalize=False)
