"""Adapters of two layers in NumPy float64.

Houlsby et al. 2019, section 2.1: `h + f(h D + c) U + d` behind a layer, with `h` its
output, bias included. He et al. 2021, table 1: `h + s (f(x D + c) U + d)` beside a
layer with input `x`. Kernels are `[in, out]`; `f` is ReLU.
"""

import numpy as np


def network(seen, down, up, down_bias, up_bias):
    """`f(seen D + c) U + d`, token by token: `seen: [tokens, n]`."""
    out = []
    for token in seen:
        inner = np.maximum(token @ down + down_bias, 0)
        out.append(inner @ up + up_bias)
    return np.stack(out)


def _float64(*arrays):
    return [np.asarray(v, np.float64) for v in arrays]


def serial(x, w, parts, scale=1.0, bias=None):
    """The adapter reads `x W + bias`; the result has the bias in it."""
    x, w = _float64(x, w)
    h = x @ w if bias is None else x @ w + np.asarray(bias, np.float64)
    return h + scale * network(h, *_float64(*parts))


def parallel(x, w, parts, scale=1.0):
    """The adapter reads `x`."""
    x, w = _float64(x, w)
    return x @ w + scale * network(x, *_float64(*parts))
