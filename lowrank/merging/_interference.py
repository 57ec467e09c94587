"""How far adapters stand in each other's way, before they are merged."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _show
from lowrank._base import Array, Path, PyTree
from lowrank.merging._factors import Matrices, Plain, factored
from lowrank.merging._overlap import column_basis, largest_cosine

# Squared sines that add up to less than this are those of one space.
_SAME = 1e-3


class Interference(NamedTuple):
    """Pairs of adapters at each leaf; prints as a table of the worst pairs.

    Every entry is `[*stack, T, T]` for `T` trees, symmetric, with the tree itself on
    the diagonal. Rows and columns of a tree that leaves the leaf alone are zero.

    Attributes:
        cosine: By path, cosines of the deltas.
        overlap: By path, the largest cosine of the principal angles between the input
            directions (column spaces of `A`), for matrices. A plain delta counts as
            `A = 1` if it has no more inputs than outputs.
        same_inputs: By path, whether the input directions are one and the same space.
        conflict: By path, share of the entries changed by both trees that they change
            in opposite directions; empty unless asked for.
    """

    cosine: dict[Path, Array]
    overlap: dict[Path, Array]
    same_inputs: dict[Path, Array]
    conflict: dict[Path, Array]

    def __repr__(self) -> str:
        """One line for each leaf: its worst pair in each respect."""
        leaves = jax.tree.leaves(self)
        if not all(_compat.is_concrete(x) or isinstance(x, np.ndarray) for x in leaves):
            return f"Interference(traced, {len(self.cosine)} leaves)"
        return _show.grid_text("Interference", *self._table())

    def _repr_html_(self) -> str:
        return _show.grid_html("Interference", *self._table())

    def _table(self) -> tuple[list[str], list[list[str]], str]:
        head = ["path", "cosine", "overlap", "conflict", "same inputs"]
        body = []
        for path in self.cosine:
            kinds = (self.cosine, self.overlap, self.conflict)
            line = [path, *(_worst(kind.get(path)) for kind in kinds)]
            body.append([*line, _pairs(self.same_inputs.get(path))])
        shared = sum(line[-1] not in ("no", "-") for line in body)
        foot = "worst pair of trees in brackets"
        if shared:
            foot += f"; {shared} of {len(body)} leaves share their inputs"
        return head, body, foot


def interference(trees: Sequence[PyTree], *, signs: bool = False) -> Interference:
    """Measure, for each leaf and each pair of adapters, how far they interfere.

    For deltas `D_t = s_t A_t B_t` the cosine is `<D_s, D_t> / (|D_s| |D_t|)` with
    `<D_s, D_t> = sum((A_s^T A_t) * (B_s B_t^T))`, from the factors alone. Cosines near
    zero are what a sum of adapters can bear. Where two trees read the same input
    directions, `same_inputs` says so: as they do if they were started from one key,
    which undoes what LoRI rests on, and makes `linear` `T` times too large.

    Args:
        trees: Adapted trees over one base, at least two; ranks may differ.
        signs: Whether to count conflicts of signs. This part alone forms the deltas,
            one leaf at a time, as TIES would see them.

    Returns:
        Numbers for each leaf that a tree adapts, as arrays `[*stack, T, T]`; they print
        as a table. It runs under `jit`, and the cosines are differentiable.

    Raises:
        TypeError: If `trees` is no list.
        ValueError: If there are fewer than two trees, their bases differ, a term is
            neither low-rank nor a plain delta, or factors of a leaf hold different
            axes.

    Example:
        >>> params, tx = {"w": jnp.ones((64, 8))}, lrk.lora(2)
        >>> key = jax.random.key(0)  # one key for both: the trap
        >>> trees = [tx.apply(params, tx.init(key, params)) for _ in range(2)]
        >>> found = lrk.merging.interference(trees)
        >>> bool(found.same_inputs["w"][0, 1])
        True

    Notes:
        Two spaces count as one if they have one dimension, and the squared sines of
        their principal angles add up to less than 0.001. Spaces as wide as the inputs
        of a leaf are all one. Where two deltas have no common entry, the share of
        conflicts is zero.

    References:
        Bjorck and Golub, Numerical methods for computing angles between linear
        subspaces, 1973: theorem 1. Yadav et al., TIES-merging, 2023, arXiv:2306.01708:
        section 3, on conflicts of signs. Zhang et al., LoRI, 2025, arXiv:2504.07448.
    """
    leaves = factored("interference", trees)
    if len(trees) < 2:
        raise ValueError("interference: expected at least two adapted trees, got one.")
    result = Interference({}, {}, {}, {})
    for path, leaf in leaves.items():
        result.cosine[path] = _cosines(leaf)
        if isinstance(leaf, Matrices):
            result.overlap[path], result.same_inputs[path] = shared_inputs(leaf.a)
        if signs:
            result.conflict[path] = _conflicts(leaf)
    return result


def delta_cosines(a: Array, b: Array, owner: np.ndarray) -> Array:
    """Cosines of `D_t`, the sum of those `a_i b_i` whose owner is `t`.

    Args:
        a: `[*stack, n, R]`.
        b: `[*stack, R, m]`.
        owner: `[R, T]`, 0 or 1.
    """
    inner = (jnp.matrix_transpose(a) @ a) * (b @ jnp.matrix_transpose(b))
    sides = jnp.asarray(owner, inner.dtype)
    return _normal(sides.T @ inner @ sides)


def _normal(inner: Array) -> Array:
    """Inner products `[*stack, T, T]` as cosines; zero for what has no length."""
    square = jnp.diagonal(inner, axis1=-2, axis2=-1)
    alive = square > 0
    over = jnp.where(alive, jax.lax.rsqrt(jnp.where(alive, square, 1)), 0)
    return jnp.clip(inner * over[..., None, :] * over[..., :, None], -1, 1)


def _cosines(leaf: Matrices | Plain) -> Array:
    if isinstance(leaf, Plain):
        flat = jnp.stack([x.reshape(-1) for x in _dense(leaf)])
        return _normal(flat @ flat.T)
    owner = np.repeat(np.eye(len(leaf.a)), [a.shape[-1] for a in leaf.a], axis=0)
    a, b = jnp.concatenate(leaf.a, axis=-1), jnp.concatenate(leaf.b, axis=-2)
    return delta_cosines(a, b, owner)


def shared_inputs(factors: Sequence[Array]) -> tuple[Array, Array]:
    """Largest cosine of the column spaces of `[*stack, n, r_t]`, and if they are one.

    Returns:
        `[*stack, T, T]` each.
    """
    stack, number = factors[0].shape[:-2], len(factors)
    bases = [column_basis(a) if a.shape[-1] else None for a in factors]

    def pair(s: int, t: int) -> tuple[Array, Array]:
        one, two = bases[s], bases[t]
        if one is None or two is None:
            return jnp.zeros(stack), jnp.zeros(stack, bool)
        return largest_cosine(one, two), _one_space(one, two)

    cosine, same = _grid(number, pair)
    return cosine, same


def _one_space(one: Array, two: Array) -> Array:
    """Whether two bases, which may hold columns of zeros, span one space."""

    def energy(x: Array) -> Array:
        return jnp.sum(jnp.square(x), axis=(-2, -1))

    larger = jnp.maximum(energy(one), energy(two))
    common = energy(jnp.matrix_transpose(one) @ two)
    return (larger > 0.5) & (larger - common < _SAME)


def _grid(number: int, pair: Callable[[int, int], Sequence[Array]]) -> list[Array]:
    """Numbers `[*stack]` of each pair of trees as symmetric `[*stack, T, T]`."""
    every = range(number)
    upper = {(s, t): pair(s, t) for s in every for t in range(s, number)}
    rows = [[upper[min(s, t), max(s, t)] for t in every] for s in every]
    return [
        jnp.stack([jnp.stack([x[i] for x in row], axis=-1) for row in rows], axis=-2)
        for i in range(len(rows[0][0]))
    ]


def _dense(leaf: Matrices | Plain) -> list[Array]:
    """The deltas of all trees, `[*stack, n, m]`; zeros where there is none."""
    if isinstance(leaf, Matrices):
        return [a @ b for a, b in zip(leaf.a, leaf.b, strict=True)]
    known = next(d for d in leaf.d if d is not None)
    return [jnp.zeros_like(known) if d is None else d for d in leaf.d]


def _conflicts(leaf: Matrices | Plain) -> Array:
    """Share of the entries that two trees both change where their signs differ."""
    signs = [jnp.sign(d).astype(jnp.int8) for d in _dense(leaf)]
    axes = (-2, -1) if isinstance(leaf, Matrices) else tuple(range(signs[0].ndim))

    def pair(s: int, t: int) -> tuple[Array]:
        both = signs[s] * signs[t]
        opposed, common = (jnp.sum(x, axis=axes) for x in (both < 0, both != 0))
        return (opposed / jnp.maximum(common, 1),)

    return _grid(len(signs), pair)[0]


def _worst(values: Array | None) -> str:
    """The entry of the largest magnitude between two trees, over the stack too."""
    if values is None:
        return "-"
    flat = np.asarray(values, np.float64).reshape(-1, *values.shape[-2:])
    upper = np.triu(np.ones(flat.shape[-2:]), 1)
    index = np.argmax(np.abs(flat) * upper - (1 - upper))
    _, s, t = np.unravel_index(index, flat.shape)
    return f"{flat.reshape(-1)[index]:.3f} ({s}, {t})"


def _pairs(same: Array | None) -> str:
    """The pairs of trees with one input space, at any stack index."""
    if same is None:
        return "-"
    flat = np.asarray(same).reshape(-1, *same.shape[-2:]).any(axis=0)
    pairs = zip(*np.nonzero(np.triu(flat, 1)), strict=True)
    return " ".join(f"({s}, {t})" for s, t in pairs) or "no"
