"""VeRA in NumPy float64, from Kopiczko et al. 2023, eq. 2; kernels are `[in, out]`."""

import numpy as np


def weight(w, a, b, d, lambda_b):
    """`W + A diag(d) B diag(b)`."""
    w, a, b = (np.asarray(v, np.float64) for v in (w, a, b))
    return w + a @ np.diag(d) @ b @ np.diag(lambda_b)
