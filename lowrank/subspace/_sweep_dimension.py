"""Intrinsic dimension from the scores of a sweep, and by bisection."""

import itertools
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from lowrank.subspace._projection import check_dimension, is_real

_WHO = "subspace.intrinsic_dimension"
_EXACT = 7  # seeds up to which all resamples are gone through: 1,716 of them
_RESAMPLES = 10_000


class IntrinsicDimension(NamedTuple):
    """The number of dimensions that reach a share of a baseline.

    Attributes:
        tested: The smallest tested `d` whose mean score reaches the threshold; infinite
            if none does. The number that is usually published.
        interpolated: Where straight lines through the mean scores first reach it; the
            smallest tested `d` if that one does already, and infinite if none does.
        low: Lower end of the bootstrap interval of `interpolated`, over seeds.
        high: Upper end; infinite if some resamples never reach the threshold.
        threshold: `share` times the mean baseline.

    Example:
        >>> lrk.subspace.intrinsic_dimension([1, 3], [0.5, 1.0], 1.0).threshold
        0.9
    """

    tested: float
    interpolated: float
    low: float
    high: float
    threshold: float


class Baselines(NamedTuple):
    """One measurement by two baselines.

    Attributes:
        local: By the scores of training all weights of this model.
        overall: By one number for all models of a task.

    Example:
        >>> lrk.subspace.Baselines._fields
        ('local', 'overall')
    """

    local: IntrinsicDimension
    overall: IntrinsicDimension


def intrinsic_dimension(
    ds: Sequence[int],
    scores: Any,
    baseline: Any,
    *,
    share: float = 0.9,
    level: float = 0.95,
    seed: int = 0,
) -> IntrinsicDimension:
    """The smallest `d` whose score is a share of a baseline, with an interval.

    Args:
        ds: Tested dimensions, increasing.
        scores: Scores, higher is better: `[d]`, or `[d, seed]`. The mean over seeds
            counts.
        baseline: A number, or the scores of other runs, such as direct training of all
            weights: `[seed]`, whose mean counts.
        share: Share of the baseline that must be reached: 0.9 for d90.
        level: Coverage of the interval, in (0, 1).
        seed: Seed of the resampling. Up to 7 seeds have so few resamples that all are
            gone through, and nothing is drawn.

    Returns:
        The dimension, tested and interpolated. A baseline with as many values as there
        are seeds is resampled with them, pairwise; any other counts as fixed. With
        three seeds an interval is little more than the range over seeds.

    Raises:
        TypeError: If `ds`, `scores` or `baseline` is not made of numbers.
        ValueError: If the dimensions do not increase, shapes do not fit, a score is not
            finite, the mean baseline is not positive, so that no share of it is below
            it, or `share` or `level` is out of range.

    Example:
        >>> scores = [[0.5, 0.6], [0.8, 0.9], [0.95, 0.95]]
        >>> found = lrk.subspace.intrinsic_dimension([100, 200, 300], scores, 1.0)
        >>> found.tested, round(found.interpolated, 6)
        (300, 250.0)

    Notes:
        Li et al. report final and not best scores, the smallest tested `d` on a grid
        that is finer near the answer, and two baselines without saying which: see
        `local_and_overall`.

    References:
        Li et al., 2018, arXiv:1804.08838: section 2.2 (d_int90).
    """
    dims, table, base = _checked(ds, scores, baseline, share, level)
    n = table.shape[1]
    paired = base if base.size == n else np.full(n, base.mean())

    def crossing(weights: np.ndarray) -> np.ndarray:
        return _crossings(dims, weights @ table.T, share * (weights @ paired))

    threshold = share * float(base.mean())
    reached = np.flatnonzero(table.mean(axis=1) >= threshold)
    tested = dims[reached[0]].item() if reached.size else math.inf
    middle = float(crossing(np.full((1, n), 1 / n))[0])
    weights, chances = _resamples(n, seed)
    low, high = _quantiles(
        crossing(weights), chances, ((1 - level) / 2, (1 + level) / 2)
    )
    return IntrinsicDimension(tested, middle, low, high, threshold)


