"""The same merges in NumPy float32, on weights that are formed first."""

from collections.abc import Callable, Sequence

import numpy as np

from benchmarks.speed._merging_methods import TRIMMED, Problem

NULL = 1e-5  # singular values below this share of the largest are rounding


def deltas(given: Problem) -> list[np.ndarray]:
    """Every weighted change, `[in, out]`."""
    pairs = zip(given.factors, given.weights, strict=True)
    return [np.float32(w) * (a @ b) for (a, b), w in pairs]


def _kept(s: np.ndarray) -> int:
    return int(np.sum(s > NULL * s[0]))


def svd(given: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Sum, decompose, truncate."""
    u, s, vt = np.linalg.svd(sum(deltas(given)), full_matrices=False)
    r = given.rank
    return u[:, :r], s[:r, None] * vt[:r]


def iso(given: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Sum, decompose, one singular value for all that are not zero."""
    u, s, vt = np.linalg.svd(sum(deltas(given)), full_matrices=False)
    k = _kept(s)
    return u[:, :k] * s[:k].mean(), vt[:k]


def tsv(given: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Decompose every change, orthogonalise the leading vectors of all."""
    left, values, right = [], [], []
    for d in deltas(given):
        u, s, vt = np.linalg.svd(d, full_matrices=False)
        left.append(u[:, : given.rank])
        values.append(s[: given.rank])
        right.append(vt[: given.rank])
    u, v = _polar(np.concatenate(left, 1)), _polar(np.concatenate(right, 0))
    return u * np.concatenate(values), v


def _polar(x: np.ndarray) -> np.ndarray:
    u, _, vt = np.linalg.svd(x, full_matrices=False)
    return u @ vt


def knots(given: Problem) -> tuple[np.ndarray, np.ndarray]:
    """Decompose all changes below one another, TIES of what is left of each."""
    stacked = np.concatenate([a @ b for a, b in given.factors], axis=0)
    u, s, vt = np.linalg.svd(stacked, full_matrices=False)
    k = _kept(s)
    parts = np.split(u[:, :k] * s[:k], len(given.factors), axis=0)
    weights = map(np.float32, given.weights)
    return _ties([w * x for w, x in zip(weights, parts, strict=True)]), vt[:k]


def _ties(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Keep the largest entries of each, elect signs, average what agrees."""
    x = np.stack([_trimmed(part) for part in parts])
    agree = np.sign(x) == np.sign(x.sum(0))
    agree &= x != 0
    return (x * agree).sum(0) / np.maximum(agree.sum(0), 1)


def _trimmed(x: np.ndarray) -> np.ndarray:
    size = np.abs(x)
    least = np.partition(size.ravel(), -int(TRIMMED * x.size))[-int(TRIMMED * x.size)]
    return np.where(size >= least, x, 0)


DENSE: dict[str, Callable[[Problem], tuple[np.ndarray, np.ndarray]]] = {
    "svd": svd,
    "knots": knots,
    "tsv": tsv,
    "iso": iso,
}
