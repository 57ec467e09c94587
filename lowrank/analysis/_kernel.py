"""The empirical tangent kernel of an adapter and of a whole model."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from lowrank import _tree
from lowrank._base import Array, PyTree, is_floating, is_operator
from lowrank.analysis._change import check_finite, length, ratio, wide

Fn = Callable[[PyTree, Any], Array]


def kernel(
    fn: Fn,
    params: PyTree,
    x: PyTree,
    other: PyTree | None = None,
    *,
    trace: bool = True,
    batch_size: int | None = None,
) -> Array:
    """The empirical neural tangent kernel of a function, at its parameters.

        K[i, j] = sum_o <d f_o(x_i) / d params, d f_o(y_j) / d params>

    Which kernel that is, `params` says. That of an adapter, of whose frozen base it
    never takes a derivative:

        kernel(lambda t, x: lifted(tx.apply(params, state._replace(trainable=t)), x),
               state.trainable, x)

    and that of all weights at the same point:

        kernel(model, lrk.materialize(tx.apply(params, state)), x)

    Args:
        fn: `fn(params, batch)` gives an array whose first axis is that of the batch. It
            is called with batches of one, and must treat examples one by one.
        params: What is differentiated: all its floating leaves. Integers are constants.
        x: Examples: arrays with one first axis, of size `N`.
        other: Examples `y`, of size `M`; None for `x` itself.
        trace: Whether to sum over outputs; otherwise all pairs of outputs are kept.
        batch_size: None holds the derivatives at all examples at once, `N O P` numbers
            for `O` outputs and `P` parameters. A number takes so many rows of the
            kernel at a time, each by a reverse pass at `x_i` and a forward pass at all
            `y`: `batch_size O P` numbers, and more arithmetic.

    Returns:
        `[N, M]`, or `[N, M, O, O]` without `trace`. It can be jitted.

    Raises:
        TypeError: If `params` holds operators, or nothing that is floating, or
            `batch_size` is no int.
        ValueError: If `x` has no examples or its arrays differ in their number, the
            parameters are not finite, or `batch_size < 1`.

    Example:
        >>> def fn(w, x):
        ...     return x @ w
        >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
        >>> lrk.analysis.kernel(fn, jnp.zeros((2, 1)), x).tolist()
        [[1.0, 1.0], [1.0, 5.0]]

    References:
        Jacot et al., Neural tangent kernel, 2018, arXiv:1806.07572: eq. for the kernel.
        Malladi et al., A kernel-based view of language model fine-tuning, 2023,
        arXiv:2210.05643: that of LoRA against that of all weights.
    """
    _check(params, x, other, batch_size)
    other = x if other is None else other
    leaves, treedef = jax.tree.flatten(params)
    moving = [i for i, leaf in enumerate(leaves) if is_floating(leaf)]

    def outputs(own: list[Array], example: PyTree) -> Array:
        whole = list(leaves)
        for i, leaf in zip(moving, own, strict=True):
            whole[i] = leaf
        one = jax.tree.map(lambda leaf: jnp.asarray(leaf)[None], example)
        return wide(fn(jax.tree.unflatten(treedef, whole), one)).reshape(-1)

    own = [jnp.asarray(leaves[i]) for i in moving]
    rows = _by_factors if batch_size is None else _by_passes
    found = rows(outputs, own, x, other, batch_size)  # [N, M, O, O]
    return jnp.trace(found, axis1=-2, axis2=-1) if trace else found


def _by_factors(outputs: Any, own: Any, x: Any, other: Any, _: Any) -> Array:
    """Both Jacobians, contracted leaf by leaf."""

    def jacobian(examples: PyTree) -> list[Array]:
        return jax.vmap(lambda e: jax.jacrev(outputs)(own, e))(examples)

    left = jacobian(x)
    right = left if other is x else jacobian(other)
    total = 0.0
    for one, two in zip(left, right, strict=True):
        one, two = (wide(j).reshape(*j.shape[:2], -1) for j in (one, two))
        total = total + jnp.einsum("iop,jqp->ijoq", one, two)
    return jnp.asarray(total)


def _by_passes(outputs: Any, own: Any, x: Any, other: Any, batch_size: Any) -> Array:
    """Rows one after another: back from each output of `x_i`, forward at all `y`."""

    def row(example: PyTree) -> Array:
        value, back = jax.vjp(lambda p: outputs(p, example), own)

        def along(unit: Array) -> Array:
            (direction,) = back(unit)
            return jax.vmap(
                lambda e: jax.jvp(lambda p: outputs(p, e), (own,), (direction,))[1]
            )(other)

        basis = jnp.eye(value.shape[0], dtype=value.dtype)
        return jnp.moveaxis(jax.vmap(along)(basis), 0, 1)  # [M, O, O]

    return jax.lax.map(row, x, batch_size=batch_size)


def _check(params: PyTree, x: PyTree, other: PyTree | None, batch_size: Any) -> None:
    """Refuse what cannot be differentiated or mapped over.

    Raises:
        TypeError: As `kernel`.
        ValueError: As `kernel`.
    """
    leaves = _tree.leaves("kernel", params)
    if stuck := [path for path, leaf in leaves.items() if is_operator(leaf)]:
        raise TypeError(
            f"kernel: params holds operators at {_tree.quoted(stuck[:8])}. "
            "Differentiate state.trainable, or lrk.materialize(adapted)."
        )
    floating = {path: leaf for path, leaf in leaves.items() if is_floating(leaf)}
    if not floating:
        raise TypeError(
            f"kernel: none of {len(leaves)} leaves of params is floating. Pass what is "
            "to be differentiated."
        )
    for name, examples in (("x", x), ("other", other)):
        sizes = sorted({jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(examples)})
        empty = not sizes and name == "x"
        if empty or len(sizes) > 1 or sizes[:1] in ([()], [(0,)]):
            raise ValueError(
                f"kernel: expected arrays with one first axis of examples as {name}, "
                f"got {sizes or 'none'}."
            )
    if batch_size is not None and not hasattr(batch_size, "__index__"):
        raise TypeError(f"kernel: batch_size must be an int, got {batch_size!r}.")
    if batch_size is not None and batch_size < 1:
        raise ValueError(f"kernel: batch_size must be at least 1, got {batch_size}.")
    check_finite("kernel", {f"'{path}'": leaf for path, leaf in floating.items()})


def kernel_alignment(k1: ArrayLike, k2: ArrayLike, *, centered: bool = False) -> Array:
    """How alike two kernels are: `<K1, K2> / (|K1|_F |K2|_F)`.

    Args:
        k1: `[N, M]`, or with more axes, of which all count as entries.
        k2: Another of the same shape.
        centered: Whether the mean of the features is taken off first, `H K H` with
            `H = 1 - 11^T / N`. For this, matrices only.

    Returns:
        A number in [-1, 1]; in [0, 1] for kernels of one set of examples. One if they
        are multiples of each other; zero if one of them is zero. Differentiable.

    Raises:
        ValueError: If the shapes differ, `centered` meets other than two axes, or
            numbers are not finite.

    Example:
        >>> one, two = jnp.eye(2), jnp.ones((2, 2))
        >>> round(float(lrk.analysis.kernel_alignment(one, two)), 4)
        0.7071
        >>> float(lrk.analysis.kernel_alignment(one, two, centered=True))
        0.0

    References:
        Cristianini et al., On kernel-target alignment, 2001, NeurIPS: definition 1.
        Cortes et al., Algorithms for learning kernels based on centered alignment,
        2012, JMLR 13: definition 4.
    """
    one, two = wide(k1), wide(k2)
    if one.shape != two.shape or not one.size:
        raise ValueError(
            f"kernel_alignment: expected kernels of one shape, got {one.shape} and "
            f"{two.shape}. Evaluate both on the same examples."
        )
    if centered and one.ndim != 2:
        raise ValueError(
            f"kernel_alignment: expected [N, M] to centre, got {one.shape}. Trace over "
            "the outputs first."
        )
    check_finite("kernel_alignment", {"k1": one, "k2": two})
    if centered:
        one, two = _centred(one), _centred(two)
    size = length(jnp.sum(jnp.square(one))) * length(jnp.sum(jnp.square(two)))
    return jnp.clip(ratio(jnp.sum(one * two), size), -1, 1)


def _centred(k: Array) -> Array:
    """`H K H`."""
    k = k - jnp.mean(k, axis=0, keepdims=True)
    return k - jnp.mean(k, axis=1, keepdims=True)
