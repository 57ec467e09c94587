"""Optimiser recipes for factors, as Optax transformations: LoRA+ and LoRA-FA."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from lowrank._axes import Axes, resolve
from lowrank._base import Path, PyTree

_WHO = "training.lora_fa"


def _init(params: PyTree) -> optax.EmptyState:
    """These transformations remember nothing."""
    del params
    return optax.EmptyState()


def leaf_names(trainable: PyTree) -> PyTree:
    """The name of every leaf, in a tree of the same structure.

    Args:
        trainable: The trainable part of a state.

    Returns:
        `a`, `b`, `d` and so on where the arrays stood: labels for `optax.partition`.

    Example:
        >>> tx = lrk.lora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> lrk.training.leaf_names(state.trainable)
        {'w': {'a': 'a', 'b': 'b'}}
        >>> import optax
        >>> slow, fast = optax.adam(1e-4), optax.adam(1e-3)
        >>> both = optax.partition(
        ...     {"a": slow, "b": fast}, lrk.training.leaf_names
        ... )
    """

    def name(keys: tuple[Any, ...], leaf: Any) -> str:
        del leaf
        named = [str(key.key) for key in keys if hasattr(key, "key")]
        return named[-1] if named else ""

    return jax.tree_util.tree_map_with_path(name, trainable)


def lora_plus(ratio: Any) -> optax.GradientTransformation:
    """LoRA+: a larger learning rate for `B` than for `A`.

    Put it last: it multiplies the finished update of every `b` by `ratio`. An update is
    proportional to the learning rate, so `eta_B = ratio * eta_A` (and what decays by
    the rate decays by the larger one, as in a parameter group of its own).

    Args:
        ratio: `eta_B / eta_A`, above 0; the paper wants it well above 1. May be traced.

    Returns:
        An Optax transformation without a state. Leaves of other names than `b` keep
        their rate.

    Raises:
        ValueError: If the ratio is not positive.

    Example:
        >>> import optax
        >>> optimizer = optax.chain(optax.sgd(0.1), lrk.training.lora_plus(16.0))
        >>> grads = {"w": {"a": jnp.ones(()), "b": jnp.ones(())}}
        >>> updates, _ = optimizer.update(grads, optimizer.init(grads))
        >>> [round(float(updates["w"][name]), 3) for name in ("a", "b")]
        [-0.1, -1.6]

    References:
        Hayou et al., LoRA+, 2024, arXiv:2402.12354: the two learning rates of its
        method, eta_A = eta and eta_B = lambda eta.
    """
    if isinstance(ratio, (int, float)) and not ratio > 0:
        raise ValueError(f"training.lora_plus: ratio must be above 0, got {ratio}.")

    def update(updates: PyTree, state: Any, params: Any = None) -> tuple[PyTree, Any]:
        del params

        def scaled(x: Array, name: str) -> Array:
            return x * jnp.asarray(ratio, x.dtype) if name == "b" else x

        return jax.tree.map(scaled, updates, leaf_names(updates)), state

    return optax.GradientTransformation(_init, update)


def corrected(
    a: Float[Array, "*stack n r"],
    grad: Float[Array, "*stack r m"],
    scale: Float[Array, "*stack"],
    damping: float,
) -> Float[Array, "*stack r m"]:
    """`(A^T A)^-1 dB / scale^2`: `scale A` times it is nearest to the full gradient."""
    wide = a.astype(jnp.float32)
    gram = jnp.swapaxes(wide, -1, -2) @ wide
    gram += jnp.broadcast_to(damping * jnp.eye(a.shape[-1]), gram.shape)
    solved = jnp.linalg.solve(gram, grad.astype(jnp.float32))
    by = jnp.broadcast_to(scale, grad.shape[:-2]).astype(jnp.float32)
    return (solved / by[..., None, None] ** 2).astype(grad.dtype)


def lora_fa(
    inner: optax.GradientTransformation,
    *,
    axes: Mapping[Path, Axes] | None = None,
    damping: float = 1e-8,
) -> optax.GradientTransformationExtraArgs:
    """LoRA-FA: leave `A` as it was drawn, and correct the gradient of `B`.

    With `A: [n, r]` frozen and `W + s A B`, a step `X` in `B` moves the weight by
    `s A X`. Nearest to the full gradient `G: [n, m]` in the Frobenius norm is
    `X = (A^T A)^-1 A^T G / s = (A^T A)^-1 dB / s^2`, where `dB = s A^T G` is the
    gradient that autodiff gives.

    Args:
        inner: The optimiser, which meets the corrected gradient. Whatever it would do
            to `A`, weight decay among it, is left out.
        axes: As for `lora`, for leaves that have not exactly two axes.
        damping: What is added to the diagonal of `A^T A`, at least 0.

    Returns:
        An Optax transformation with the state of `inner`. The update of `a` is zero;
        `b` has the update for the corrected gradient, other leaves for their own. It
        needs the extra argument `fixed`, which `training.step` gives: the scale is
        there and, for `lori`, `A` too.

    Raises:
        ValueError: If the damping is negative; in `update`, if `params` or `fixed` is
            missing, or a leaf's `A` is not stored, packed, or of unknown axes.

    Example:
        >>> import optax
        >>> optimizer = lrk.training.lora_fa(optax.adamw(0.1))
        >>> tx = lrk.lora(2)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> updates, _ = optimizer.update(
        ...     state.trainable, optimizer.init(state.trainable), state.trainable,
        ...     fixed=state.fixed,
        ... )
        >>> float(jnp.abs(updates["w"]["a"]).max())
        0.0

    Notes:
        With `lrk.lori`, whose `A` is fixed already, the gradient of `A` and its
        optimiser state do not exist at all: that is LoRA-FA with all of its saving. The
        damping stands for the pseudo-inverse of PEFT's optimiser; columns of `A` that
        `pad_ranks` added stay without effect.

    References:
        Zhang et al., LoRA-FA, 2023, arXiv:2308.03303: the corrected gradient of B, with
        s = alpha / r (transposed: our kernels are `[in, out]`).
    """
    if not damping >= 0:
        raise ValueError(f"{_WHO}: damping must be at least 0, got {damping}.")

    def one(path: Path, own: Any, params: Any, fixed: Any) -> Any:
        if "b" not in own:
            return own
        a = params.get("a", fixed.get("a"))
        if a is None or "scale" not in fixed or "index" in fixed:
            raise ValueError(
                f"{_WHO}: cannot correct the gradient at '{path}': it has no stored A "
                "with a scale, or B is packed. Use lora, or lori without a mask and "
                "with store_a=True."
            )
        b = _matrix(path, own["b"], a, fixed["scale"], axes, damping)
        return _still(path, {**own, "b": b})

    inner = optax.with_extra_args_support(inner)

    def update(
        updates: PyTree, state: Any, params: Any = None, **extra: Any
    ) -> tuple[PyTree, Any]:
        if params is None or "fixed" not in extra:
            raise ValueError(
                f"{_WHO}: needs params and fixed. Call optimizer.update(grads, memory, "
                "trainable, fixed=state.fixed), as training.step does."
            )
        own = _by_path(one, updates, params, extra["fixed"])
        updates, state = inner.update(own, state, params, **extra)
        return _by_path(_still, updates), state

    return optax.GradientTransformationExtraArgs(inner.init, update)


def _still(path: Path, own: Any) -> Any:
    """The same with an `A` that does not move."""
    del path
    fixed = "a" in own and "b" in own
    return {**own, "a": jnp.zeros_like(own["a"])} if fixed else own


def _matrix(
    path: Path,
    grad: Array,
    a: Array,
    scale: Array,
    axes: Mapping[Path, Axes] | None,
    damping: float,
) -> Array:
    """The corrected gradient of a leaf of any axes."""
    ndim = a.ndim + grad.ndim - 2
    depth = len(axes[path].stack) if axes and path in axes else 0
    leaf = jax.ShapeDtypeStruct((1,) * (ndim - depth), jnp.float32)
    resolve(_WHO, {path: leaf}, axes)
    stack, rank = a.shape[:depth], a.shape[-1]
    thin = a.reshape(*stack, -1, rank)
    flat = grad.reshape(*stack, rank, -1)
    return corrected(thin, flat, scale, damping).reshape(grad.shape)


def _by_path(fn: Callable[..., Any], updates: Any, *others: Any) -> Any:
    """`fn(path, updates, *others)` for every path, in every member of a chain."""
    if isinstance(updates, tuple):
        own = zip(updates, *others, strict=True)
        return tuple(_by_path(fn, *parts) for parts in own)
    return {
        path: fn(path, own, *(other.get(path, {}) for other in others))
        for path, own in updates.items()
    }
