"""HiRA in NumPy float64, in the paper's layout `[out, in]`: `W0 + s W0 * (B A)`."""

import numpy as np


def weight(w, a, b, scale):
    """The change in proportion to the weight."""
    w, a, b = (np.asarray(v, np.float64) for v in (w, a, b))
    return w + scale * w * (b @ a)
