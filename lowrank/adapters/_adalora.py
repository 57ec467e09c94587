"""AdaLoRA: low-rank terms in the form of an SVD, whose triplets can be pruned."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import (
    Initializer,
    check_leaves,
    check_rank,
    draw_pair,
    scale_of,
)
from lowrank.operators import LowRank

small = jax.nn.initializers.normal(0.02)


def gram_excess(x: Float[Array, "*stack r k"]) -> Float[Array, ""]:
    """`||X X^T - 1||_F^2`, summed over a stack."""
    gram = jnp.matmul(x, jnp.matrix_transpose(x))
    eye = jnp.eye(x.shape[-2], dtype=x.dtype)
    return jnp.sum(jnp.square(gram - eye.reshape((1,) * (x.ndim - 2) + eye.shape)))


def as_rows(
    own: Mapping[str, Array],
) -> tuple[Float[Array, "*stack r n"], Float[Array, "*stack r m"]]:
    """`P^T` and `Q` of a leaf, whatever its axes: one row for each triplet."""
    shape = own["lambda"].shape
    p = own["a"].reshape(*shape[:-1], -1, shape[-1])
    return jnp.matrix_transpose(p), own["b"].reshape(*shape, -1)


def adalora(
    rank: int,
    *,
    alpha: Any = None,
    scale: Any = None,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    init: Initializer = small,
) -> Transform:
    """AdaLoRA: train a low-rank term in the form of an SVD, and prune its triplets.

    A kernel `W: [n, m]` becomes `W + s P diag(lambda) Q` with `P: [n, r]` and
    `Q: [r, m]` random and `lambda: [r]` zero at init, all trained. `adalora_penalty`
    keeps `P` and `Q` near to orthonormal; `adalora_mask` says which triplets are worth
    their place, and `adalora_prune` and `adalora_freeze` act on it.

    Args:
        rank: Inner size `r` at the start, at least 1 and at most the smaller side of
            each leaf.
        alpha: The scale `s` is `alpha / rank`; None for a scale of 1. May be traced.
        scale: The scale itself, in place of `alpha`. May be traced.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack has triplets of its own.
        init: Initializer of `P` and `Q`, called as `init(key, shape, float32)`.

    Returns:
        A transform that is the identity at init. Trainable: `a` and `b`, the factors,
        and `lambda`, `[*stack, r]`, float32. Fixed: `scale`, and `mask`, bools of the
        shape of `lambda`: a triplet without its place is zero, and so are its
        gradients.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`, or `alpha` and `scale` are both given; in `init`, if
            a selected leaf cannot be adapted; in `apply`, if the state is of another
            tree.

    Example:
        >>> tx = lrk.adalora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> {name: leaf.shape for name, leaf in state.trainable["w"].items()}
        {'a': (4, 2), 'b': (2, 3), 'lambda': (2,)}

    Notes:
        Arrays keep their size while triplets lose their place. PEFT divides by
        `r + 1e-5`.

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.1,
        `W = W0 + P Lambda Q` (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("adalora", rank)
    check_select("adalora", select)
    number = scale_of("adalora", rank, alpha, scale)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key("adalora", key)
        chosen = selected("adalora", params, select)
        found = resolve("adalora", chosen, axes)
        check_leaves("adalora", rank, chosen, found)
        trainable, fixed = {}, {}
        for path, leaf in chosen.items():
            sizes = found[path].sizes(tuple(leaf.shape))
            pair = draw_pair(key, path, sizes, rank, init, init)
            trainable[path] = {**pair, "lambda": jnp.zeros((*sizes.stack, rank))}
            mask = jnp.ones((*sizes.stack, rank), bool)
            fixed[path] = {"mask": mask, "scale": jnp.asarray(number, jnp.float32)}
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("adalora", params)
        names = {"trainable": ("a", "b", "lambda"), "fixed": ("mask", "scale")}
        _check.check_state("adalora", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("adalora", chosen, axes)
        new = {
            path: _triplets(w, state.trainable[path], state.fixed[path], found[path])
            for path, w in chosen.items()
        }
        _check.check_operators("adalora", new)
        return _tree.replace("adalora", params, new)

    return Transform(start, apply)


def _triplets(
    w: Any, own: Mapping[str, Array], fixed: Mapping[str, Array], axes: Axes
) -> Operator:
    """`W + s P (diag(lambda) Q)`, with zeros where the mask has none."""
    kept = jnp.where(fixed["mask"], own["lambda"], jnp.zeros_like(own["lambda"]))
    wide = kept.reshape(*kept.shape, *(1,) * (own["b"].ndim - kept.ndim))
    values = {"w": w, "a": own["a"], "b": wide * own["b"], "scale": fixed["scale"]}
    return LowRank._make(**values, a_dims=axes.a_dims, b_dims=axes.b_dims)


def adalora_penalty(trainable: Mapping[Path, Mapping[str, Array]]) -> Array:
    """How far the factors of `adalora` are from orthonormal.

    It is the sum of `||P^T P - 1||_F^2 + ||Q Q^T - 1||_F^2` over all leaves, to be
    added to a loss with a weight of 0.1 or so.

    Args:
        trainable: The trainable half of a state of `adalora`.

    Returns:
        A scalar, zero where all factors are orthonormal.

    Example:
        >>> tx = lrk.adalora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> bool(lrk.adapters.adalora_penalty(state.trainable) > 3)
        True

    Notes:
        PEFT adds the mean of the norms, not the sum of their squares.

    References:
        Zhang et al., AdaLoRA, 2023, arXiv:2303.10512: section 3.1, `R(P, Q)`.
    """
    terms = [gram_excess(x) for own in trainable.values() for x in as_rows(own)]
    return jnp.sum(jnp.stack(terms))
