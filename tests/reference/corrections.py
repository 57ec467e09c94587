"""Digital corrections of a chip in NumPy float64, from their definitions."""

import numpy as np


def truncated(e, rank):
    """The matrix of a rank next to `e` in the Frobenius norm (Eckart and Young)."""
    u, s, vt = np.linalg.svd(np.asarray(e, np.float64), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ vt[:rank]


def weighted(e, x, rank):
    """The `a b` of a rank and least norm that minimises `||x (e - a b)||_F`.

    Only products with `x` count, so the best approximation of `x e` is pulled back by
    the pseudo-inverse of `x` (Sondermann 1986, Friedland and Torokhti 2007).
    """
    x, e = np.asarray(x, np.float64), np.asarray(e, np.float64)
    return np.linalg.pinv(x) @ truncated(x @ e, rank)


def patched(errors, weights, count):
    """Errors kept at the `count` largest weights that are wrong, over all leaves."""
    flat = [
        (-weights[i].flat[j], i, j)
        for i, e in enumerate(errors)
        for j in range(e.size)
        if e.flat[j] != 0
    ]
    kept = [np.zeros_like(e) for e in errors]
    for _, i, j in sorted(flat)[:count]:
        kept[i].flat[j] = errors[i].flat[j]
    return kept


def spectral_penalty(adapters):
    """HaLoRA: `sum ||A A^T||_2 + ||B^T B||_2`, `A: [r, in]` and `B: [out, r]`."""
    total = 0.0
    for a, b in adapters:
        total += np.linalg.norm(a @ a.T, 2) + np.linalg.norm(b.T @ b, 2)
    return total
