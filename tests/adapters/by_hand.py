"""Products of nested operators in NumPy float64, one operator after another.

Each class of operators is one rule for matrices `[in, out]`, written from what its
class says that it stands for. A base that is held in a form of its own (codes, a chip)
multiplies itself: what stands on it is what is checked.
"""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from lowrank import operators

ITSELF = (operators.Quantized, operators.Crossbar, operators.Rewired)


def product(op: Any, x: np.ndarray) -> np.ndarray:
    """`x W` for `x: [tokens, in]` and a matrix `W`, an array or an operator."""
    x = np.asarray(x, np.float64)
    if isinstance(op, ITSELF):
        return np.asarray(lrk.lift(jnp.matmul)(jnp.asarray(x, jnp.float32), op), float)
    return RULES[type(op)](op, x) if type(op) in RULES else x @ _f64(op)


def weight(op: Any) -> np.ndarray:
    """The matrix whose products are these: of what is linear in its input."""
    return product(op, np.eye(op.shape[0]))


def _f64(array: Any) -> np.ndarray:
    return np.asarray(array, np.float64)


def _low_rank(op: Any, x: np.ndarray) -> np.ndarray:
    return product(op.w, x) + _f64(op.scale) * (x @ _f64(op.a)) @ _f64(op.b)


def _delta(op: Any, x: np.ndarray) -> np.ndarray:
    return product(op.w, x) + x @ _f64(op.d)


def _rows(op: Any, x: np.ndarray) -> np.ndarray:
    if op.axis:
        raise NotImplementedError("rows of the first axis alone")
    return product(op.w, x) + x[:, np.asarray(op.index)] @ _f64(op.d)


def _factored(op: Any, x: np.ndarray) -> np.ndarray:
    """Factors whose labels become letters; parts of an axis are its digits."""
    parts = sorted({part for own in op.labels for part in own})
    letter = {part: chr(ord("a") + i) for i, part in enumerate(parts)}
    terms = ["".join(letter[part] for part in own) for own in op.labels]
    outer = "".join(letter[part] for part in parts if part[0] >= 0)
    change = np.einsum(f"{','.join(terms)}->{outer}", *map(_f64, op.factors))
    return product(op.w, x) + _f64(op.scale) * x @ change.reshape(op.shape)


def _rescaled(op: Any, x: np.ndarray) -> np.ndarray:
    m = _f64(op.m)
    return product(op.w, x * m) if op.dims == (0,) else product(op.w, x) * m


def _magnitude(op: Any, x: np.ndarray) -> np.ndarray:
    lengths = np.sqrt(np.sum(weight(op.w) ** 2, axis=0))
    return product(op.w, x) * _f64(op.m) / lengths


def _network(op: Any, seen: np.ndarray) -> np.ndarray:
    inner = np.maximum(seen @ _f64(op.down) + _f64(op.down_bias), 0)
    return _f64(op.scale) * (inner @ _f64(op.up) + _f64(op.up_bias))


def _bottleneck(op: Any, x: np.ndarray) -> np.ndarray:
    y = product(op.w, x)
    return y + _network(op, y)


def _parallel(op: Any, x: np.ndarray) -> np.ndarray:
    return product(op.w, x) + _network(op, x)


def _routed(op: Any, x: np.ndarray) -> np.ndarray:
    weights = np.exp(x @ _f64(op.router))
    weights /= weights.sum(axis=1, keepdims=True)
    heads = [x @ _f64(op.a) @ b for b in _f64(op.b)]
    mixed = sum(g[:, None] * h for g, h in zip(weights.T, heads, strict=True))
    return product(op.w, x) + _f64(op.scale) * mixed


def _gated(op: Any, x: np.ndarray) -> np.ndarray:
    base = op.w
    for _ in range(op.depth):
        base = base.w
    y0, y1 = product(base, x), product(op.w, x)
    gate = 1 / (1 + np.exp(-(x @ _f64(op.gate) + _f64(op.gate_bias))))
    return y0 + gate[:, None] * (y1 - y0)


RULES: dict[type, Callable[[Any, np.ndarray], np.ndarray]] = {
    operators.LowRank: _low_rank,
    operators.DropoutLowRank: _low_rank,  # of a rate of 0
    operators.Delta: _delta,
    operators.RowDelta: _rows,
    operators.Factored: _factored,
    operators.Rescaled: _rescaled,
    operators.Magnitude: _magnitude,
    operators.Bottleneck: _bottleneck,
    operators.Parallel: _parallel,
    operators.Routed: _routed,
    operators.Gated: _gated,
}
