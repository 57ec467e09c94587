"""EVA in NumPy float64: the SVD of the inputs themselves, not of their Gram matrix."""

import numpy as np


def directions(x, rank):
    """The first right singular vectors of the inputs as columns, up to their signs."""
    _, _, vt = np.linalg.svd(np.asarray(x, np.float64), full_matrices=False)
    return vt[:rank].T


def ranks(inputs, rank, rho):
    """How many directions each leaf gets: the largest shares of all leaves."""
    shares = []
    for path, x in inputs.items():
        s = np.linalg.svd(np.asarray(x, np.float64), compute_uv=False)
        own = (s**2 / np.sum(s**2))[: round(rho * rank)]
        shares += [(share, path) for share in own]
    kept = sorted(shares, reverse=True)[: rank * len(inputs)]
    return {path: sum(p == path for _, p in kept) for path in inputs}
