"""Merges of adapters from their equations, in float64 and in plain matrices.

An adapter is `(scale, a, b)` with `a: [n, r]`, `b: [r, m]`; its delta is `scale a b`.
"""

import numpy as np


def delta(adapter):
    """What one adapter adds: `s A B`."""
    scale, a, b = (np.asarray(x, np.float64) for x in adapter)
    return scale * (a @ b)


def task_arithmetic(adapters, weights, scale=1.0):
    """Ilharco et al. 2022: the scaled sum of what is added."""
    return scale * sum(w * delta(x) for w, x in zip(weights, adapters, strict=True))


def linear(adapters, weights):
    """PEFT's `linear`: both factors summed, each with the root of weight times scale.

    All `T^2` products are written out: the own ones and the cross terms.
    """
    total = 0.0
    for w, (s, a, _) in zip(weights, adapters, strict=True):
        for v, (t, _, b) in zip(weights, adapters, strict=True):
            root = np.sign(w * s) * np.sqrt(abs(w * s)) * np.sqrt(abs(v * t))
            total = total + root * (np.asarray(a, np.float64) @ np.asarray(b))
    return total


def svd(x, rank):
    """Eckart and Young 1936: the nearest matrix of a rank, from the dense SVD."""
    u, s, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def discarded_energy(x, rank):
    """Squared relative error of that, `sum_{i > r} s_i^2 / sum_i s_i^2`."""
    return np.sum((x - svd(x, rank)) ** 2) / np.sum(np.square(x))


def units(adapters, weights):
    """Rank-one units as vectors `(a_i, b_i)`, the root of `w s` on both sides."""
    found = []
    for w, (s, a, b) in zip(weights, adapters, strict=True):
        root = np.sqrt(abs(w * s))
        for column, row in zip(np.asarray(a, np.float64).T, b, strict=True):
            found.append(np.concatenate([np.sign(w * s) * root * column, root * row]))
    return np.array(found)


def lego(units, clusters, inputs, scale):
    """The sum of the clusters' means at the mean length of their members, times scale.

    Args:
        units: `[N, n + m]`.
        clusters: Lists of the indices of the units in each cluster.
        inputs: `n`.
        scale: The second reweighting.
    """
    total = 0.0
    for members in clusters:
        own = units[members]
        mean = own.mean(axis=0)
        mean = mean * np.mean([np.linalg.norm(u) for u in own]) / np.linalg.norm(mean)
        total = total + np.outer(mean[:inputs], mean[inputs:])
    return scale * total


def cosine(x, y):
    """Cosine of two arrays as vectors."""
    return np.sum(x * y) / np.sqrt(np.sum(x**2) * np.sum(y**2))


def principal_cosines(a1, a2):
    """Cosines of the principal angles of two column spaces, from their projectors."""
    one, two = (a @ np.linalg.pinv(np.asarray(a, np.float64)) for a in (a1, a2))
    return np.linalg.svd(one @ two, compute_uv=False)


def sign_conflict(x, y):
    """Share of the entries that are not zero in either where the signs differ."""
    pairs = [(p, q) for p, q in zip(x.flat, y.flat, strict=True) if p != 0 and q != 0]
    return sum(p * q < 0 for p, q in pairs) / max(1, len(pairs))


def slope(fn, at, step=1e-6):
    """Central differences of a function of a vector."""
    at = np.asarray(at, np.float64)
    ends = [(fn(at + step * e), fn(at - step * e)) for e in np.eye(len(at))]
    return np.array([(up - down) / (2 * step) for up, down in ends])
