"""Placement of rows and signs of columns, by brute force in NumPy float64.

From the equations, after Chen et al., DATE 2017, as later work has them: row `r` of the
weight on row `q` of the crossbar costs `C[r, q] = sum_j omega[r, j] (w_hat[r, q, j] -
w[r, j])^2`. A cell that is asked for `G` has `max(gain G + offset, 0)`. With `x = w /
s`, `s` the largest magnitude of a column, `t+ = relu(x)` and `t- = relu(-x)`, a weight
is read back as `s (G+ - G-) / (g_max - g_min)`.
"""

import itertools

import numpy as np


def read_back(x, gain, offset, g_min, g_max, levels=None):
    """One weight over its scale, from two cells `(plus, minus)`."""
    span, g = g_max - g_min, []
    for side, t in enumerate((max(x, 0.0), max(-x, 0.0))):
        if levels is not None:
            t = round(t * (levels - 1)) / (levels - 1)
        g.append(max(gain[side] * (g_min + span * t) + offset[side], 0.0))
    return (g[0] - g[1]) / span


def costs(w, omega, gain, offset, g_min, g_max, levels=None, columns=True):
    """`C[r, q]`, with cells `gain, offset: [2, places, cols]`."""
    w, omega, gain, offset = (np.asarray(v, float) for v in (w, omega, gain, offset))
    scale = np.abs(w).max(axis=0) if columns else np.full(w.shape[1], np.abs(w).max())
    total = np.zeros((w.shape[0], gain.shape[1]))
    for r, q, j in np.ndindex(w.shape[0], gain.shape[1], w.shape[1]):
        cells = gain[:, q, j], offset[:, q, j]
        back = scale[j] * read_back(w[r, j] / scale[j], *cells, g_min, g_max, levels)
        total[r, q] += omega[r, j] * (back - w[r, j]) ** 2
    return total


def best_placement(costs):
    """`(rows, cost)` of the cheapest of all ways to give each row a place."""
    count, places = costs.shape
    ways = itertools.permutations(range(places), count)
    cost = {way: sum(costs[r, q] for r, q in enumerate(way)) for way in ways}
    best = min(cost, key=cost.get)
    return list(best), cost[best]


def best_signs(w, omega, **chip):
    """`(signs, error)` of the best of all choices of a sign for each column."""
    found = {}
    for signs in itertools.product((1, -1), repeat=w.shape[1]):
        c = costs(np.asarray(w, float) * signs, omega, **chip)
        found[signs] = float(np.trace(c))
    best = min(found, key=found.get)
    return list(best), found[best]
