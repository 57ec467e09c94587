"""LoRTA in NumPy float64, from Hounie et al. 2024.

One tensor over inputs, outputs per head, heads, layers and types, of CP rank `r`
(transposed: kernels are `[in, out]`).
"""

import numpy as np


def weight(w, a, b, layer, kind, scale, head=None):
    """`W + s sum_p layer_p type_p a_p (head_p x b_p)`; `b: [r, out / heads]`."""
    w, a, b, layer, kind = (np.asarray(v, np.float64) for v in (w, a, b, layer, kind))
    head = np.ones((1, len(layer))) if head is None else np.asarray(head, np.float64)
    change = np.zeros(w.shape)
    for p in range(len(layer)):
        columns = np.concatenate([row[p] * b[p] for row in head])
        change += layer[p] * kind[p] * np.outer(a[:, p], columns)
    return w + scale * change
