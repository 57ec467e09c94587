"""Magnitude pruning: against NumPy and against PEFT."""

import numpy as np
import pytest

from lowrank.merging import magnitude
from tests.merging.signs import changes, compare, dense, options, stored, trees
from tests.reference import merging_signs as reference

WEIGHTS, DENSITY, *_ = options()


@pytest.mark.parametrize("conformance", ["peft", "peft_svd", "paper"])
def test_of_peft(conformance):
    kind = "magnitude_prune" + ("" if conformance == "peft" else "_svd")
    merged = magnitude(trees(False), WEIGHTS, density=DENSITY, conformance=conformance)
    compare(merged, stored(f"peft/{kind}"))


def test_is_the_sum_of_the_largest_entries_of_each_tensor():
    merged = magnitude(trees(), WEIGHTS, density=0.3, scale=-2.0)
    for path, got in changes(merged).items():
        own = [reference.trim(c[path], 0.3) for c in dense()]
        want = -2 * reference.weighted_sum(own, WEIGHTS)
        np.testing.assert_allclose(got, want, 2e-5, 5e-6)


def test_keeps_an_exact_number_of_entries():
    for density, kept in ((0.5, (2, 6, 7)), (0.01, (1, 1, 1))):
        found = changes(magnitude(trees()[:1], density=density))
        assert tuple(np.count_nonzero(x) for x in found.values()) == kept


def test_mergekit_has_no_such_merge():
    message = r"magnitude: conformance must be one of 'paper', 'peft', 'peft_svd', got"
    with pytest.raises(ValueError, match=message):
        magnitude(trees(), density=0.5, conformance="mergekit")
