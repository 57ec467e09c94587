"""Quantisers from their equations, entry by entry, in NumPy float64."""

import math

import numpy as np
from scipy.stats import norm

# QLoRA's offset: the share of a normal distribution below its largest level.
OFFSET = 0.9677083


def nf4_levels():
    """Quantiles of a normal distribution: 8 above zero, 7 below, and zero; over 1."""
    above = norm.ppf(np.linspace(OFFSET, 0.5, 9)[:-1])
    below = -norm.ppf(np.linspace(OFFSET, 0.5, 8)[:-1])
    levels = np.sort(np.concatenate([above, [0.0], below]))
    return levels / levels.max()


def quantise(w, block, levels, fine=lambda x: x):
    """Each block of rows of each column at its nearest level; `fine` rounds scales."""
    w = np.asarray(w, float)
    rows, cols = w.shape
    blocks = math.ceil(rows / block)
    scales = np.zeros((blocks, cols))
    for k in range(blocks):
        for j in range(cols):
            scales[k, j] = np.abs(w[k * block : (k + 1) * block, j]).max()
    exact, scales = scales, fine(scales)
    out = np.zeros_like(w)
    for i in range(rows):
        for j in range(cols):
            s = exact[i // block, j]
            x = w[i, j] / s if s else 0.0
            nearest = levels[np.argmin(np.abs(levels - x))]
            out[i, j] = scales[i // block, j] * nearest
    return out


def double(scales, group=256):
    """Scales around their mean, in groups that share a scale, as 8-bit floats."""
    middle = scales.mean()
    flat = (scales - middle).ravel()
    out = np.zeros_like(flat)
    for start in range(0, flat.size, group):
        part = flat[start : start + group]
        s = np.abs(part).max() / 448
        out[start : start + group] = s * np.array([e4m3(x / s) for x in part])
    return out.reshape(scales.shape) + middle


def e4m3(x):
    """The nearest number with 3 bits behind the leading one, down to 2^-9."""
    if x == 0:
        return 0.0
    step = 2.0 ** (max(math.floor(math.log2(abs(x))), -6) - 3)
    return float(np.round(x / step) * step)
