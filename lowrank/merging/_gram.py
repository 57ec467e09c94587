"""Gram matrices of the inputs that a model's weights meet."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from lowrank import _tree
from lowrank._adapted import split
from lowrank._base import Array, Path, PyTree, is_floating, is_operator
from lowrank._select import Select
from lowrank.lifting import LiftError, lift
from lowrank.merging._data import chosen
from lowrank.merging._factors import Layout, Matrices, factored
from lowrank.operators import _dispatch as ask
from lowrank.operators._tap import Tap


def gram(
    fn: Callable[..., PyTree],
    adapted: PyTree,
    *args: Any,
    select: Select | None = None,
) -> dict[Path, Array]:
    """Collect `X^T X` of the inputs that meet each adapted weight of a model.

    The model runs through `lift`, unmodified: under scan, recomputation, inner jitted
    functions and `vmap`, rows of all examples, positions and uses add up. Sum the
    results of several batches: `jax.tree.map(jnp.add, one, two)`.

    Args:
        fn: The model, called as `fn(adapted, *args)`.
        adapted: An adapted tree.
        *args: Further arguments, such as a batch of inputs.
        select: Which leaves: a predicate `(path, leaf) -> bool`; None takes every
            adapted matrix. A selected leaf that is not adapted must have two axes,
            `[in, out]`.

    Returns:
        By path, `[*stack, n, n]` in float32, for the `n` flattened inputs of the leaf;
        for a look-up the counts of the rows, on a diagonal. Zeros where no input that
        reaches the result met the weight. Runs under `jit`: wrap what calls it.

    Raises:
        ValueError: If no leaf is left, the result holds no floating array, or a leaf is
            used by what no Gram matrix describes, such as a convolution; all are named.

    Example:
        >>> params = {"w": jnp.ones((2, 3))}
        >>> tx = lrk.lora(1)
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> x = jnp.array([[1.0, 2.0], [0.0, 1.0]])
        >>> lrk.merging.gram(lambda p, x: x @ p["w"], adapted, x)["w"].tolist()
        [[1.0, 2.0], [2.0, 5.0]]

    Notes:
        It rides on reverse-mode differentiation, whose rules add up what loops and
        several uses see: an input behind a `stop_gradient`, or one that acts on the
        result through integers alone, is not counted, and a `while_loop` is refused by
        JAX. The numbers of the gradient play no part.

    References:
        Jin et al., 2023, arXiv:2212.09849: the inner product matrices of RegMean.
    """
    layouts = _layouts(adapted, select)
    eyes = {path: _identity(layout) for path, layout in layouts.items()}

    def run(eyes: Mapping[Path, Array]) -> list[Array]:
        leaves = _tree.leaves("gram", adapted)
        taps = {p: _tapped(leaves[p], layouts[p], eye) for p, eye in eyes.items()}
        out = _lifted(fn, _tree.replace("gram", adapted, taps), args)
        return [x for x in out if is_floating(x)]

    out, pull = jax.vjp(run, eyes)
    if not out:
        raise ValueError(
            "gram: the result of fn holds no floating array to start from."
        )
    (found,) = pull([jnp.zeros_like(x) for x in out])
    return {path: _square(layouts[path], g) for path, g in found.items()}


def _layouts(adapted: PyTree, select: Select | None) -> dict[Path, Layout]:
    """Which axes of each leaf are its inputs."""
    leaves, bad = chosen("gram", adapted, select), []
    known = {p: x for p, x in leaves.items() if split(x)[1]}
    found = {
        path: leaf.layout
        for path, leaf in factored("gram", [known]).items()
        if isinstance(leaf, Matrices)
    }
    for path, leaf in leaves.items():
        if path in found or (select is None and is_operator(leaf)):
            continue
        if is_operator(leaf) or len(leaf.shape) != 2:
            bad.append(_tree.describe(path, leaf))
        found[path] = Layout(tuple(leaf.shape), (0,), (1,))
    if bad or not found:
        names = "; ".join(bad) or _tree.quoted(leaves)
        raise ValueError(
            f"gram: no inputs to tell from outputs at {names}: expected leaves adapted "
            "by low rank, or of two axes. Leave them out with select=."
        )
    return found


def _identity(layout: Layout) -> Array:
    """The identity over the flattened inputs, `[*stack, *in, n]`."""
    stack, inputs = layout.sizes(layout.stack), layout.sizes(layout.inputs)
    n = math.prod(inputs)
    eye = jnp.eye(n).reshape((1,) * len(stack) + (*inputs, n))
    return jnp.broadcast_to(eye, (*stack, *inputs, n))


def _tapped(leaf: Any, layout: Layout, eye: Array) -> Tap:
    """A leaf that records the inputs it meets as the gradient of `eye`."""
    sizes = layout.sizes(layout.stack), layout.sizes(layout.outputs)
    b = jnp.zeros((*sizes[0], eye.shape[-1], *sizes[1]))
    dims = {"a_dims": layout.a_dims, "b_dims": layout.b_dims}
    return Tap(ask.settle(leaf), eye, b, **dims)


def _lifted(fn: Callable[..., PyTree], tree: PyTree, args: Sequence[Any]) -> list[Any]:
    """The leaves of the model's result."""
    try:
        out = jax.tree.leaves(lift(fn)(tree, *args), is_leaf=is_operator)
    except LiftError as error:
        raise ValueError(
            f"gram: no Gram matrix describes a use of the weights: {error} In gram() "
            "select= is the way out."
        ) from error
    if any(map(is_operator, out)):
        raise ValueError("gram: fn returns a weight: expected what it computes.")
    return out


def _square(layout: Layout, g: Array) -> Array:
    """`[*stack, *in, n]` as `[*stack, n, n]`."""
    return g.reshape(*layout.sizes(layout.stack), g.shape[-1], g.shape[-1])
