"""FacT in NumPy float64, from Jie and Deng 2022.

Transposed: kernels are `[in, out]`.
"""

import numpy as np


def train_weight(w, u, middle, v, scale):
    """FacT-TT: `W + s U S V`."""
    w, u, middle, v = (np.asarray(x, np.float64) for x in (w, u, middle, v))
    return w + scale * u @ middle @ v


def tucker_weight(w, u, core, p, v, scale):
    """FacT-TK: `W + s U (sum_k p_k C_k) V`, with `C_k = core[:, :, k]`."""
    core, p = np.asarray(core, np.float64), np.asarray(p, np.float64)
    middle = sum(p[k] * core[:, :, k] for k in range(len(p)))
    return train_weight(w, u, middle, v, scale)
