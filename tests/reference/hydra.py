"""HydraLoRA in NumPy float64, from Tian et al. 2024, eqs. 2 to 4.

`y = x W0 + s sum_i w_i (x A) B_i` with `w = softmax(x W_g)`, token by token
(transposed: kernels are `[in, out]`).
"""

import numpy as np


def softmax(z):
    """Of one vector."""
    e = np.exp(z - np.max(z))
    return e / e.sum()


def forward(x, w, a, b, router, scale):
    """`x: [tokens, n]`, `a: [n, r]`, `b: [heads, r, m]`, `router: [n, heads]`."""
    x, w, a, b, router = (np.asarray(v, np.float64) for v in (x, w, a, b, router))
    y = np.zeros((x.shape[0], w.shape[1]))
    for t, token in enumerate(x):
        gates = softmax(token @ router)
        y[t] = token @ w
        for gate, head in zip(gates, b, strict=True):
            y[t] += scale * gate * ((token @ a) @ head)
    return y
