"""MetaTT in NumPy float64, from Lopez-Piqueres et al. 2025.

A tensor train over inputs, layers, types, (heads) and outputs (transposed: kernels are
`[in, out]`).
"""

import numpy as np


def weight(w, first, layer, kind, last, scale, head=None):
    """`W + s G_1 G_2[l] G_3[t] (G_4[h]) G_5`, column block `h` for each head."""
    w, first, layer, kind, last = (
        np.asarray(v, np.float64) for v in (w, first, layer, kind, last)
    )
    heads = [np.eye(len(layer))] if head is None else np.asarray(head, np.float64)
    blocks = [first @ layer @ kind @ core @ last for core in heads]
    return w + scale * np.concatenate(blocks, axis=1)
