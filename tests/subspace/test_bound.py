"""`subspace.quantise` and `subspace.compression_bound`."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank.subspace._bound import _code_bits
from tests.network import numbers
from tests.reference import bound as reference
from tests.untyped import untyped

quantise, compression_bound = lrk.subspace.quantise, lrk.subspace.compression_bound
HEAD = 33.0  # the step, and which code


# Quantising


@pytest.mark.parametrize("levels", [2, 3, 4, 9, 256])
def test_rounds_to_the_nearest_level(levels):
    z = numbers(1, 50)
    found = quantise(jnp.asarray(z), levels)
    np.testing.assert_allclose(found.values, reference.rounded(z, levels), atol=1e-6)
    assert np.abs(found.values - z).max() <= found.step / 2 * (1 + 1e-5)
    assert set(found.codes.tolist()) <= set(range(levels))
    assert found.values.dtype == np.float32


def test_the_code_decodes_to_the_values():
    found = quantise(numbers(2, 30), 5)
    decoded = found.step * (found.codes - (found.levels - 1) / 2)
    assert np.array_equal(decoded.astype(np.float32), found.values)
    assert np.float32(found.step) == found.step  # 32 bits are enough


def test_odd_levels_have_a_zero_and_even_ones_have_none():
    z = np.array([-2.0, 1e-3, 2.0])
    assert quantise(z, 3).values.tolist() == [-2, 0, 2]
    assert quantise(z, 2).values.tolist() == [-2, 2, 2]
    assert quantise(z, 4).values[1] != 0


def test_zeros_stay_zeros():
    for levels in (2, 3):
        found = quantise(np.zeros(100, np.float32), levels)
        assert not found.values.any()
        assert found.bits < HEAD + 10  # one level only: next to nothing


def test_bits_are_those_of_the_shorter_code():
    even = quantise(np.linspace(-1, 1, 64), 64)
    assert even.bits == pytest.approx(HEAD + 64 * 6)
    skewed = np.zeros(64)
    skewed[0] = 1.0
    found = quantise(skewed, 5)
    want = reference.sequential_bits(found.codes, 5)
    assert found.bits == pytest.approx(HEAD + want, abs=1e-9)
    assert want < 64 * np.log2(5) / 3


def test_adaptive_bits_do_not_depend_on_the_order():
    codes = np.array([0, 2, 2, 1, 2, 2, 2, 2, 2, 2])
    own = _code_bits(codes, 3)
    assert own == pytest.approx(reference.sequential_bits(codes, 3))
    assert own == pytest.approx(reference.sequential_bits(codes[::-1], 3))


@pytest.mark.parametrize(("d", "levels"), [(1, 2), (4, 3), (6, 2)])
def test_codes_are_a_prior(d, levels):
    """Kraft: all codes of one length and both kinds together weigh at most one."""
    every = [np.array(c) for c in itertools.product(range(levels), repeat=d)]
    adaptive = sum(2 ** -reference.sequential_bits(c, levels) for c in every)
    assert adaptive == pytest.approx(1)
    total = sum(2 ** -(1 + _code_bits(c, levels)) for c in every)
    assert total <= 1


# Bounds


@pytest.mark.parametrize("error", [0.0, 0.003, 0.1, 0.5, 0.97, 1.0])
@pytest.mark.parametrize(("bits", "examples"), [(0, 50), (40.5, 1000), (2500, 50_000)])
def test_bound_is_the_inverse_of_the_relative_entropy(error, bits, examples):
    found = compression_bound(error, examples, bits, delta=0.01, choices=6)
    budget = reference.budget(bits, 6, 0.01, examples)
    assert found.budget == pytest.approx(budget, rel=1e-12)
    assert found.bound == pytest.approx(reference.largest(error, budget), abs=1e-9)
    assert error <= found.bound <= found.square_root <= 1
    if found.square_root < 1:
        assert found.square_root == pytest.approx(error + (budget / 2) ** 0.5)


def test_no_error_has_a_closed_form():
    """`kl(0 || p) = -ln(1 - p)`."""
    found = compression_bound(0.0, 200, 10.0, delta=0.05)
    assert found.bound == pytest.approx(1 - np.exp(-found.budget), abs=1e-12)


def test_bound_is_never_below_the_exact_binomial():
    """Chernoff's tail is above the true one, for the same share of delta."""
    for wrong, m, bits in ((0, 100, 5), (30, 300, 20), (140, 200, 12)):
        exact = reference.exact_binomial(wrong, m, 0.05 * 2.0**-bits)
        found = compression_bound(wrong / m, m, bits, delta=0.05).bound
        assert exact <= found < exact + 0.1


