"""Model Breadcrumbs: against NumPy and against mergekit."""

import jax.numpy as jnp
import numpy as np
import pytest

from lowrank.merging import breadcrumbs
from lowrank.merging._breadcrumbs import middle_of_rows, middle_of_tensors
from tests.merging.signs import changes, compare, dense, options, stored, trees
from tests.network import numbers
from tests.reference import merging_signs as reference
from tests.tolerances import assert_close

WEIGHTS, DENSITY, _, GAMMA, _ = options()


@pytest.mark.parametrize("elect", [False, True])
@pytest.mark.parametrize("normalize", [None, False, True])
def test_of_mergekit(elect, normalize):
    merged = breadcrumbs(
        trees(),
        WEIGHTS,
        density=DENSITY,
        gamma=GAMMA,
        elect=elect,
        conformance="mergekit",
        normalize=normalize,
    )
    kind = f"breadcrumbs{'_ties' if elect else ''}/{int(bool(normalize))}"
    compare(merged, stored(f"mergekit/{kind}"))


def test_is_the_band_of_each_row():
    merged = breadcrumbs(trees(), WEIGHTS, density=0.4, gamma=0.34, scale=2.0)
    for path, got in changes(merged).items():
        own = [reference.breadcrumbs_of_rows(c[path], 0.4, 0.34) for c in dense()]
        want = 2 * reference.weighted_sum(own, WEIGHTS)
        np.testing.assert_allclose(got, want.reshape(got.shape), 2e-5, 5e-6)


@pytest.mark.parametrize("gamma", [0.0, 0.1, 0.6])
def test_density_and_outliers_that_do_not_fit(gamma):
    x = numbers(1, 2, 5)
    want = reference.breadcrumbs_of_rows(x, 0.7, gamma)
    found = middle_of_rows(jnp.asarray(x)[None, None], 0.7, gamma)[0, 0]
    assert_close(found, want.astype(np.float32))
    want = reference.breadcrumbs_of_mergekit(x, 0.7, gamma)
    found = middle_of_tensors(jnp.asarray(x)[None, None], 0.7, gamma)[0, 0]
    assert_close(found, want.astype(np.float32))
    assert np.count_nonzero(found) == 7


def test_one_density_for_each_tree():
    x = jnp.asarray(numbers(1, 2, 1, 2, 5))
    density = np.array([0.2, 0.6])
    for act in (middle_of_rows, middle_of_tensors):
        both = act(x, density, 0.2)
        for t, d in enumerate(density.tolist()):
            assert_close(both[t], act(x[t : t + 1], d, 0.2)[0])


@pytest.mark.parametrize("gamma", [-0.1, 1.0])
def test_gamma_is_a_share(gamma):
    with pytest.raises(ValueError, match=r"breadcrumbs: gamma must lie in \[0, 1\)"):
        breadcrumbs(trees(), density=0.5, gamma=gamma)
    with pytest.raises(ValueError, match="breadcrumbs: gamma must be a finite number"):
        breadcrumbs(trees(), density=0.5, gamma=float("nan"))


@pytest.mark.parametrize("name", ["elect", "normalize"])
def test_elections_are_of_mergekit_alone(name):
    with pytest.raises(
        ValueError, match=f"breadcrumbs: {name} is an option of .*merge"
    ):
        breadcrumbs(trees(), density=0.5, **{name: True})
