"""LoRETTA in NumPy float64, from Yang et al. 2024, entry by entry of a train.

Transposed: kernels are `[in, out]`.
"""

import numpy as np


def matrix(cores, rows):
    """The train's tensor, entry by entry, cut after the modes that make the rows."""
    cores = [np.asarray(core, np.float64) for core in cores]
    first, last = cores[0][None], cores[-1][..., None]
    cores = [first, *cores[1:-1], last]
    sizes = [core.shape[1] for core in cores]
    tensor = np.zeros(sizes)
    for index in np.ndindex(*sizes):
        value = np.eye(1)
        for core, i in zip(cores, index, strict=True):
            value = value @ core[:, i, :]
        tensor[index] = value[0, 0]
    return tensor.reshape(rows, -1)


def weight(w, a, b, rank, scale):
    """`W + s A B`, both factors from their cores."""
    w = np.asarray(w, np.float64)
    return w + scale * matrix(a, w.shape[0]) @ matrix(b, rank)
