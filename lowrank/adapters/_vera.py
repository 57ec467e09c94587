"""VeRA: random factors that all leaves share, and trained vectors between them."""

import functools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, UInt32

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree, State, Transform
from lowrank._select import Select, check_select, is_matrix, selected
from lowrank.adapters._lora import check_leaves, check_rank
from lowrank.operators import LowRank

_IMPLEMENTATION = "threefry2x32"


@functools.partial(jax.jit, static_argnums=(1, 2))
def shared_rows(
    seed: UInt32[Array, "2"], count: int, rank: int
) -> Float[Array, "count columns"]:
    """The first rows of an endless random matrix of `2 r` columns, uniform in (-1, 1).

    Row `i` depends on the seed and on `i` alone: a longer matrix has the same first
    rows, so that leaves of all sizes have slices of one.
    """
    key = jax.random.wrap_key_data(seed, impl=_IMPLEMENTATION)

    def row(i: Array) -> Array:
        return jax.random.uniform(jax.random.fold_in(key, i), (2 * rank,), minval=-1.0)

    return jax.vmap(row)(jnp.arange(count))


def shared_factors(
    inputs: Float[Array, "n columns"], outputs: Float[Array, "m columns"]
) -> tuple[Float[Array, "n r"], Float[Array, "r m"]]:
    """`A` and `B`, uniform with variances `2 / n` and `2 / r`, from halves of rows."""
    (n, columns), rank = inputs.shape, inputs.shape[1] // 2
    a = inputs[:, :rank] * math.sqrt(6 / n)
    b = outputs[:, rank:columns] * math.sqrt(6 / rank)
    return a, b.T


def scaled_factor(
    b: Float[Array, "r m"],
    lambda_d: Float[Array, "*stack r"],
    lambda_b: Float[Array, "*stack m"],
) -> Float[Array, "r *stack m"]:
    """`diag(d) B diag(b)`, for each index of a stack."""
    b = b.reshape((1,) * (lambda_d.ndim - 1) + b.shape)
    both = lambda_d[..., :, None] * b * lambda_b[..., None, :]
    return jnp.moveaxis(both, -2, 0)


def vera(
    rank: int,
    *,
    d_initial: float = 0.1,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Transform:
    """VeRA: train two vectors beside random factors that all leaves share.

    A kernel `W: [n, m]` becomes `W + A diag(d) B diag(b)` with `A: [n, r]` and
    `B: [r, m]` random and frozen, `d: [r]` and `b: [m]` trained. `A` and `B` of every
    leaf are the first rows and columns of one pair of matrices, which is drawn from two
    stored words in each `apply`, once for each size that occurs.

    Args:
        rank: Inner size `r`, at least 1; it may exceed the sides of a leaf.
        d_initial: What `d` starts at.
        select: Which leaves to adapt; called once, in `init`, as `select(path, leaf)`.
        axes: As for `lora`; each index of a stack has vectors of its own.

    Returns:
        A transform that is the identity at init. Trainable: `lambda_d: [*stack, r]`
        and `lambda_b: [*stack, *out]`, float32. Fixed: `seed`, two uint32 numbers, the
        same at every leaf.

    Raises:
        TypeError: If `rank` is not an int.
        ValueError: If `rank < 1`; in `init`, if a selected leaf cannot be adapted; in
            `apply`, if the state is of another tree, or has seeds of several inits.

    Example:
        >>> tx = lrk.vera(256)
        >>> params = {"v": jnp.ones((4, 3)), "w": jnp.ones((3, 5))}
        >>> state = tx.init(jax.random.key(0), params)
        >>> lrk.count(state)
        (520, 0)

    Notes:
        PEFT draws both matrices in the largest size of a model, so the spread of a
        leaf's `A` depends on the other leaves: its variance is `2 / n_max`. Here it is
        `2 / n`, and adding a leaf changes no other. `store_a=False` of `lori` says what
        drawing from a seed assumes.

    References:
        Kopiczko, Blankevoort and Asano, VeRA, 2023, arXiv:2310.11454: eq. 2,
        `h = W0 x + Lambda_b B Lambda_d A x` (transposed: our kernels are `[in, out]`).
    """
    rank = check_rank("vera", rank)
    check_select("vera", select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("vera", key)
        chosen = selected("vera", params, select)
        found = resolve("vera", chosen, axes)
        check_leaves("vera", 1, chosen, found)
        seed = jax.random.bits(key, (2,), jnp.uint32)
        trainable = {}
        for path, leaf in chosen.items():
            stack, _, outputs = found[path].sizes(tuple(leaf.shape))
            trainable[path] = {
                "lambda_d": jnp.full((*stack, rank), d_initial, jnp.float32),
                "lambda_b": jnp.zeros((*stack, *outputs), jnp.float32),
            }
        return State(trainable, {path: {"seed": seed} for path in chosen})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves("vera", params)
        names = {"trainable": ("lambda_d", "lambda_b"), "fixed": ("seed",)}
        _check.check_state("vera", leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        found = resolve("vera", chosen, axes)
        draw = functools.cache(functools.partial(shared_rows, _one_seed(state)))
        new = {}
        for path, w in chosen.items():
            own = state.trainable[path]
            sizes = found[path].sizes(tuple(w.shape))
            n, m = math.prod(sizes.inputs), math.prod(sizes.outputs)
            own_rank = own["lambda_d"].shape[-1]
            a, b = shared_factors(draw(n, own_rank), draw(m, own_rank))
            new[path] = with_vectors(w, a, b, own, found[path])
        _check.check_operators("vera", new)
        return _tree.replace("vera", params, new)

    return Transform(init, apply)


def with_vectors(
    w: Any, a: Array, b: Array, own: Mapping[str, Array], axes: Axes
) -> Operator:
    """`W + A diag(d) B diag(b)`; `a` holds no stack axis, so it is kept once."""
    stack, inputs, outputs = axes.sizes(tuple(w.shape))
    lambda_b = own["lambda_b"].reshape(*stack, b.shape[-1])
    return LowRank._make(
        w=w,
        a=a.reshape(*inputs, a.shape[-1]),
        b=scaled_factor(b, own["lambda_d"], lambda_b).reshape(
            a.shape[-1], *stack, *outputs
        ),
        scale=jnp.float32(1.0),
        a_dims=axes.inputs,
        b_dims=axes.b_dims,
    )


def _one_seed(state: State) -> Array:
    """The seed that all leaves share.

    Raises:
        ValueError: If leaves have several, where that can be seen.
    """
    (first, seed), *others = ((p, leaf["seed"]) for p, leaf in state.fixed.items())
    odd = [
        path
        for path, other in others
        if other is not seed
        and _compat.is_concrete(other)
        and _compat.is_concrete(seed)
        and not np.array_equal(other, seed)
    ]
    if odd:
        raise ValueError(
            f"vera: the seeds at {_tree.quoted(odd)} are not that at '{first}': all "
            "leaves of one transform share it. Make the state by one init, and apply "
            "another transform to the other leaves by chain."
        )
    return seed
