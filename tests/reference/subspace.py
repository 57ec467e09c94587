"""Random subspaces in NumPy float64: `theta = theta_0 + P z`, with `P` formed.

Li et al. 2018, arXiv:1804.08838, section 2: `P: [D, d]` over all weights as one vector,
with columns of norm one. Li et al. 2025 (Uni-LoRA), arXiv:2506.00799: one entry
`1 / sqrt(n_j)` in each row, where `n_j` rows have theirs in column `j`.
"""

import numpy as np


def normalised(blocks):
    """Blocks of rows, one for each layer, by the norm of each column over all."""
    whole = np.concatenate([np.asarray(b, np.float64) for b in blocks])
    return whole / np.linalg.norm(whole, axis=0)


def one_hot(columns, signs, d):
    """`P` with one entry in each row, from its column and its sign."""
    whole = np.zeros((len(columns), d))
    counts = np.bincount(columns, minlength=d)
    for i, (c, sign) in enumerate(zip(columns, signs, strict=True)):
        whole[i, c] = sign / np.sqrt(counts[c])
    return whole


def moved(leaves, p, z):
    """The leaves, which are one vector in their order, plus `P z`."""
    flat = np.concatenate([np.asarray(x, np.float64).ravel() for x in leaves])
    flat = flat + p @ np.asarray(z, np.float64)
    ends = np.cumsum([x.size for x in leaves])[:-1]
    parts = np.split(flat, ends)
    return [part.reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
