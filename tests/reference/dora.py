"""DoRA in NumPy float64, from Liu et al. 2024: `W' = m (W0 + s A B) / |W0 + s A B|`.

Eq. 5 of the paper, transposed: kernels are `[in, out]`, so a column of the paper's
norm is one output, and the norm runs over the inputs. Gradients are those of section
4.3: the norm counts as a constant `C`.
"""

import numpy as np


def weight(w, a, b, m, scale):
    """`m (W0 + s A B) / |W0 + s A B|`, column by column."""
    w, a, b, m = (np.asarray(v, np.float64) for v in (w, a, b, m))
    direction = w + scale * (a @ b)
    adapted = np.empty_like(direction)
    for j in range(w.shape[1]):
        norm = np.sqrt(np.sum(direction[:, j] ** 2))
        adapted[:, j] = m[j] * direction[:, j] / norm
    return adapted


def gradients(x, w, a, b, m, scale, g):
    """Of `sum(g * (x W'))` with respect to `A, B, m`, with the norm a constant."""
    x, w, a, b, m, g = (np.asarray(v, np.float64) for v in (x, w, a, b, m, g))
    direction = w + scale * (a @ b)
    constant = np.sqrt(np.sum(direction**2, axis=0))
    of_weight = x.T @ g
    of_direction = of_weight * (m / constant)
    of_m = np.sum(of_weight * direction, axis=0) / constant
    return scale * of_direction @ b.T, scale * a.T @ of_direction, of_m


def exact_gradients(x, w, a, b, m, scale, g):
    """The same, differentiated through the norm too (eq. 6)."""
    x, w, a, b, m, g = (np.asarray(v, np.float64) for v in (x, w, a, b, m, g))
    direction = w + scale * (a @ b)
    norm = np.sqrt(np.sum(direction**2, axis=0))
    of_weight = x.T @ g
    along = np.sum(of_weight * direction, axis=0) / norm**2
    of_direction = (m / norm) * (of_weight - along * direction)
    of_m = np.sum(of_weight * direction, axis=0) / norm
    return scale * of_direction @ b.T, scale * a.T @ of_direction, of_m