def test_more_bits_choices_and_certainty_cost_and_examples_help():
    base = {"error": 0.1, "examples": 10_000, "bits": 1000}
    found = compression_bound(**base).bound
    assert compression_bound(**(base | {"bits": 1100})).bound > found
    assert compression_bound(**base, choices=100).bound > found
    assert compression_bound(**base, delta=0.01).bound > found
    assert compression_bound(**(base | {"examples": 20_000})).bound < found
    # A choice among 2^k codes is k bits.
    paid = compression_bound(**(base | {"bits": 1007})).bound
    assert compression_bound(**base, choices=128).bound == pytest.approx(paid)


def test_a_vast_code_says_nothing():
    assert compression_bound(0.2, 100, 1e6).bound == 1.0
    assert compression_bound(0.2, 100, 1e6).square_root == 1.0


def test_grows_as_the_root_of_d_over_m():
    """With bits in proportion to d and no training error: O(sqrt(d / m))."""
    gaps = [
        compression_bound(0.3, 10**7, 2.0 * d, delta=0.5).square_root - 0.3
        for d in (1000, 4000)
    ]
    assert gaps[1] / gaps[0] == pytest.approx(2, rel=1e-3)


def test_fails_as_rarely_as_it_says():
    """Models of known error, the luckiest of them chosen: bounds hold together."""
    m, true, bits = 60, 0.3, 6
    drawn = jax.random.uniform(jax.random.key(0), (400, 2**bits, m)) < true
    luckiest = np.asarray(drawn.sum(axis=2).min(axis=1)) / m
    own = [compression_bound(float(x), m, bits, delta=0.2).bound for x in luckiest]
    assert np.mean(np.array(own) < true) <= 0.2
    assert luckiest.mean() < true - 0.1  # chosen: far below their true error
    # And not by a bound that says nothing.
    assert compression_bound(0.1, m, bits, delta=0.2).bound < 0.5


# Messages


def test_refuses_vectors_that_cannot_be_coded():
    for z, words in (
        ([], r"shape \(0,\)"),
        (np.ones((2, 2)), r"shape \(2, 2\)"),
        ([1.0, np.nan, np.inf], "with 2 entries that are not finite"),
    ):
        with pytest.raises(ValueError, match=words):
            quantise(z, 3)
    with pytest.raises(ValueError, match="levels must be at least 2, got 1"):
        quantise([1.0], 1)
    with untyped():
        with pytest.raises(TypeError, match=r"levels must be an int, got 3\.0"):
            quantise([1.0], 3.0)
        with pytest.raises(TypeError, match="z as an array of real numbers, got dict"):
            quantise({"subspace": {"z": [1.0]}}, 3)


def test_refuses_what_is_no_number():
    with (
        untyped(),
        pytest.raises(TypeError, match=r"got {'bits': Quantised\(.* pass \.bits"),
    ):
        compression_bound(0.1, 10, quantise([1.0], 3))


def test_refuses_numbers_out_of_range_together():
    with pytest.raises(ValueError, match=r"error=1\.5.*bits=-1.*choices=0"):
        compression_bound(1.5, 10, -1, choices=0)
    with pytest.raises(ValueError, match="error=nan"):
        compression_bound(float("nan"), 10, 1)
    with pytest.raises(ValueError, match=r"examples=0.*delta=1\.0"):
        compression_bound(0.5, 0, 1, delta=1.0)
    with pytest.raises(ValueError, match="bits=inf: expected a finite length"):
        compression_bound(0.5, 1, float("inf"))
