"""LoRA-XS in NumPy float64, from Bałazy et al. 2024: `x W + x A R B`."""

import numpy as np


def weight(w, r, scale):
    """`W + s (U_r S_r) R V_r^T`, for one choice of signs of the singular vectors."""
    w, r = np.asarray(w, np.float64), np.asarray(r, np.float64)
    rank = r.shape[0]
    u, s, vt = np.linalg.svd(w, full_matrices=False)
    return w + scale * (u[:, :rank] @ np.diag(s[:rank]) @ r @ vt[:rank])


def gradient(a, b, x, g, scale):
    """Of `sum(g * (x W'))` with respect to `R`."""
    a, b, x, g = (np.asarray(v, np.float64) for v in (a, b, x, g))
    return scale * (x @ a).T @ (g @ b.T)
