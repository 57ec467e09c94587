"""Statistics against closed forms and exhaustive enumeration."""

import itertools
import math

import numpy as np
import pytest

from benchmarks import stats


def test_accuracy_and_macro_f1_by_hand():
    predictions, labels = [0, 0, 1, 1, 2], [0, 1, 1, 1, 0]
    assert stats.accuracy(predictions, labels) == pytest.approx(3 / 5)
    # TP, FP, FN: class 0: 1, 1, 1; class 1: 2, 0, 1; class 2: 0, 1, 0
    expected = (2 / 4 + 4 / 5 + 0) / 3
    assert stats.macro_f1(predictions, labels) == pytest.approx(expected)
    with_absent = stats.macro_f1(predictions, labels, classes=4)
    assert with_absent == pytest.approx(expected * 3 / 4)


def test_macro_f1_refuses_classes_out_of_range():
    with pytest.raises(ValueError, match="macro_f1: class numbers out of range"):
        stats.macro_f1([0, 3], [0, 1], classes=3)


def test_arrays_of_different_shapes_are_refused():
    with pytest.raises(ValueError, match=r"accuracy: expected two arrays .* \(2,\)"):
        stats.accuracy([0, 1], [0, 1, 2])


def test_wilson_solves_its_equation_and_has_its_closed_ends():
    z = 1.959963984540054
    interval = stats.wilson(7, 20)
    for end in (interval.low, interval.high):
        assert abs(0.35 - end) == pytest.approx(z * math.sqrt(end * (1 - end) / 20))
    full = stats.wilson(10, 10)
    assert full.low == pytest.approx(10 / (10 + z * z))
    assert full.high == 1.0
    assert stats.wilson(0, 10).low == 0.0


@pytest.mark.parametrize(("successes", "n"), [(3, 2), (-1, 2), (0, 0)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="wilson: expected 0 <= successes <= n"):
        stats.wilson(successes, n)


def test_bootstrap_has_the_binomial_standard_error():
    correct = np.repeat([1, 0], [300, 100])
    interval = stats.bootstrap_interval(correct, resamples=20_000)
    error = math.sqrt(0.75 * 0.25 / 400)
    assert interval.value == 0.75
    assert interval.high - interval.low == pytest.approx(2 * 1.96 * error, rel=0.05)
    narrow = stats.bootstrap_interval(correct, level=0.5)
    assert narrow.high - narrow.low == pytest.approx(2 * 0.6745 * error, rel=0.1)


def test_bootstrap_over_seeds_and_examples_matches_enumeration():
    scores = np.array([[1.0, 0.0, 0.5], [0.0, 0.0, 2.0]])
    exact = [
        scores[np.ix_(rows, columns)].mean()
        for rows in itertools.product(range(2), repeat=2)
        for columns in itertools.product(range(3), repeat=3)
    ]
    drawn = stats._resampled_means(scores, 40_000, seed=1)
    for point in (0.2, 0.5, 0.8, 1.1):
        share = np.mean(np.array(exact) <= point)
        assert np.mean(drawn <= point) == pytest.approx(share, abs=0.012)
    assert set(np.round(drawn, 9)) == set(np.round(exact, 9))


def test_several_seeds_that_differ_widen_the_interval():
    correct = np.repeat([1, 0], [150, 50])
    same = stats.bootstrap_interval(np.stack([correct, correct]))
    assert same == stats.bootstrap_interval(correct)
    other = np.repeat([1, 0], [100, 100])
    differing = stats.bootstrap_interval(np.stack([correct, other]))
    assert differing.high - differing.low > 1.5 * (same.high - same.low)


def test_bootstrap_covers_the_truth_about_as_often_as_it_says():
    draws = stats.generator(0)
    samples = draws.random((200, 80)) < 0.6
    intervals = [stats.bootstrap_interval(s, resamples=400) for s in samples]
    covered = np.mean([i.low <= 0.6 <= i.high for i in intervals])
    assert 0.88 <= covered <= 0.99  # 0.95 within three standard errors, and rounding


def test_paired_bootstrap_is_exact_on_a_small_case():
    # differences 1, 1, 0, 0: a resample's mean is at most 0 with chance (1/2)^4
    result = stats.paired_bootstrap([1, 1, 0, 1], [0, 0, 0, 1], resamples=40_000)
    assert result.difference == 0.5
    assert result.share_not_positive == pytest.approx(1 / 16, abs=0.005)
    mirrored = stats.paired_bootstrap([0, 0, 0, 1], [1, 1, 0, 1])
    assert mirrored.difference == -0.5
    assert mirrored.share_not_positive == 1.0


def test_pairing_removes_what_both_share():
    draws = stats.generator(2)
    hard = draws.normal(size=500) * 10
    a, b = hard + 1 + draws.normal(size=500) * 0.1, hard
    result = stats.paired_bootstrap(a, b, resamples=500)
    assert 0.95 < result.low < result.high < 1.05
    assert result.share_not_positive == 0.0


def test_median_interval_matches_enumeration_and_nests():
    values = [1.0, 2.0, 4.0]
    exact = [np.median(s) for s in itertools.product(values, repeat=3)]
    interval = stats.median_interval(values, level=0.4, resamples=4_000)
    assert interval.value == 2.0
    assert (interval.low, interval.high) == tuple(np.quantile(exact, [0.3, 0.7]))
    nested = stats.median_interval([[1.0, 1.0], [2.0, 2.0], [9.0, 9.0]])
    assert nested == (2.0, 1.0, 9.0)


def test_draws_follow_the_seed():
    correct = stats.generator(0).normal(size=30)
    first = stats.bootstrap_interval(correct, seed=3)
    assert first == stats.bootstrap_interval(correct, seed=3)
    assert first != stats.bootstrap_interval(correct, seed=4)


def test_bad_scores_and_levels_are_refused():
    with pytest.raises(ValueError, match=r"bootstrap_interval: expected scores of sh"):
        stats.bootstrap_interval(np.zeros((2, 2, 2)))
    with pytest.raises(ValueError, match="expected finite scores, got 1"):
        stats.bootstrap_interval([1.0, np.nan])
    with pytest.raises(ValueError, match=r"expected level in \(0, 1\), got 95"):
        stats.wilson(1, 2, level=95)
