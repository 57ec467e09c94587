"""AdaLoRA in NumPy float64, from Zhang et al. 2023, section 3; kernels `[in, out]`."""

import numpy as np


def weight(w, p, values, q, scale):
    """`W + s P diag(lambda) Q`."""
    w, p, q = (np.asarray(v, np.float64) for v in (w, p, q))
    return w + scale * (p @ np.diag(values) @ q)


def penalty(pairs):
    """`sum ||P^T P - 1||^2 + ||Q Q^T - 1||^2`."""
    total = 0.0
    for p, q in pairs:
        p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
        for gram in (p.T @ p, q @ q.T):
            total += np.sum((gram - np.eye(len(gram))) ** 2)
    return total


def scores(p, values, q):
    """`S_k = s(lambda_k) + mean_i s(P_ik) + mean_j s(Q_kj)`, for scores `s`."""
    found = []
    for k in range(len(values)):
        found.append(values[k] + np.mean(p[:, k]) + np.mean(q[k]))
    return np.array(found)
