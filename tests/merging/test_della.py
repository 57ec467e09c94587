"""DELLA: against published code given its masks, and in the mean over draws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.merging import della
from lowrank.merging._della import keep_probability
from tests.merging.signs import (
    compare,
    options,
    stored,
    stored_masks,
    trees,
    use_masks,
)
from tests.network import numbers
from tests.reference import merging_signs as reference
from tests.tolerances import assert_close

WEIGHTS, DENSITY, EPSILON, *_ = options()
KEY = jax.random.key(0)


# --- published code, given its masks ---------------------------------------------


def test_of_the_authors(monkeypatch):
    use_masks(monkeypatch, stored_masks("della/mask"))
    merged = della(trees(), WEIGHTS, density=DENSITY, epsilon=EPSILON, key=KEY)
    compare(merged, stored("della"))


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_of_mergekit(elect, normalize, monkeypatch):
    divided = elect if normalize is None else normalize
    kind = f"mergekit/della{'' if elect else '_linear'}/{int(divided)}"
    use_masks(monkeypatch, stored_masks(f"{kind}/mask"))
    merged = della(
        trees(),
        WEIGHTS,
        density=DENSITY,
        epsilon=EPSILON,
        key=KEY,
        elect=elect,
        conformance="mergekit",
        normalize=normalize,
    )
    compare(merged, stored(kind))


# --- probabilities ---------------------------------------------------------------


def test_probabilities_are_linear_in_the_rank_within_a_row():
    x = numbers(1, 3, 7)
    want = reference.della_probabilities(x, 0.5, 0.3)
    assert_close(keep_probability(jnp.asarray(x), 0.5, 0.3), want.astype(np.float32))
    assert np.allclose(want.mean(axis=1), 0.5)
    assert np.allclose([want.min(), want.max()], [0.2, 0.8])


def test_a_row_of_one_entry_stays_with_the_density():
    assert_close(
        keep_probability(jnp.ones((2, 1)), 0.4, 0.3), np.full((2, 1), 0.4, "f")
    )


def test_a_row_is_what_one_output_reads():
    w = jnp.zeros((3, 400))
    d = jnp.asarray([[1.0], [2.0], [3.0]]) * jnp.ones((3, 400))
    merged = della(
        [{"w": lrk.Delta(w, d)}], density=0.5, epsilon=0.49, key=KEY, elect=False
    )
    kept = np.asarray(merged["w"].d != 0).mean(axis=1)
    assert kept[0] < 0.05
    assert 0.4 < kept[1] < 0.6
    assert kept[2] > 0.95


def test_the_mean_over_draws_is_the_tree():
    w, d = jnp.zeros((4, 3)), jnp.asarray(numbers(2, 4, 3))
    keys = jax.random.split(jax.random.key(1), 4000)

    def change(key):
        tree = {"w": lrk.Delta(w, d)}
        return della([tree], density=0.4, epsilon=0.2, key=key)["w"].d

    found = jax.jit(jax.vmap(change))(keys)
    error = np.asarray(found.std(0)) / np.sqrt(len(keys))
    assert np.all(np.abs(np.asarray(found.mean(0) - d)) < 4 * error)
    assert np.all(error > 0)


# --- messages --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "epsilon"),
    [(0.5, 0.5), (0.1, 0.2), (0.9, 0.1), ([0.5, 0.9, 0.5], 0.2), (0.5, -0.1)],
)
def test_probabilities_outside_the_unit_interval_are_refused(density, epsilon):
    message = r"della: density - epsilon and density \+ epsilon must lie in \(0, 1\)"
    with pytest.raises(ValueError, match=message):
        della(trees(), density=density, epsilon=epsilon, key=KEY)


def test_epsilon_is_a_finite_number():
    with pytest.raises(ValueError, match="della: epsilon must be a finite number"):
        della(trees(), density=0.5, epsilon=float("nan"), key=KEY)


def test_needs_a_key():
    with pytest.raises(TypeError, match="missing .* argument: 'key'"):
        della(trees(), density=0.5)


def test_peft_has_no_such_merge():
    message = r"della: conformance must be one of 'paper', 'mergekit', got 'peft'"
    with pytest.raises(ValueError, match=message):
        della(trees(), density=0.5, key=KEY, conformance="peft")
