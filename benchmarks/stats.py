"""Accuracy, macro F1, and intervals that say how far a number can be trusted.

All functions are NumPy, vectorised, and drawn from an explicit seed.
"""

import statistics
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

_CHUNK = 4_000_000  # drawn counts held at once


class Interval(NamedTuple):
    """A value with the ends of its interval."""

    value: float
    low: float
    high: float


class Difference(NamedTuple):
    """A paired difference `a - b`: interval, and share of resamples at or below 0."""

    difference: float
    low: float
    high: float
    share_not_positive: float


def generator(seed: int) -> np.random.Generator:  # noqa: TID251
    """Returns NumPy's generator of a seed: for statistics on the host, not models."""
    return np.random.default_rng(seed)  # noqa: TID251


def accuracy(predictions: ArrayLike, labels: ArrayLike) -> float:
    """Returns the share of predictions that equal their labels."""
    predictions, labels = _same_shape("accuracy", predictions, labels)
    return float(np.mean(predictions == labels))


def macro_f1(
    predictions: ArrayLike, labels: ArrayLike, *, classes: int | None = None
) -> float:
    """Mean of the classes' F1 scores, each class counting the same.

    `F1 = 2 TP / (2 TP + FP + FN)`, and 0 for a class that is never predicted right.

    Args:
        predictions: Class numbers `[n]`.
        labels: Class numbers `[n]`.
        classes: How many classes there are; None counts those that occur in either.

    Returns:
        A number in [0, 1].
    """
    predictions, labels = _same_shape("macro_f1", predictions, labels)
    occurring = np.union1d(predictions, labels)
    names = occurring if classes is None else np.arange(classes)
    if not np.isin(occurring, names).all():
        raise ValueError(
            f"macro_f1: class numbers out of range: expected 0 to {len(names) - 1}, "
            f"got up to {occurring.max()}. Raise classes."
        )
    predicted = predictions.ravel()[None] == names[:, None]
    actual = labels.ravel()[None] == names[:, None]
    true = (predicted & actual).sum(axis=1)
    total = predicted.sum(axis=1) + actual.sum(axis=1)
    return float(np.mean(2 * true / np.maximum(total, 1)))


def wilson(successes: int, n: int, *, level: float = 0.95) -> Interval:
    """Wilson's score interval of a proportion.

    The ends are the roots `p` of `|successes / n - p| = z sqrt(p (1 - p) / n)`.

    Args:
        successes: Number of successes, in [0, n].
        n: Number of trials, at least 1.
        level: Coverage, in (0, 1).

    Returns:
        The proportion and its interval, which lies in [0, 1].

    References:
        Wilson, Probable inference, the law of succession, and statistical inference,
        1927.
    """
    _check_level("wilson", level)
    if n < 1 or not 0 <= successes <= n:
        raise ValueError(
            f"wilson: expected 0 <= successes <= n with n >= 1, got {successes} of "
            f"{n}. Pass counts."
        )
    z = statistics.NormalDist().inv_cdf(0.5 + level / 2)
    p = successes / n
    centre = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    low = centre - half if successes > 0 else 0.0
    high = centre + half if successes < n else 1.0
    return Interval(p, low, high)


def bootstrap_interval(
    correct: ArrayLike, *, level: float = 0.95, resamples: int = 10_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a mean, over examples and over seeds.

    Args:
        correct: Scores per example: `[n]`, or `[seeds, n]` for the same examples under
            several seeds; then seeds and examples are both resampled (crossed).
        level: Coverage, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The mean and its interval.
    """
    scores = _scores("bootstrap_interval", correct)
    _check_level("bootstrap_interval", level)
    means = _resampled_means(scores, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(scores.mean()), float(low), float(high))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    *,
    level: float = 0.95,
    resamples: int = 10_000,
    seed: int = 0,
) -> Difference:
    """Bootstrap of the mean difference of two methods on the same examples.

    Args:
        a: Scores per example of one method, `[n]` or `[seeds, n]`.
        b: Scores of the other on the same examples (and seeds), of the same shape.
        level: Coverage, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        `mean(a) - mean(b)`, its percentile interval, and the share of resamples in
        which `a` is not better than `b`: small means that `a` is better.
    """
    first, second = _same_shape("paired_bootstrap", a, b)
    gaps = _scores("paired_bootstrap", first.astype(float) - second.astype(float))
    _check_level("paired_bootstrap", level)
    means = _resampled_means(gaps, resamples, seed)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    share = float(np.mean(means <= 1e-12))  # rounding of a mean of exact zeros
    return Difference(float(gaps.mean()), float(low), float(high), share)


def median_interval(
    values: ArrayLike, *, level: float = 0.95, resamples: int = 2_000, seed: int = 0
) -> Interval:
    """Percentile bootstrap interval of a median, nested where values are grouped.

    Args:
        values: `[n]`, or `[groups, n]`; then groups are resampled, and within each the
            values, and the statistic is the median of the groups' medians.
        level: Coverage, in (0, 1).
        resamples: Number of resamples.
        seed: Seed of the resampling.

    Returns:
        The median and its interval.
    """
    table = _scores("median_interval", values)
    _check_level("median_interval", level)
    groups, n = table.shape
    draws = generator(seed)
    rows = draws.integers(groups, size=(resamples, groups, 1))
    columns = draws.integers(n, size=(resamples, groups, n))
    medians = np.median(np.median(table[rows, columns], axis=2), axis=1)
    low, high = np.quantile(medians, [(1 - level) / 2, (1 + level) / 2])
    value = float(np.median(np.median(table, axis=1)))
    return Interval(value, float(low), float(high))


def _resampled_means(scores: np.ndarray, resamples: int, seed: int) -> np.ndarray:
    """Means of crossed resamples of `[seeds, n]` scores.

    Examples with the same column of scores are exchangeable, so only the counts of the
    distinct columns are drawn: exact, and a few columns where scores are 0 or 1.
    """
    seeds, n = scores.shape
    columns, counts = np.unique(scores, axis=1, return_counts=True)
    draws = generator(seed)
    means = np.empty(resamples)
    step = max(1, _CHUNK // (columns.shape[1] + seeds))
    for start in range(0, resamples, step):
        size = min(step, resamples - start)
        examples = draws.multinomial(n, counts / n, size=size)
        rows = draws.multinomial(seeds, np.full(seeds, 1 / seeds), size=size)
        totals = np.einsum("rs,sk,rk->r", rows, columns, examples, optimize=True)
        means[start : start + size] = totals / (seeds * n)
    return means


def _scores(who: str, values: ArrayLike) -> np.ndarray:
    """Checks scores and gives them two axes."""
    scores = np.asarray(values, dtype=float)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(
            f"{who}: expected scores of shape [n] or [seeds, n] with n >= 1, got shape "
            f"{scores.shape}. Pass one score per example."
        )
    if not np.isfinite(scores).all():
        raise ValueError(
            f"{who}: expected finite scores, got {int((~np.isfinite(scores)).sum())} "
            "that are not. Leave out or repair those examples."
        )
    return np.atleast_2d(scores)


def _same_shape(who: str, a: ArrayLike, b: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Checks that two arrays belong together."""
    first, second = np.asarray(a), np.asarray(b)
    if first.shape != second.shape or first.size == 0:
        raise ValueError(
            f"{who}: expected two arrays of one shape, not empty, got {first.shape} "
            f"and {second.shape}. Pass the same examples in the same order."
        )
    return first, second


def _check_level(who: str, level: float) -> None:
    """Checks a coverage."""
    if not 0 < level < 1:
        raise ValueError(f"{who}: expected level in (0, 1), got {level}. Try 0.95.")
