"""SHiRA in NumPy float64: `W + s D`, with `D` zero where a 0/1 mask is."""

import numpy as np


def weight(w, values, mask, scale):
    """The values fill the ones of the mask in the order of the flattened weight."""
    change = np.zeros(mask.shape)
    change[np.asarray(mask, bool)] = values
    return np.asarray(w, np.float64) + scale * change


def gradient(x, g, mask, scale):
    """Of `sum(g * (x W'))` with respect to the values."""
    of_weight = np.asarray(x, np.float64).T @ np.asarray(g, np.float64)
    return scale * of_weight[np.asarray(mask, bool)]
