"""FourierFT in NumPy float64: `Re(IDFT2(F))`, frequency by frequency."""

import numpy as np


def change(shape, places, values):
    """The real part of the inverse transform, for `F[places[:, i]] = values[i]`."""
    n, m = shape
    rows, columns = np.arange(n)[:, None], np.arange(m)[None, :]
    total = np.zeros(shape)
    for (j, k), value in zip(np.transpose(places), values, strict=True):
        total += value * np.cos(2 * np.pi * (rows * j / n + columns * k / m))
    return total / (n * m)
