"""(IA)^3 in NumPy float64, from Liu et al. 2022, section 3.3; kernels `[in, out]`."""

import numpy as np


def outputs(w, factors):
    """`W diag(l)`: each output of `x W` times its factor."""
    w = np.asarray(w, np.float64)
    return np.stack([w[:, j] * factors[j] for j in range(w.shape[1])], axis=1)


def inputs(w, factors):
    """`diag(l) W`: each input of `x W` times its factor."""
    w = np.asarray(w, np.float64)
    return np.stack([w[i] * factors[i] for i in range(w.shape[0])])
