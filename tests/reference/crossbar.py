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


def drop(g, wire):
    """How far the wires lower each cell, to first order: `g (1 - drop)`."""
    rows, cols = g.shape
    lost = np.zeros_like(g)
    for i in range(rows):
        for j in range(cols):
            for k in range(j + 1):  # the word line, driven at column 0
                lost[i, j] += g[i, k:].sum()
            for k in range(i, rows):  # the bit line, read behind the last row
                lost[i, j] += g[: k + 1, j].sum()
    return wire * 1e-6 * lost


def circuit(g, wire):
    """What each cell adds to its column for 1 V on its row alone: Kirchhoff's law.

    Unknown are the voltages on both sides of every cell. A segment of wire lies before
    each cell of a word line, and behind each cell of a bit line, the last to ground.
    """
    rows, cols = g.shape
    cells = rows * cols
    upper = np.arange(cells).reshape(rows, cols)
    lower, segment = upper + cells, 1e6 / wire  # in uS, as the cells
    law = np.zeros((2 * cells, 2 * cells))

    def joined(a, b, conductance):
        for m, n, c in zip(a.ravel(), b.ravel(), conductance.ravel(), strict=True):
            law[[m, n], [m, n]] += c
            law[[m, n], [n, m]] -= c

    joined(upper, lower, g)
    joined(upper[:, :-1], upper[:, 1:], np.full((rows, cols - 1), segment))
    joined(lower[:-1], lower[1:], np.full((rows - 1, cols), segment))
    law[upper[:, 0], upper[:, 0]] += segment
    law[lower[-1], lower[-1]] += segment
    driven = np.zeros((2 * cells, rows))
    driven[upper[:, 0], np.arange(rows)] = segment
    return segment * np.linalg.solve(law, driven)[lower[-1]].T


def currents(u, g, wire):
    """Sums of the columns of one array, behind its wires."""
    return (u[:, None] * g / (1 + drop(g, wire))).sum(0)


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
