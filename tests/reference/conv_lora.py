"""The three published LoRAs for convolutions in NumPy float64, in torch's layout.

Kernels are `[out, in, *places]`, with `in` the inputs of one group.
"""

import numpy as np


def reshaped(a, b, size):
    """loralib's: `(B A).view(W.shape)` for `A: [r k, in k]` and `B: [out k, r k]`."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return (b @ a).reshape(b.shape[0] // size, a.shape[1] // size, size, size)


def two_convolutions(a, b):
    """PEFT's and LoCon's: `A: [r, in, *places]`, then `B: [out, r]`, 1 x 1."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return np.tensordot(b, a, 1)


def tucker(down, mid, up):
    """LyCORIS': `down: [r, in]`, `mid: [r, r, *places]`, `up: [out, r]`."""
    down, mid, up = (np.asarray(v, np.float64) for v in (down, mid, up))
    return np.einsum("ot,ts...,si->oi...", up, mid, down)


def convolve(x, w, stride, groups):
    """A convolution without padding, place by place: `x: [examples, in, h, w]`."""
    x, w = np.asarray(x, np.float64), np.asarray(w, np.float64)
    outs, ins, *size = w.shape
    high, wide = ((x.shape[2 + i] - size[i]) // stride + 1 for i in (0, 1))
    y = np.zeros((x.shape[0], outs, high, wide))
    for o in range(outs):
        start = o // (outs // groups) * ins
        for i, j in np.ndindex(high, wide):
            at = (i * stride, j * stride)
            patch = x[:, start : start + ins, at[0] : at[0] + size[0]]
            patch = patch[..., at[1] : at[1] + size[1]]
            y[:, o, i, j] = np.sum(patch * w[o], axis=(1, 2, 3))
    return y
