"""Fisher information of a model's weights, entry by entry."""

from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank import _tree
from lowrank._adapted import materialize
from lowrank._base import Array, Path, PyTree, is_operator
from lowrank._select import Select
from lowrank.merging._data import chosen
from lowrank.merging._factors import wide

Leaves = dict[Path, Array]


def fisher_diagonal(
    fn: Callable[[PyTree, Any], Array],
    adapted: PyTree,
    batches: Iterable[tuple[Any, Any]],
    key: Array | None = None,
    *,
    select: Select | None = None,
    chunk: int = 8,
) -> dict[Path, Array]:
    """Diagonal Fisher information of the dense weights of a classifier.

    `F = mean_i (d log p(y_i | x_i) / d theta)^2`, entry by entry, over examples `i`,
    with `log p` from the softmax of the logits and `theta` the weights that the adapted
    tree stands for. Without a key it is the empirical Fisher information, at the labels
    that are given; with a key the true one, at labels drawn from the model.

    Args:
        fn: The model, called on plain parameters: `fn(params, x)` gives logits
            `[examples, ..., classes]` for a batch `x`, a tree of arrays with the
            examples in front. Examples must not depend on each other.
        adapted: An adapted tree, or plain parameters.
        batches: Pairs `(x, labels)`. Labels are class numbers `[examples, ...]`; where
            they are negative, that position does not count. With a key they only say
            which positions count, and None counts all.
        key: For drawing one label at each position; None takes the labels.
        select: Which leaves: a predicate `(path, leaf) -> bool`; None takes the adapted
            leaves, or every floating one if none is adapted.
        chunk: Examples whose gradients are held at once, at least 1.

    Returns:
        By path, an array of the leaf's shape in float32, not negative. Positions of one
        example (tokens) have their log-probabilities summed before squaring.

    Raises:
        ValueError: If there is no batch, batches lack labels, examples and labels
            differ in number, an operator has no dense form, no leaf is left or
            `chunk < 1`.

    Example:
        >>> params = {"w": jnp.zeros((1, 2))}
        >>> batch = jnp.array([[2.0]]), jnp.array([0])
        >>> model = lambda p, x: x @ p["w"]
        >>> lrk.merging.fisher_diagonal(model, params, [batch])["w"].tolist()
        [[1.0, 1.0]]

    Notes:
        The empirical form is the cheaper habit, and not the information that the theory
        of the merge asks for: near a minimum the two differ. The paper sums over all
        classes where there are few; here one label is drawn for each example, which has
        the same mean. One compilation for each shape of a batch.

    References:
        Matena and Raffel, 2022, arXiv:2111.09832: the diagonal of the Fisher
        information. Kunstner et al., Limitations of the empirical Fisher approximation,
        2019, arXiv:1905.12558.
    """
    if chunk < 1:
        raise ValueError(f"fisher_diagonal: chunk must be at least 1, got {chunk}.")
    params = materialize(adapted)
    names = chosen("fisher_diagonal", adapted, _default(adapted, select))
    leaves = _tree.leaves("fisher_diagonal", params)
    theta = {path: wide(leaves[path]) for path in names}

    @jax.jit
    def squares(theta: Leaves, leaves: Leaves, *examples: Any) -> Leaves:
        def log_likelihood(theta: Leaves, *example: Any) -> Array:
            own = {path: x.astype(leaves[path].dtype) for path, x in theta.items()}
            tree = _tree.replace("fisher_diagonal", params, {**leaves, **own})
            return sum_of_logs(lambda x: fn(tree, x), *example)

        return summed_squares(log_likelihood, theta, examples, chunk)

    parts, count = [], 0
    for i, batch in enumerate(batches):
        size = _size(batch, i, key is not None)
        keys = (
            None if key is None else jax.random.split(jax.random.fold_in(key, i), size)
        )
        own = squares(theta, leaves, *batch, keys)
        parts = [own if not parts else jax.tree.map(jnp.add, parts[0], own)]
        count += size
    if not parts:
        raise ValueError("fisher_diagonal: expected at least one batch, got none.")
    return jax.tree.map(lambda x: x / count, parts[0])


def _default(adapted: PyTree, select: Select | None) -> Select | None:
    """Every leaf of plain parameters."""
    leaves = _tree.leaves("fisher_diagonal", adapted).values()
    plain = not any(map(is_operator, leaves))
    return (lambda *_: True) if select is None and plain else select


def _size(batch: Any, number: int, drawn: bool) -> int:
    """How many examples a batch holds."""
    if not isinstance(batch, tuple) or len(batch) != 2:
        raise ValueError(
            f"fisher_diagonal: batch {number}: expected a pair (x, labels), got "
            f"{type(batch).__name__}. Without labels pass (x, None) and a key."
        )
    x, labels = batch
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves((x, labels))}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ValueError(
            f"fisher_diagonal: batch {number}: expected arrays with the same examples "
            f"in front, at least one, got sizes {sorted(sizes)}."
        )
    if labels is None and not drawn:
        raise ValueError(
            f"fisher_diagonal: batch {number} has no labels. Pass a key, to draw them."
        )
    return int(next(iter(sizes))[0])


def sum_of_logs(
    model: Callable[[Any], Array], x: Any, labels: Array | None, key: Array | None
) -> Array:
    """Log-probability of the labels of one example, or of labels that are drawn."""
    logits = wide(model(jax.tree.map(lambda leaf: leaf[None], x))[0])
    logs = jax.nn.log_softmax(logits)
    counted = jnp.ones(logs.shape[:-1], bool) if labels is None else labels >= 0
    if key is not None:
        labels = jax.random.categorical(key, lax.stop_gradient(logits))
    at = jnp.maximum(jnp.asarray(labels), 0)[..., None]
    found = jnp.take_along_axis(logs, at, axis=-1)[..., 0]
    return jnp.sum(jnp.where(counted, found, 0.0))


def summed_squares(
    fn: Callable[..., Array], theta: Leaves, examples: Any, chunk: int
) -> Leaves:
    """`sum_i (d fn(theta, *example_i) / d theta)^2`, some examples at a time."""
    n = jax.tree.leaves(examples)[0].shape[0]
    size = min(chunk, n)
    more = -n % size  # examples of the last chunk that are there twice, and not counted

    def cut(x: Array) -> Array:
        return jnp.concatenate([x, x[:more]]).reshape(-1, size, *x.shape[1:])

    def one(counted: Array, example: Any) -> Leaves:
        grads = jax.grad(fn)(theta, *example)
        return jax.tree.map(lambda g: jnp.where(counted, g * g, 0.0), grads)

    def step(total: Leaves, part: Any) -> tuple[Leaves, None]:
        squares = jax.vmap(one)(*part)
        return jax.tree.map(lambda t, s: t + jnp.sum(s, 0), total, squares), None

    real = (jnp.arange(n + more) < n).reshape(-1, size)
    zeros = jax.tree.map(jnp.zeros_like, theta)
    return lax.scan(step, zeros, (real, jax.tree.map(cut, examples)))[0]
