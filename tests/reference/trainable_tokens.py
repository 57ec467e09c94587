"""Trainable tokens in NumPy float64: some rows of a table, moved."""

import numpy as np


def table(w, d, index):
    """`W` with `D[i]` added to row `index[i]`."""
    w = np.array(w, np.float64)
    for row, change in zip(index, np.asarray(d, np.float64), strict=True):
        w[row] += change
    return w
