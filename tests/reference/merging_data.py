"""Merges that use data, in NumPy float64.

Fisher averaging: Matena and Raffel 2022. RegMean: Jin et al. 2023. Weights are dense
matrices `[n, m]` of which only the change over a shared base is given.
"""

import numpy as np


def fisher_mean(changes, fishers, weights, eps):
    """`sum w F D / sum w F`, with `F` over its mean in all tasks, plus `eps`."""
    changes, fishers = (
        np.asarray(changes, np.float64),
        np.asarray(fishers, np.float64),
    )
    level = fishers.mean() or 1.0
    top, bottom = np.zeros(changes.shape[1:]), np.zeros(changes.shape[1:])
    for w, d, f in zip(weights, changes, fishers, strict=True):
        top += w * (f / level + eps) * d
        bottom += w * (f / level + eps)
    return top / bottom


def softmax_fisher(x, w, labels):
    """Mean over examples of the squared gradient of `log softmax(x W)[label]`."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    total = np.zeros_like(w)
    for row, label in zip(x, labels, strict=True):
        p = np.exp(row @ w - np.max(row @ w))
        p /= p.sum()
        total += np.outer(row, np.eye(len(p))[label] - p) ** 2
    return total / len(x)


def expected_softmax_fisher(x, w):
    """The same, in the mean over labels drawn from the model."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    classes, total = w.shape[1], np.zeros_like(w)
    for row in x:
        p = np.exp(row @ w)
        p /= p.sum()
        for label in range(classes):
            total += p[label] * softmax_fisher(row[None], w, [label])
    return total / len(x)


def shrunk(gram, off_diagonal, ridge):
    """Off-diagonals made smaller, and a ridge relative to the mean of the diagonal."""
    gram = np.array(gram, np.float64)
    diagonal = np.diag(np.diag(gram))
    level = ridge * np.mean(np.diag(gram))
    return diagonal + off_diagonal * (gram - diagonal) + level * np.eye(len(gram))


def regmean(changes, grams, weights, off_diagonal, ridge):
    """`(sum w G)^-1 sum w G D`."""
    left, right = 0, 0
    for w, d, g in zip(weights, changes, grams, strict=True):
        own = w * shrunk(g, off_diagonal, ridge)
        left, right = left + own, right + own @ np.asarray(d, np.float64)
    return np.linalg.solve(left, right)