def local_and_overall(
    ds: Sequence[int],
    scores: Any,
    direct: Any,
    *,
    best: float = 1.0,
    share: float = 0.9,
    level: float = 0.95,
    seed: int = 0,
) -> Baselines:
    """The intrinsic dimension by both baselines that are in use.

    Published numbers mix them: a share of what *this* model reaches when all its
    weights train, and a share of one number for all models of the task.

    Args:
        ds: Tested dimensions, increasing.
        scores: `[d]` or `[d, seed]`.
        direct: The local baseline: scores of direct training, a number or `[seed]`.
        best: The overall baseline: 1.0 for MNIST, 0.5 for CIFAR-10 in Li et al.
        share: Share that must be reached.
        level: Coverage of the intervals.
        seed: Seed of the resampling.

    Returns:
        Both measurements.

    Example:
        >>> found = lrk.subspace.local_and_overall([1, 2, 3], [0.8, 0.85, 0.95], 0.9)
        >>> found.local.tested, found.overall.tested
        (2, 3)

    References:
        Li et al., 2018, arXiv:1804.08838: table 1, and the authors' notebooks, where
        the baseline of MNIST is the accuracy of direct training or 1.
    """
    options: Any = {"share": share, "level": level, "seed": seed}
    return Baselines(
        intrinsic_dimension(ds, scores, direct, **options),
        intrinsic_dimension(ds, scores, best, **options),
    )


class Bracket(NamedTuple):
    """Two neighbours of a grid of dimensions with the threshold between them.

    Attributes:
        below: The largest tested `d` of the bracket that misses the threshold; None if
            even the lowest reaches it.
        reached: The smallest that reaches it; None if not even the highest does.
        scores: All that was tested.

    Example:
        >>> lrk.subspace.Bracket(100, 107, {100: 0.89, 107: 0.91}).reached
        107
    """

    below: int | None
    reached: int | None
    scores: dict[int, float]


def bisect(
    score: Callable[[int], float],
    low: int,
    high: int,
    threshold: float,
    *,
    ratio: float = 1.05,
) -> Bracket:
    """Narrow the dimension that reaches a threshold, on a geometric grid.

    The grid is `low * ratio**k`, rounded, up to `high`. It does not depend on scores,
    so that repeated searches meet the same dimensions.

    Args:
        score: The score at a dimension; called once for each `d`, about
            `2 + log2(log(high / low) / log(ratio))` times. Keep results that are dear:
            a loop on the host calls it.
        low: A dimension that is expected to miss the threshold, at least 1.
        high: One that is expected to reach it, above `low`.
        threshold: The score to reach.
        ratio: Ratio of neighbours, above 1: the resolution of the answer.

    Returns:
        Neighbours `below` and `reached`. Where scores do not rise with `d` throughout,
        there are several such pairs, and this is one of them.

    Raises:
        TypeError: If `low` or `high` is no int.
        ValueError: If `low`, `high` or `ratio` is out of range, `threshold` is not
            finite, or a score is NaN.

    Example:
        >>> found = lrk.subspace.bisect(lambda d: d / 1000, 100, 900, 0.5, ratio=1.1)
        >>> found.below, found.reached, len(found.scores)
        (459, 505, 7)
    """
    low = check_dimension("subspace.bisect", low, "low")
    high = check_dimension("subspace.bisect", high, "high")
    if not low < high or not ratio > 1:
        raise ValueError(
            "subspace.bisect: expected low < high and ratio > 1, got "
            f"low={low}, high={high}, ratio={ratio}."
        )
    if not math.isfinite(threshold):
        raise ValueError(
            f"subspace.bisect: expected a finite threshold, got {threshold}. Pass a "
            "share of the baseline's score."
        )
    steps = math.ceil(math.log(high / low) / math.log(ratio))
    grid = sorted({min(high, round(low * ratio**k)) for k in range(steps)} | {high})
    scores: dict[int, float] = {}

    def reaches(i: int) -> bool:
        scores[grid[i]] = float(score(grid[i]))
        if math.isnan(scores[grid[i]]):
            raise ValueError(
                f"subspace.bisect: the score at d={grid[i]} is NaN: expected a number. "
                "Lower the learning rate."
            )
        return scores[grid[i]] >= threshold

    first, last = 0, len(grid) - 1
    if reaches(first):
        return Bracket(None, grid[first], scores)
    if not reaches(last):
        return Bracket(grid[last], None, scores)
    while last - first > 1:
        middle = (first + last) // 2
        if reaches(middle):
            last = middle
        else:
            first = middle
    return Bracket(grid[first], grid[last], scores)


