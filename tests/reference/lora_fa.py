"""LoRA-FA's gradient of `B` in NumPy, float64, in the paper's layout.

arXiv:2308.03303: with `A: [r, n]` frozen and `W0 + (alpha / r) B A`, the gradient of
`B: [m, r]` is replaced by `(r / alpha)^2 g_B (A A^T)^-1`, which brings the step of the
weight, `(alpha / r) g B A`, nearest to the full gradient.
"""

import numpy as np


def corrected(grad, a, scale):
    """`(1 / scale)^2 g_B (A A^T)^-1`."""
    grad, a = (np.asarray(x, np.float64) for x in (grad, a))
    return grad @ np.linalg.pinv(a @ a.T) / scale**2


def nearest(full, a, scale):
    """The `X: [m, r]` with the least `|scale X A - G|_F`, by least squares."""
    full, a = (np.asarray(x, np.float64) for x in (full, a))
    return np.linalg.lstsq(scale * a.T, full.T, rcond=None)[0].T
