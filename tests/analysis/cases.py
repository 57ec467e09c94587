"""Changes that the tests of diagnostics share."""

import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from tests.network import numbers

N, M, R = 6, 5, 3
W, A, B = numbers(1, N, M), numbers(2, N, R), numbers(3, R, M)
STACK = (numbers(4, 2, N, M), numbers(5, 2, N, R), numbers(6, 2, R, M))


def low(w=W, a=A, b=B, scale=1.0):
    return lrk.LowRank(jnp.asarray(w), a, b, scale)


def delta(a=A, b=B, scale=1.0):
    """What factors add, in float64."""
    return scale * np.asarray(a, np.float64) @ b


def known(*values):
    """A change with these singular values, and a weight of another size."""
    q = np.linalg.qr(numbers(7, N, N).astype(np.float64))[0][:, : len(values)]
    p = np.linalg.qr(numbers(8, M, M).astype(np.float64))[0][:, : len(values)]
    return (q * np.asarray(values)).astype(np.float32), p.T.astype(np.float32)
