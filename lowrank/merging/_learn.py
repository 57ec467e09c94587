"""Merge weights learned by gradient, through the merge."""

import operator
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from lowrank import _compat
from lowrank._base import Path, PyTree, is_array
from lowrank._parts import parts
from lowrank.merging._common import weights_by_path

Merge = Callable[[Sequence[PyTree], Any], PyTree]
Group = Callable[[Path], str]


def entropy(logits: Float[Array, "*batch classes"]) -> Float[Array, ""]:
    """How unsure predictions are: the mean of their Shannon entropies.

    `mean(-sum_c p_c log p_c)` with `p = softmax(logits)`, in nats: 0 for a sure
    prediction, `log(classes)` for a uniform one.

    Args:
        logits: `[*batch, classes]`; entries of minus infinity are classes that a
            prediction cannot take.

    Returns:
        A scalar, float32 or wider, finite with finite gradients however large the
        logits are.

    Example:
        >>> float(lrk.merging.entropy(jnp.array([[1000.0, 0.0], [-1000.0, 0.0]])))
        0.0
        >>> round(float(lrk.merging.entropy(jnp.zeros((5, 4)))), 4)  # log 4
        1.3863

    References:
        Shannon, A mathematical theory of communication, 1948: section 6. The objective
        of Yang et al., AdaMerging, 2023, arXiv:2310.02575.
    """
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    logs = jax.nn.log_softmax(wide, axis=-1)
    probabilities = jnp.exp(logs)
    # Where p is 0 its term is 0, although its logarithm may be minus infinity.
    logs = jnp.where(probabilities > 0, logs, 0)
    return jnp.mean(-jnp.sum(probabilities * logs, axis=-1))


class Learned(NamedTuple):
    """Merge weights that were learned, and what they give.

    Attributes:
        weights: In the form that merges take: an array `[T]`, or for each tree a dict
            from every adapted path to a number.
        tree: The merge of the trees with these weights.
        history: The objective before each step, `[steps]`.
    """

    weights: Any
    tree: PyTree
    history: Array


