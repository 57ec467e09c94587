"""Intruder dimensions: strong directions of a tuned weight that the base lacks."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from lowrank import _compat, _tree
from lowrank._adapted import split
from lowrank._axes import MATRIX
from lowrank._base import Array, Operator, PyTree, is_operator
from lowrank.analysis._amplification import is_small, weight_beside
from lowrank.analysis._change import (
    Change,
    Pair,
    as_matrix,
    check_count,
    check_finite,
    check_share,
    identity_beside,
    mt,
    of_terms,
    pair_of,
)
from lowrank.linalg import leading_vectors, support
from lowrank.operators import LowRank


class Intruders(NamedTuple):
    """Which leading directions of a tuned weight are new.

    Attributes:
        cosine: `[..., k]`: for each of the leading output directions of `W + D`, the
            largest cosine with any of `W`, in [0, 1].
        mask: `[..., k]`, true for the intruders.

    Example:
        >>> cosine = jnp.array([0.9, 0.1, 0.2])
        >>> found = lrk.analysis.Intruders(cosine, cosine < 0.5)
        >>> int(found.number), found.indices
        (2, [1, 2])
    """

    cosine: Array
    mask: Array

    @property
    def number(self) -> Array:
        """How many there are, `[...]` of int32."""
        return jnp.sum(self.mask, axis=-1, dtype=jnp.int32)

    @property
    def indices(self) -> list[Any]:
        """Which they are, counted from the strongest, 0; nested for stacks."""
        rows = np.asarray(self.mask)
        found = [
            np.nonzero(row)[0].tolist() for row in rows.reshape(-1, rows.shape[-1])
        ]
        for size in rows.shape[-2:0:-1]:
            found = [found[i : i + size] for i in range(0, len(found), size)]
        return found[0] if rows.ndim == 1 else found


def found_in(w: Array, a: Array, b: Array, k: int) -> tuple[Array, Array, Array]:
    """The `k` leading output directions of `W + a b`, and how they relate to `W`.

    Returns:
        The directions `v: [*stack, m, k]`, `(W + a b) v`, and for each the largest
        cosine with an output direction of `W`, `[*stack, k]`; one for a direction that
        the sum itself lacks.
    """
    x = w + a @ b
    v = leading_vectors(mt(x), identity_beside(mt(x)), k)
    image = x @ v
    size = jnp.sqrt(jnp.sum(jnp.square(image), axis=-2))
    _, s, vt = jnp.linalg.svd(w, full_matrices=False)
    kept = support(s, max(w.shape[-2:])).astype(s.dtype)
    cosine = jnp.max(jnp.abs((vt * kept[..., :, None]) @ v), axis=-2)
    alive = support(size, max(w.shape[-2:]))
    return v, image, jnp.where(alive, jnp.minimum(cosine, 1), 1)


_found_in = functools.partial(jax.jit, static_argnames="k")(found_in)


@functools.partial(jax.jit, static_argnames="k")
def _mitigation(
    w: Array, a: Array, b: Array, epsilon: Any, scale: Any, k: int
) -> tuple[Array, Array]:
    """Factors of `(scale - 1) sum_I s_i u_i v_i^T`, since `X v_i = s_i u_i`."""
    v, image, cosine = found_in(w, a, b, k)
    share = jnp.where(cosine < epsilon, jnp.asarray(scale, w.dtype) - 1, 0)
    return image * share[..., None, :], mt(v)


def intruders(
    w: ArrayLike | Operator,
    delta: Change,
    *,
    k: int = 10,
    epsilon: ArrayLike = 0.5,
) -> Intruders:
    """Find the intruder dimensions of a change.

    Singular vector `i <= k` of `W + D` is an intruder if it is like none of `W`:

        `max_j |u_i(W + D)^T u_j(W)| < epsilon`

    Full fine-tuning tends to have none. In LoRA they were found to go with forgetting.

    Args:
        w: The weight, `[..., n, m]`: an array, or an operator with a dense form. Beside
            a leaf as `delta`, in the leaf's own layout.
        delta: The change, as `singular_values` takes it.
        k: How many of the strongest directions are looked at, in [1, min(n, m)].
        epsilon: A direction below this cosine with all others is new, in (0, 1]. May be
            traced.

    Returns:
        Cosines and a mask, with `number` and, outside `jit`, `indices`. All singular
        vectors of `W` are compared with, so one SVD of `W` and one of `W + D` are made:
        this alone among the diagnostics forms the weight. It runs under `jit` and
        `vmap`.

    Raises:
        TypeError: As `singular_values`; or if `k` is no int.
        ValueError: As `singular_values`; or if `w` does not fit the change, `k` is out
            of range, or `epsilon` lies outside (0, 1].

    Example:
        >>> w = jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0]))
        >>> new = jnp.zeros((4, 4)).at[3, 3].set(9.0)
        >>> lrk.analysis.intruders(w, new, k=3).indices
        [0]

    Notes:
        The paper's `u` are left singular vectors of `[out, in]` weights: our kernels
        are `[in, out]`, so they are the right ones here, the output directions. Pass
        transposes for the input directions. Directions in which `W` is zero up to
        rounding are none of `W`.

    References:
        Shuttleworth et al., LoRA vs full fine-tuning: an illusion of equivalence, 2024,
        arXiv:2410.21228: algorithm 1 (`k = 10`, `epsilon = 0.5`).
    """
    pair = pair_of("intruders", delta)
    check_count("intruders", "k", k, min(pair.sides))
    check_share("intruders", "epsilon", epsilon)
    weight = weight_beside("intruders", w, pair)
    _, _, cosine = _found_in(weight, pair.a, pair.b, k)
    return Intruders(cosine, cosine < epsilon)


def mitigate_intruders(
    adapted: PyTree,
    *,
    k: int = 10,
    epsilon: ArrayLike = 0.5,
    scale: ArrayLike = 0.75,
) -> PyTree:
    """Weaken the intruder dimensions of an adapter.

    With the singular vectors of `X = W + D` and its intruders `I`,

        X <- X + (scale - 1) sum_{i in I} s_i u_i v_i^T

    Args:
        adapted: A tree with low-rank terms or plain deltas on matrices; any base with a
            dense form of at most 2^24 entries.
        k: How many of the strongest directions are looked at; a smaller leaf has all
            of its looked at.
        epsilon: As for `intruders`. May be traced.
        scale: What becomes of an intruder's singular value, as a factor: 1 leaves it, 0
            removes it. May be traced.

    Returns:
        The same tree with one more `LowRank` term, of rank `k`, on each adapted matrix:
        rank `r + k` in all, with zeros where there is no intruder, so that it runs
        under `jit`. `lrk.merging.svd([tree], rank=r)` cuts it back to rank `r`, as the
        authors do. Leaves that are no matrices are the same objects.

    Raises:
        TypeError: If `k` is no int.
        ValueError: If `k < 1`, `epsilon` lies outside (0, 1], `scale` is not finite, no
            matrix is adapted, or a leaf has no change or no weight of its own to look
            at; all are named.

    Example:
        >>> w, one = jnp.diag(jnp.array([3.0, 2.0, 1.0, 0.0])), jnp.eye(4)[:, 3:]
        >>> tree = {"w": lrk.LowRank(w, one, 8.0 * one.T)}
        >>> better = lrk.analysis.mitigate_intruders(tree, k=1, scale=0.5)
        >>> round(float(lrk.materialize(better)["w"][3, 3]), 4)
        4.0

    References:
        Shuttleworth et al., 2024, arXiv:2410.21228: the scaling of intruder dimensions
        (section and the `scale` of 0.75 from secondary sources: unverified).
    """
    check_count("mitigate_intruders", "k", k, 2**31 - 1)
    check_share("mitigate_intruders", "epsilon", epsilon)
    if _compat.is_known(scale) and not np.isfinite(np.asarray(scale)).all():
        raise ValueError(
            f"mitigate_intruders: expected a finite scale, got {scale}. 0 removes "
            "intruders, 1 leaves them."
        )
    leaves = _tree.leaves("mitigate_intruders", adapted)
    ready, bad = {}, []
    for path, leaf in leaves.items():
        found = _ready(leaf)
        if isinstance(found, str):
            bad.append(f"{_tree.describe(path, leaf)}: {found}")
        elif found is not None:
            ready[path] = found
    if bad:
        raise ValueError(
            f"mitigate_intruders: cannot take apart {'; '.join(bad)}. Give it low-rank "
            "terms and plain deltas over weights that have a dense form."
        )
    if not ready:
        raise ValueError(
            f"mitigate_intruders: none of {len(leaves)} leaves is a matrix with a "
            "change. Pass an adapted tree."
        )
    check_finite(
        "mitigate_intruders", {f"'{p}'": (w, x.a, x.b) for p, (w, x) in ready.items()}
    )
    new = {
        path: _weakened(leaves[path], w, pair, k, epsilon, scale)
        for path, (w, pair) in ready.items()
    }
    return _tree.replace("mitigate_intruders", adapted, new)


def _ready(leaf: Any) -> tuple[Array, Pair] | str | None:
    """The weight and the change of a leaf, why there is none, or None for neither."""
    base, terms = split(leaf)
    if not terms:
        trained = is_operator(base) and base.trained
        return f"{type(base).__name__} is no additive term" if trained else None
    low = any(isinstance(t, LowRank) for t in terms)
    if not low and len(leaf.shape) != 2:
        return None
    pair = of_terms(leaf.shape, terms)
    if isinstance(pair, str):
        return pair
    if is_operator(base) and not is_small(base):
        return f"its base, a {type(base).__name__}, has no small dense form"
    weight = base.dense() if is_operator(base) else base
    return as_matrix(weight, pair.axes), pair


def _weakened(
    leaf: Operator, w: Array, pair: Pair, k: int, epsilon: Any, scale: Any
) -> Operator:
    """A leaf with one more term."""
    k = min(k, *pair.sides)
    a, b = _mitigation(w, pair.a, pair.b, epsilon, scale, k)
    axes = MATRIX if pair.axes is None else pair.axes
    sizes = axes.sizes(leaf.shape)
    return LowRank(
        leaf,
        a.reshape(*sizes.stack, *sizes.inputs, k),
        b.reshape(*sizes.stack, k, *sizes.outputs),
        a_dims=axes.a_dims,
        b_dims=axes.b_dims,
    )
