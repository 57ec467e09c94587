"""LoRA in NumPy float64, from Hu et al. 2021, section 4.1.

Kernels are `[in, out]`, so the paper's `h = W0 x + (alpha / r) B A x` reads
`h = x W + (alpha / r) (x A) B`, with its `A` and `B` transposed.
"""

import math

import numpy as np


def kaiming_bound(fan_in):
    """Bound of the uniform draw of `A`, from He et al. 2015 with slope `sqrt(5)`.

    `gain = sqrt(2 / (1 + slope^2))`, `std = gain / sqrt(fan_in)`, and a uniform
    distribution of deviation `std` ends at `sqrt(3) std`.
    """
    gain = math.sqrt(2 / (1 + 5))
    return math.sqrt(3) * gain / math.sqrt(fan_in)


def weight(w, a, b, scale):
    """`W + scale A B`."""
    w, a, b = (np.asarray(v, np.float64) for v in (w, a, b))
    return w + scale * (a @ b)


def forward(x, w, a, b, scale):
    """`x W + scale (x A) B`."""
    x, w, a, b = (np.asarray(v, np.float64) for v in (x, w, a, b))
    return x @ w + scale * ((x @ a) @ b)


def gradients(x, w, a, b, scale, g):
    """Of `sum(g * forward)` with respect to `x`, `a` and `b`, by the chain rule."""
    x, w, a, b, g = (np.asarray(v, np.float64) for v in (x, w, a, b, g))
    dx = g @ w.T + scale * (g @ b.T) @ a.T
    da = scale * x.T @ (g @ b.T)
    db = scale * (x @ a).T @ g
    return dx, da, db


def stacked(w, a, b, scale):
    """One weight for each index of the leading axis; one scale, or one for each."""
    scales = np.broadcast_to(scale, (len(w),))
    return np.stack([weight(*parts) for parts in zip(w, a, b, scales, strict=True)])


def multi_axis(w, a, b, scale, spec):
    """`W + scale A B` by one sum over the rank; `spec` is an einsum of `a` and `b`."""
    w, a, b = (np.asarray(v, np.float64) for v in (w, a, b))
    return w + scale * np.einsum(spec, a, b)
