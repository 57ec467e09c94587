"""RandLoRA in NumPy float64: `sum_i B_i Lambda_i A Gamma_i`."""

import numpy as np


def change(base_a, base_b, lam, gamma):
    """The sum, basis by basis: `A: [r, small]`, `B: [r, bases, large]`.

    `lam: [r, bases]` and `gamma: [bases, small]` hold the diagonals; `[large, small]`.
    """
    base_a, base_b, lam, gamma = (
        np.asarray(v, np.float64) for v in (base_a, base_b, lam, gamma)
    )
    parts = [
        base_b[:, i].T @ np.diag(lam[:, i]) @ base_a @ np.diag(gamma[i])
        for i in range(gamma.shape[0])
    ]
    return np.sum(parts, axis=0)
