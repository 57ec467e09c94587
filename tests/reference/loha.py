"""LoHa in NumPy float64: `W + s (W1a W1b) * (W2a W2b)`, `[out, in]` as LyCORIS."""

import numpy as np


def weight(w, w1a, w1b, w2a, w2b, scale):
    """The entrywise product of two products."""
    w, w1a, w1b, w2a, w2b = (np.asarray(v, np.float64) for v in (w, w1a, w1b, w2a, w2b))
    return w + scale * (w1a @ w1b) * (w2a @ w2b)
