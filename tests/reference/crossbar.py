"""Products on crossbars in NumPy float64: vector by vector and tile by tile."""

import numpy as np


def convert(values, limit, bits):
    """Clip to the range and round to `2^(bits - 1) - 1` steps on each side of zero."""
    if limit is None:
        limit = np.abs(values).max() or 1.0
    values = np.clip(values / limit, -1.0, 1.0)
    if bits is not None:
        steps = 2.0 ** (bits - 1) - 1
        values = np.round(values * steps) / steps
    return values, limit


def currents(u, g, wire):
    """Sums of the columns of one array, with the voltage that each cell lacks."""
    rows, cols = g.shape
    flow = u[:, None] * g
    lost = np.zeros_like(g)
    for i in range(rows):
        for j in range(cols):
            for k in range(j + 1):  # the word line, driven at column 0
                lost[i, j] += flow[i, k:].sum()
            for k in range(i, rows):  # the bit line, read behind the last row
                lost[i, j] += flow[: k + 1, j].sum()
    return ((u[:, None] - wire * 1e-6 * lost) * g).sum(0)


def mvm(x, pair, scale, unit, *, tile=None, dac=None, adc=None, wire=0.0):
    """`[n, rows]` to `[n, cols]`; `dac` and `adc` are pairs of bits and limit."""
    x, pair, scale = (np.asarray(v, np.float64) for v in (x, pair, scale))
    rows, cols = pair.shape[1:]
    out = np.zeros((len(x), cols))
    for n, vector in enumerate(x):
        u, alpha = (vector, 1.0) if dac is None else convert(vector, dac[1], dac[0])
        for t, start in enumerate(range(0, rows, tile or rows)):
            own = slice(start, start + (tile or rows))
            plus, minus = (currents(u[own], g[own], wire) for g in pair)
            z, limit = (plus - minus) / unit, 1.0
            if adc is not None:
                z, limit = convert(z, adc[1], adc[0])
            out[n] += alpha * limit * scale[t] * z
    return out


def patches(x, kernel, stride, padding):
    """Patches of `[N, H, W, C]`, flattened as `[kh, kw, C]`: `[N, H', W', rows]`."""
    x = np.pad(np.asarray(x, np.float64), [(0, 0), padding, padding, (0, 0)])
    high, wide = ((x.shape[1 + d] - kernel[d]) // stride + 1 for d in (0, 1))
    cut = [
        [
            x[:, i * stride : i * stride + kernel[0], j * stride :][:, :, : kernel[1]]
            for j in range(wide)
        ]
        for i in range(high)
    ]
    return np.stack([np.stack(row, 1) for row in cut], 1).reshape(
        len(x), high, wide, -1
    )
