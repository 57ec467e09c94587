"""MTL-LoRA in NumPy float64, from Yang et al. 2024.

`h_t = x W + s sum_i softmax(w_t / tau)_i ((x A) Lambda_t) B_i` for a task `t`
(transposed: kernels are `[in, out]`).
"""

import numpy as np


def mixture(mix, temperature):
    """`softmax(w_t / tau)`."""
    z = np.asarray(mix, np.float64) / temperature
    e = np.exp(z - np.max(z))
    return e / e.sum()


def forward(x, w, a, b, task, mix, temperature, scale):
    """`a: [n, r]`, `b: [heads, r, m]`, `task: [r, r]`, `mix: [heads]`."""
    x, w, a, b, task = (np.asarray(v, np.float64) for v in (x, w, a, b, task))
    y = x @ w
    for share, head in zip(mixture(mix, temperature), b, strict=True):
        y = y + scale * share * (((x @ a) @ task) @ head)
    return y


def gradients(x, a, b, task, mix, temperature, scale, g):
    """Of `sum(g * forward)` with respect to `A, B, Lambda, w_t`, by the chain rule."""
    x, a, b, task, g = (np.asarray(v, np.float64) for v in (x, a, b, task, g))
    shares = mixture(mix, temperature)
    mean = sum(share * head for share, head in zip(shares, b, strict=True))
    of_low = scale * g @ mean.T
    of_mean = scale * (x @ a @ task).T @ g
    of_share = np.array([np.sum(of_mean * head) for head in b])
    of_mix = shares * (of_share - shares @ of_share) / temperature
    of_b = np.stack([share * of_mean for share in shares])
    return x.T @ of_low @ task.T, of_b, (x @ a).T @ of_low, of_mix
