"""LoKr in NumPy float64, in LyCORIS' layout `[out, in]`: `W + s kron(W1, W2a W2b)`."""

import numpy as np


def weight(w, w1, w2a, w2b, scale):
    """The Kronecker product, entry by entry."""
    w, w1 = np.asarray(w, np.float64), np.asarray(w1, np.float64)
    w2 = np.asarray(w2a, np.float64) @ np.asarray(w2b, np.float64)
    new = w.copy()
    for o, i in np.ndindex(w.shape):
        (o1, o2), (i1, i2) = divmod(o, w2.shape[0]), divmod(i, w2.shape[1])
        new[o, i] += scale * w1[o1, i1] * w2[o2, i2]
    return new
