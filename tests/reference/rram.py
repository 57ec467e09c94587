"""RRAM crossbars from their equations, cell by cell, in NumPy float64.

Notation of the usual description: `x = w / s`, `s_j = max_i |w_ij|`; a pair of cells
`G+`, `G-` in uS for each weight; `w_hat = s (G+ - G-) / (G_max - G_min)`.
"""

import numpy as np

OK, LRS, HRS, OPEN = 0, 1, 2, 3


def scale(w: np.ndarray, tile: int | None = None, columns: bool = True) -> np.ndarray:
    """`s` for each weight: the largest magnitude of its column in its tile."""
    out = np.zeros_like(w)
    step = tile or len(w)
    for top in range(0, len(w), step):
        part = np.abs(w[top : top + step])
        s = part.max(0, keepdims=True) if columns else part.max(keepdims=True)
        out[top : top + step] = np.where(s > 0, s, 1.0)
    return out


def one_sided(x: float, low: float, high: float) -> tuple[float, float]:
    span = high - low
    return low + span * max(x, 0.0), low + span * max(-x, 0.0)


def two_sided(x: float, low: float, high: float) -> tuple[float, float]:
    middle, span = (low + high) / 2, high - low
    return middle + span * x / 2, middle - span * x / 2


def offset(x: float, low: float, high: float) -> tuple[float, float]:
    return low + (high - low) * (x + 1) / 2, (low + high) / 2


def high_zero(x: float, low: float, high: float) -> tuple[float, float]:
    span = high - low
    return high - span * max(-x, 0.0), high - span * max(x, 0.0)


SCHEMES = {
    "OneSided": (one_sided, 1.0),
    "TwoSided": (two_sided, 1.0),
    "Offset": (offset, 2.0),
    "HighZero": (high_zero, 1.0),
}


def nearest_level(g: float, low: float, high: float, levels: int | None) -> float:
    """`G_min + round((G - G_min) / delta) delta`, `delta = dG / (L - 1)`."""
    if levels is None:
        return g
    delta = (high - low) / (levels - 1)
    return low + np.round((g - low) / delta) * delta


def conductances(
    w: np.ndarray,
    chip: dict[str, np.ndarray],
    scheme: str,
    *,
    low: float,
    high: float,
    levels: int | None = None,
    fit: tuple[tuple[float, ...], float] | None = None,
    tile: int | None = None,
    columns: bool = True,
) -> np.ndarray:
    """What every cell has, `[2, rows, cols]`: program, deviate, then faults."""
    pair, _ = SCHEMES[scheme]
    x = w / scale(w, tile, columns)
    out = np.zeros((2, *w.shape))
    for i, j in np.ndindex(*w.shape):
        for side, g in enumerate(pair(x[i, j], low, high)):
            here = (side, i, j)
            value = nearest_level(g, low, high, levels)
            if fit is not None:
                coefficients, reference = fit
                std = sum(
                    c * (value / reference) ** k for k, c in enumerate(coefficients)
                )
                value = max(value + max(std, 0.0) * chip["theta"][here], 0.0)
            value = chip["gain"][here] * value
            if "shift" in chip:
                value = max(value + chip["shift"][here], 0.0)
            out[here] = value + chip["offset"][here]
    return out


def deployed(
    w: np.ndarray, chip: dict[str, np.ndarray], scheme: str, **options
) -> np.ndarray:
    """`w_hat` of every weight."""
    g = conductances(w, chip, scheme, **options)
    own = {k: v for k, v in options.items() if k in ("tile", "columns")}
    gain = SCHEMES[scheme][1]
    return scale(w, **own) * gain * (g[0] - g[1]) / (options["high"] - options["low"])


def std_polynomial(
    g: np.ndarray, coefficients: tuple[float, ...], reference: float
) -> np.ndarray:
    """`sum_k c_k (G / reference)^k`, not below 0."""
    return np.maximum(
        sum(c * (g / reference) ** k for k, c in enumerate(coefficients)), 0
    )