def _crossings(dims: np.ndarray, curves: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Where each of `[n, d]` curves first reaches its level, by straight lines."""
    above = curves >= levels[:, None]
    right = np.argmax(above, axis=1)
    left = np.maximum(right - 1, 0)
    rows = np.arange(len(curves))
    rise = curves[rows, right] - curves[rows, left]
    share = np.where(right > left, (levels - curves[rows, left]), 0.0)
    share = share / np.where(rise > 0, rise, 1.0)
    found = dims[left] + share * (dims[right] - dims[left])
    return np.where(above.any(axis=1), found, np.inf)


def _resamples(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Weights of `n` seeds in resamples `[m, n]`, and how probable each one is."""
    if n <= _EXACT:
        picks = list(itertools.combinations_with_replacement(range(n), n))
        counts = np.array([[Counter(pick)[i] for i in range(n)] for pick in picks])
        ways = [
            math.factorial(n) / math.prod(math.factorial(c) for c in row)
            for row in counts.tolist()
        ]
        return counts / n, np.array(ways) / n**n
    drawn = jax.random.randint(jax.random.key(seed), (_RESAMPLES, n), 0, n)
    counts = np.stack([(np.asarray(drawn) == i).sum(axis=1) for i in range(n)], axis=1)
    return counts / n, np.full(_RESAMPLES, 1 / _RESAMPLES)


def _quantiles(
    values: np.ndarray, chances: np.ndarray, levels: tuple[float, float]
) -> tuple[float, float]:
    """The smallest values whose cumulative probability reaches each level."""
    order = np.argsort(values)
    total = np.cumsum(chances[order])
    places = [int(np.searchsorted(total, p - 1e-12)) for p in levels]
    low, high = (float(values[order][min(i, len(values) - 1)]) for i in places)
    return low, high


def _numbers(name: str, values: Any) -> np.ndarray:
    """An argument as an array.

    Raises:
        TypeError: If it is not made of numbers.
    """
    hint = "Pass one leaf of Sweep.scores, at one rate."
    try:
        found = np.asarray(values)
    except ValueError as error:
        kind = type(values).__name__
        raise TypeError(
            f"{_WHO}: {name} must be numbers, got {kind}. {hint}"
        ) from error
    if not is_real(found):
        raise TypeError(f"{_WHO}: {name} must be numbers, got {values!r}. {hint}")
    return found


def _checked(
    ds: Sequence[int], scores: Any, baseline: Any, share: float, level: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Dimensions, scores `[d, seed]` and baseline as arrays.

    Raises:
        TypeError: If one of them is not made of numbers.
        ValueError: If they do not fit each other.
    """
    dims = _numbers("ds", ds)
    table = _numbers("scores", scores).astype(np.float64)
    base = _numbers("baseline", baseline).astype(np.float64)
    wrong = []
    if not _rising(dims):
        wrong.append(f"ds {dims.tolist()}: expected increasing dimensions, at least 0")
    if table.ndim not in (1, 2) or table.shape[:1] != dims.shape or table.size == 0:
        wrong.append(
            f"scores of shape {table.shape}: expected [d] or [d, seed] with "
            f"d={dims.size}"
        )
    if base.ndim > 1 or base.size == 0:
        wrong.append(f"baseline of shape {base.shape}: expected a number or [seed]")
    if not (np.isfinite(table).all() and np.isfinite(base).all()):
        wrong.append(f"{_not_finite(dims, table, base)}: expected finite numbers")
    if base.size and base.mean() <= 0:
        wrong.append(f"baseline of mean {base.mean():g}: expected one above 0")
    if not (share > 0 and 0 < level < 1):
        wrong.append(f"share={share}, level={level}: expected share > 0, 0 < level < 1")
    if wrong:
        raise ValueError(f"{_WHO}: wrong {'; '.join(wrong)}. Pass one sweep's scores.")
    return dims, table.reshape(len(dims), -1), base.reshape(-1)


def _rising(dims: np.ndarray) -> bool:
    """Whether dimensions are finite, at least 0 (the start), and increase."""
    if dims.ndim != 1 or dims.size == 0 or not np.isfinite(dims).all():
        return False
    return bool(dims[0] >= 0 and (np.diff(dims) > 0).all())


def _not_finite(dims: np.ndarray, table: np.ndarray, base: np.ndarray) -> str:
    """Where numbers are not finite."""
    bad = [] if np.isfinite(base).all() else [f"baseline {base.tolist()}"]
    if table.shape[:1] != dims.shape:
        return "; ".join([*bad, "scores"])
    for d, own in zip(dims.tolist(), table, strict=True):
        if not np.isfinite(own).all():
            bad.append(f"scores {own.tolist()} at d={d}")
    return "; ".join(bad)
