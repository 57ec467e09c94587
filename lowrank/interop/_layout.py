"""From the layout of torch to ours and back: arrays in, arrays out."""

import math
from typing import Any

import numpy as np

from lowrank._axes import MATRIX, Axes
from lowrank.interop._adapter import Factors

Shape = tuple[int, ...]


def axes_of(own: Factors, ndim: int, given: Axes | None) -> Axes | None:
    """The axes of the leaf that a module adapts; None if that cannot be told.

    A convolution's kernel is `[*kernel, in, out]`.
    """
    conv = Axes((), tuple(range(ndim - 1)), (ndim - 1,))
    if own.conv:
        return conv if given in (None, conv) else None
    return given if given is not None or ndim != 2 else MATRIX


def torch_shapes(own: Factors, axes: Axes, shape: Shape) -> tuple[Shape, Shape]:
    """Shapes that `a` and `b` must have beside a leaf of this shape."""
    if own.conv:
        *kernel, n, m = shape
        return (own.rank, n, *kernel), (m, own.rank, *(1 for _ in kernel))
    n, m = (math.prod(shape[d] for d in dims) for dims in axes[1:])
    return (own.rank, n), (m, own.rank)


def factors_in(own: Factors, axes: Axes, shape: Shape) -> dict[str, np.ndarray]:
    """`a: [*in, r]` and `b: [r, *out]`, and `m: [*out]` if there is one."""
    inputs, outputs = ([shape[d] for d in dims] for dims in axes[1:])
    a = np.moveaxis(own.a, (0, 1), (-1, -2)) if own.conv else own.a.T
    b = own.b.reshape(own.b.shape[:2]).T
    found = {
        "a": a.reshape(*inputs, own.rank),
        "b": b.reshape(own.rank, *outputs),
    }
    return found if own.m is None else found | {"m": own.m.reshape(outputs)}


def factors_out(
    a: np.ndarray, b: np.ndarray, m: Any, scale: float, *, conv: bool, embedding: bool
) -> Factors:
    """The same in the layout of torch."""
    rank = a.shape[-1]
    kernel = a.shape[:-2] if conv else ()
    first = np.moveaxis(a, (-1, -2), (0, 1)) if conv else a.reshape(-1, rank).T
    second = b.reshape(rank, -1).T
    second = second.reshape(*second.shape, *(1 for _ in kernel))
    if m is not None:
        m = m.reshape(1, -1, *(1 for _ in kernel)) if conv else m.reshape(-1)
    return Factors(first, second, m, scale, embedding)


def grouped_out(own: Factors, groups: int) -> Factors:
    """The factors of a grouped convolution, from those of its kernel.

    The kernel is `[*kernel, in / groups, out]`. There, `A` takes the inputs of all
    groups and `B` is grouped: `[r, in, *kernel]` and `[out, r / groups, 1, ...]`. So
    each group has `A` once, beside zeros, and the rank is `groups` times as large.
    """
    rank, inputs, *kernel = own.a.shape
    a = np.zeros((groups, rank, groups, inputs, *kernel), own.a.dtype)
    for group in range(groups):
        a[group, :, group] = own.a
    return own._replace(a=a.reshape(groups * rank, groups * inputs, *kernel))


def weight_in(w: np.ndarray, shape: Shape, *, kernel: bool, conv1d: bool | None) -> Any:
    """A whole parameter in our layout, or why it does not fit.

    A kernel of two axes is the transpose of a Linear's weight, and the same as that of
    a Conv1D of GPT-2; `conv1d` is None where it may be either.
    """
    if not kernel or w.ndim < 2 or (conv1d and w.ndim == 2):
        return w if w.shape == shape else f"expected {shape}, got {w.shape}"
    turned = np.moveaxis(w, (0, 1), (-1, -2))
    if conv1d is None and w.ndim == 2 and w.shape == shape:
        same = shape[0] == shape[1]
        return "square, so Linear and Conv1D look alike: pass conv1d=" if same else w
    back = (*shape[:-3:-1], *shape[:-2])
    return turned if turned.shape == shape else f"expected {back}, got {w.shape}"


def weight_out(w: np.ndarray, *, kernel: bool) -> np.ndarray:
    """A whole parameter in the layout of torch: Linear and convolutions."""
    return np.moveaxis(w, (-1, -2), (0, 1)) if kernel and w.ndim > 1 else w


def wide(x: Any) -> np.ndarray:
    """On the host, in float32 or wider."""
    x = np.asarray(x)
    return x if x.dtype == np.float64 else x.astype(np.float32)
