"""Intrinsic dimension from scores, by bisection, and of a problem where it is known."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from tests.untyped import untyped

measure = lrk.subspace.intrinsic_dimension
DS = (100, 200, 400)
RISING = [[0.5, 0.7], [0.85, 0.75], [0.95, 0.97]]


def test_lines_between_means_cross_the_threshold():
    found = measure(DS, RISING, 1.0)
    assert found.threshold == 0.9
    assert found.tested == 400
    assert found.interpolated == pytest.approx(200 + 200 * (0.9 - 0.8) / (0.96 - 0.8))
    assert measure(DS, np.mean(RISING, axis=1), 1.0).interpolated == found.interpolated


def test_the_share_and_both_baselines():
    both = lrk.subspace.local_and_overall(DS, RISING, [0.8, 0.9], share=0.8)
    assert both.local.threshold == pytest.approx(0.8 * 0.85)
    assert both.overall.threshold == 0.8
    assert (both.local.tested, both.overall.tested) == (200, 200)
    assert both.overall.interpolated == 200
    assert both.local.interpolated == pytest.approx(100 + 100 * 0.08 / 0.2)


def test_out_of_reach_and_reached_at_once():
    low = measure(DS, RISING, 1.2)
    assert (low.tested, low.interpolated, low.high) == (math.inf,) * 3
    high = measure(DS, RISING, 0.5)
    assert (high.tested, high.interpolated) == (100, 100)


def test_the_first_crossing_counts():
    found = measure((1, 2, 3, 4), [0.0, 0.95, 0.5, 1.0], 1.0)
    assert found.tested == 2
    assert found.interpolated == pytest.approx(1 + 0.9 / 0.95)


def enumerated(ds, scores, baseline, share=0.9):
    """Every ordered resample of the seeds, each as probable as any other."""
    table = np.asarray(scores, float)
    n = table.shape[1]
    found = []
    for pick in np.ndindex(*[n] * n):
        mean, base = (
            table[:, pick].mean(axis=1),
            np.asarray(baseline)[list(pick)].mean(),
        )
        found.append(measure(ds, mean, float(base), share=share).interpolated)
    return np.sort(found)


def test_interval_is_that_of_all_resamples():
    table = np.array([[0.5, 0.7, 0.6], [0.85, 0.75, 0.95], [0.95, 0.97, 0.99]])
    direct = [0.97, 0.99, 0.98]
    values = enumerated(DS, table, direct)
    for level in (0.5, 0.9):
        found = measure(DS, table, direct, level=level)
        at = [math.ceil(27 * p - 1e-9) - 1 for p in ((1 - level) / 2, (1 + level) / 2)]
        assert [found.low, found.high] == pytest.approx([values[i] for i in at])
        assert found.low <= found.interpolated <= found.high


def test_many_seeds_are_resampled_from_a_seed():
    draw = np.asarray(jax.random.normal(jax.random.key(0), (3, 12)))
    table = np.array([0.5, 0.8, 0.95])[:, None] + 0.02 * draw
    found, same = (measure(DS, table, 1.0) for _ in range(2))
    assert found == same
    assert found.low < found.interpolated < found.high
    spread = measure(DS, table, 1.0, level=0.5)
    assert found.low <= spread.low < spread.high <= found.high


def test_one_seed_has_no_spread():
    found = measure(DS, [[x[0]] for x in RISING], 1.0)
    assert found.low == found.interpolated == found.high


@pytest.mark.parametrize("answer", [101, 137, 250, 399])
def test_bisection_finds_the_neighbours(answer):
    calls = []

    def score(d):
        calls.append(d)
        return float(d >= answer)

    found = lrk.subspace.bisect(score, 100, 400, 0.5, ratio=1.1)
    assert found.below < answer <= found.reached <= math.ceil(1.1 * found.below) + 1
    assert found.scores == {d: float(d >= answer) for d in calls}
    assert len(calls) == len(set(calls)) <= 2 + math.ceil(math.log2(math.log(4, 1.1)))


def test_bisection_of_what_lies_outside():
    found = lrk.subspace.bisect(lambda d: d, 10, 20, 5.0)
    assert (found.below, found.reached, list(found.scores)) == (None, 10, [10])
    found = lrk.subspace.bisect(lambda d: d, 10, 20, 50.0)
    assert (found.below, found.reached, list(found.scores)) == (20, None, [10, 20])


def test_bisection_ends_at_single_numbers():
    found = lrk.subspace.bisect(lambda d: d, 1, 8, 3.0, ratio=1.001)
    assert (found.below, found.reached) == (2, 3)


def best(place, trainable, rate, _key, wanted):
    """`exp(-loss)` where ten blocks should sum to 1, ..., 10, at the optimum."""

    def gaps(z):
        theta = lrk.materialize(place({"subspace": {"z": z}}))["theta"]
        return theta.reshape(10, -1).sum(axis=1) - wanted

    z = trainable["subspace"]["z"]
    z = z - jnp.linalg.pinv(jax.jacobian(gaps)(z)) @ gaps(z)
    return jnp.exp(-jnp.sum(jnp.square(gaps(z)))) + 0 * rate


@pytest.mark.parametrize("name", ["dense", "sparse", "fastfood"])
def test_the_toy_problem_has_ten_dimensions(name):
    """Li et al., section 2: of 1,000 numbers, ten blocks must sum to 1, ..., 10."""
    ds = (7, 8, 9, 10, 11, 12)
    found = lrk.subspace.sweep(
        best,
        {"theta": jnp.zeros(1000)},
        getattr(lrk.subspace, name)(),
        ds,
        rates=(1.0,),
        seeds=range(4),
        data=jnp.arange(1.0, 11.0),
    )
    scores = found.scores[:, 0]
    assert measure(ds, scores, 1.0).tested == 10
    assert (scores[3:] > 0.999).all()
    assert scores[2].mean() < 0.9


# Messages


def test_refuses_scores_that_do_not_fit():
    with pytest.raises(ValueError, match=r"ds \[2, 1\]: expected increasing"):
        measure((2, 1), [0.1, 0.2], 1.0)
    with pytest.raises(ValueError, match=r"scores of shape \(3,\): expected .* d=2"):
        measure((1, 2), [0.1, 0.2, 0.3], 1.0)
    with pytest.raises(ValueError, match=r"baseline of shape \(1, 1\)"):
        measure((1, 2), [0.1, 0.2], [[1.0]])
    for ds in ((-1, 1), (1, math.inf)):
        with (
            untyped(),
            pytest.raises(ValueError, match=r"ds \[.*\]: expected .* at least 0"),
        ):
            measure(ds, [0.1, 0.2], 1.0)
    match = r"wrong scores \[0\.3, nan\] at d=2: expected finite numbers"
    with pytest.raises(ValueError, match=match):
        measure((1, 2), [[0.1, 0.2], [0.3, math.nan]], 1.0)
    with pytest.raises(ValueError, match=r"baseline \[0\.9, inf\]: expected finite"):
        measure((1, 2), [0.1, 0.2], [0.9, math.inf])
    with pytest.raises(ValueError, match=r"share=0\.0, level=1\.5"):
        measure((1, 2), [0.1, 0.2], 1.0, share=0.0, level=1.5)
    with pytest.raises(ValueError, match=r"ds \[-1, 1\]: expected increasing"):
        measure((-1, 1), [0.1, 0.2], 1.0)
    with pytest.raises(ValueError, match="baseline of mean -0.5: expected one above 0"):
        measure((1, 2), [-0.9, -0.4], [-0.6, -0.4])
    with pytest.raises(TypeError, match=r"scores must be numbers, got \['a', 'b'\]"):
        measure((1, 2), ["a", "b"], 1.0)
    with pytest.raises(TypeError, match="scores must be numbers, got list"):
        measure((1, 2), [[0.1, 0.2], [0.3]], 1.0)


def test_bisection_refuses_ends_and_scores():
    with pytest.raises(ValueError, match="got low=5, high=5"):
        lrk.subspace.bisect(float, 5, 5, 1.0)
    with untyped(), pytest.raises(TypeError, match=r"high must be an int, got 5\.0"):
        lrk.subspace.bisect(float, 1, 5.0, 1.0)
    with pytest.raises(ValueError, match=r"ratio=1\.0"):
        lrk.subspace.bisect(float, 1, 5, 1.0, ratio=1.0)
    with pytest.raises(ValueError, match="a finite threshold, got nan"):
        lrk.subspace.bisect(float, 1, 5, math.nan)
    with pytest.raises(ValueError, match="the score at d=1 is NaN"):
        lrk.subspace.bisect(lambda _: math.nan, 1, 5, 1.0)
