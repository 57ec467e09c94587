"""LoRA with a frozen `A`, from the equations: NumPy, float64, no trees, no JAX."""

import numpy as np


def frozen_a_weight(
    w: np.ndarray, a: np.ndarray, b: np.ndarray, alpha: float
) -> np.ndarray:
    """`W + (alpha / r) A B`, for kernels `[in, out]` (and the equation's number)."""
    w, a, b = (np.asarray(v, np.float64) for v in (w, a, b))
    return w + alpha / a.shape[1] * (a @ b)


def frozen_a_grad(a: np.ndarray, g: np.ndarray, alpha: float) -> np.ndarray:
    """Gradient with respect to `B`, the only factor that trains, given dL/dW = `g`."""
    return alpha / a.shape[1] * (np.asarray(a, np.float64).T @ g)