def learn_weights(
    merge: Merge,
    trees: Sequence[PyTree],
    objective: Callable[[PyTree, Any], Any],
    optimizer: Any,
    *,
    steps: int,
    batches: Any,
    scope: str | Group = "model",
    init: Any = 0.3,
) -> Learned:
    """Learn the weights of a merge by gradient descent through the merge.

    Minimises `objective(merge(trees, w), batch)` over the weights `w` alone: `T`
    numbers, or `T` for each leaf. With the entropy of predictions as the objective it
    needs no labels (AdaMerging); with a few labels, take their cross-entropy.

    Args:
        merge: `merge(trees, weights) -> tree`, differentiable in the weights, such as
            `lrk.merging.concat`; give it its other arguments by `functools.partial`.
        trees: Adapted trees over one base.
        objective: `objective(adapted, batch) -> scalar`, to be small; it runs the model
            by `lrk.lift`.
        optimizer: Any `optax.GradientTransformation`, or what has its `init` and
            `update`. It sees one array: `[T]`, or `[groups, T]`.
        steps: How many, at least 1.
        batches: A tree of arrays with a leading axis, of which step `i` takes entry
            `i` (from the start again when there are no more); or a function from the
            step, a traced integer, to a batch.
        scope: What shares a weight: `model`, one for each tree; `leaf`, one for each
            tree and adapted leaf (AdaMerging calls it layer-wise); or a function from a
            path to the name of its group.
        init: Where the weights start: one number for all, or weights in the form that
            merges take.

    Returns:
        The weights, the merged tree, and the objective before each step. All steps run
        as one `lax.scan` under `jit`; the adapters themselves are not trained.

    Raises:
        TypeError: If `merge`, `objective` or `optimizer` is no such thing, or `steps`
            no int.
        ValueError: If there is no adapted leaf, `steps < 1`, the scope is unknown,
            batches differ in length, `init` does not fit or differs within a group, or
            the objective is no scalar; and as the merge.

    Example:
        >>> import optax
        >>> w = jnp.zeros((2, 2))
        >>> trees = [{"w": lrk.Delta(w, jnp.eye(2)[i][:, None] * jnp.ones((1, 2)))}
        ...          for i in range(2)]
        >>> target = jnp.array([[0.5, 0.5], [2.0, 2.0]])
        >>> def distance(adapted, batch):
        ...     return jnp.sum((lrk.materialize(adapted)["w"] - batch) ** 2)
        >>> found = lrk.merging.learn_weights(
        ...     lrk.merging.concat, trees, distance, optax.sgd(0.2),
        ...     steps=40, batches=lambda step: target)
        >>> [round(float(x), 3) for x in found.weights]
        [0.5, 2.0]

    Notes:
        The authors keep each weight in [0, 1] by a clamp, through which no gradient
        flows once it is left; nothing is clamped here. To bound the weights, chain the
        optimizer with one that does (`optax.keep_params_nonnegative`). They sum the
        entropies of the tasks, each with a batch and a classification head of its own:
        here the objective does. They start at 0.3 and take 500 steps of Adam at 1e-3.

    References:
        Yang et al., AdaMerging, 2023, arXiv:2310.02575, task-wise and layer-wise; the
        authors' `main_layer_wise_adamerging.py`.
    """
    _check_functions(merge, objective, optimizer)
    steps = _check_steps(steps)
    found = parts("learn_weights", trees)
    paths = [path for path, leaf in found.items() if any(leaf.terms)]
    layout = _layout(paths, scope, len(trees))
    data, batch_of = _batches(batches)
    arrays, rebuild = _arrays_of(trees)

    def run(arrays: list[Array], data: Any, start: Array) -> tuple[Array, Array]:
        def value(weights: Array, step: Array) -> Array:
            merged = merge(rebuild(arrays), layout.form(weights))
            return _scalar(objective(merged, batch_of(data, step)))

        def body(carry: tuple[Array, Any], step: Array) -> tuple[Any, Array]:
            weights, memory = carry
            score, slope = jax.value_and_grad(value)(weights, step)
            change, memory = optimizer.update(slope, memory, weights)
            return (weights + change.astype(weights.dtype), memory), score

        carry = (start, optimizer.init(start))
        (weights, _), history = jax.lax.scan(body, carry, jnp.arange(steps))
        return weights, history

    weights, history = jax.jit(run)(arrays, data, layout.start(init))
    formed = layout.form(weights)
    return Learned(formed, merge(trees, formed), history)


class _Layout(NamedTuple):
    """How weights are kept in one array: for which group of leaves each row stands."""

    row: dict[Path, int] | None  # None: one weight for each tree
    paths: tuple[Path, ...]
    number: int

    def form(self, weights: Array) -> Any:
        """Weights as merges take them."""
        if self.row is None:
            return weights
        return [
            {path: weights[row, t] for path, row in self.row.items()}
            for t in range(self.number)
        ]

    def start(self, init: Any) -> Array:
        """The array that stands for some weights.

        Raises:
            ValueError: If they do not fit, or differ within a group.
        """
        given = [init] * self.number if np.shape(init) == () and _number(init) else init
        told = weights_by_path("learn_weights: init", given, self.number, self.paths)
        rows: dict[int, Array] = {}
        bad = []
        for path in self.paths:
            row = 0 if self.row is None else self.row[path]
            mine = jnp.stack([jnp.asarray(w, jnp.float32) for w in told[path]])
            first = rows.setdefault(row, mine)
            both = _compat.is_concrete(mine) and _compat.is_concrete(first)
            bad += [path] if both and not np.array_equal(mine, first) else []
        if bad:
            raise ValueError(
                f"learn_weights: init differs within a group at {bad}. Give one number "
                "to all leaves of a group, or choose a finer scope."
            )
        return rows[0] if self.row is None else jnp.stack(list(rows.values()))


def _number(value: Any) -> bool:
    return isinstance(value, int | float) or is_array(value)


def _layout(paths: Sequence[Path], scope: Any, number: int) -> _Layout:
    """Which leaves share a weight.

    Raises:
        ValueError: If there is no such scope, or no leaf is adapted.
    """
    if not paths:
        raise ValueError(
            "learn_weights: no tree has an adapted leaf, so there is nothing to weigh. "
            "Pass what tx.apply returned."
        )
    if scope == "model":
        return _Layout(None, tuple(paths), number)
    if scope != "leaf" and not callable(scope):
        raise ValueError(
            f"learn_weights: unknown scope {scope!r}. Use 'model', 'leaf', or a "
            "function from a path to a name."
        )
    names = {path: scope(path) if callable(scope) else path for path in paths}
    order = list(dict.fromkeys(names.values()))
    rows = {path: order.index(name) for path, name in names.items()}
    return _Layout(rows, tuple(paths), number)


def _batches(batches: Any) -> tuple[Any, Callable[[Any, Array], Any]]:
    """Arrays that enter jit, and a function from them and the step to its batch.

    Raises:
        ValueError: If arrays differ in their leading axis, or lack one.
    """
    if callable(batches):
        return None, lambda _, step: batches(step)
    shapes = [np.shape(x) for x in jax.tree.leaves(batches)]
    lengths = {shape[0] if shape else 0 for shape in shapes}
    if len(lengths) != 1 or lengths == {0}:
        raise ValueError(
            "learn_weights: batches must be arrays with one leading axis, got shapes "
            f"{shapes}. For one batch in all steps pass a function: lambda step: batch."
        )
    length = lengths.pop()

    def entry(data: Any, step: Array) -> Any:
        return jax.tree.map(lambda x: x[step % length], data)

    return jax.tree.map(jnp.asarray, batches), entry


def _arrays_of(trees: Sequence[PyTree]) -> tuple[list[Any], Callable[..., Any]]:
    """The arrays of trees, and what puts others in their places.

    Arrays enter jit as arguments, so that none becomes a constant of its program.
    """
    leaves, treedef = jax.tree.flatten(list(trees))
    places = [i for i, x in enumerate(leaves) if is_array(x)]

    def rebuild(arrays: Sequence[Any]) -> Any:
        own = list(leaves)
        for place, array in zip(places, arrays, strict=True):
            own[place] = array
        return jax.tree.unflatten(treedef, own)

    return [leaves[i] for i in places], rebuild


def _scalar(value: Any) -> Array:
    """The objective's value, checked.

    Raises:
        ValueError: If it is no floating scalar.
    """
    value = jnp.asarray(value)
    if value.shape != () or not jnp.issubdtype(value.dtype, jnp.floating):
        raise ValueError(
            "learn_weights: the objective must return a floating scalar, got "
            f"{value.dtype}{list(value.shape)}. Return a mean."
        )
    return value


def _check_steps(steps: Any) -> int:
    """Steps as an int.

    Raises:
        TypeError: If they are no int.
        ValueError: If there is none.
    """
    if isinstance(steps, bool) or not hasattr(steps, "__index__"):
        raise TypeError(f"learn_weights: steps must be an int, got {steps!r}.")
    if operator.index(steps) < 1:
        raise ValueError(f"learn_weights: steps must be at least 1, got {steps}.")
    return operator.index(steps)


def _check_functions(merge: Any, objective: Any, optimizer: Any) -> None:
    """Refuse what cannot be called.

    Raises:
        TypeError: If there is any; all are named.
    """
    named = {"merge": merge, "objective": objective}
    named |= {f"optimizer.{n}": getattr(optimizer, n, None) for n in ("init", "update")}
    bad = [f"{name} is {v!r}" for name, v in named.items() if not callable(v)]
    if bad:
        raise TypeError(
            f"learn_weights: expected functions, but {'; '.join(bad)}. Pass "
            "(merge, trees, objective, optimizer); any optax optimizer will do."
        )
