"""Composition of transforms, and what one does with their states and trees."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _check, _compat, _tree
from lowrank._base import (
    Array,
    Path,
    PyTree,
    State,
    Transform,
)

PADDING = np.int32(np.iinfo(np.int32).max)


def identity() -> Transform:
    """The transform that changes nothing.

    Returns:
        A transform with an empty state; `apply` returns the very same tree.

    Example:
        >>> params = {"w": jnp.ones((2, 2))}
        >>> tx = lrk.identity()
        >>> tx.apply(params, tx.init(jax.random.key(0), params)) is params
        True
    """

    def init(key: Array, params: PyTree) -> State:
        del key, params
        return State({}, {})

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del state, key
        return params

    return Transform(init, apply)


def chain(*transforms: Transform) -> Transform:
    """Apply transforms from left to right.

    Member `i` draws from `fold_in(key, i)`. `init` threads the transformed parameters,
    so a member that starts from the weights sees what it will meet.

    Args:
        *transforms: Transforms; none of them gives the identity.

    Returns:
        A transform whose state holds tuples, one entry for each member.

    Raises:
        TypeError: If an argument is not a `Transform`.

    Example:
        >>> tx = lrk.chain(lrk.lora(2), lrk.full(select=lrk.matching("bias")))
        >>> params = {"kernel": jnp.ones((4, 3)), "bias": jnp.zeros(3)}
        >>> state = tx.init(jax.random.key(0), params)
        >>> [list(member) for member in state.trainable]
        [['kernel'], ['bias']]
    """
    wrong = [i for i, t in enumerate(transforms) if not isinstance(t, Transform)]
    if wrong:
        raise TypeError(
            f"chain: expected transforms, got something else at {wrong}. Pass them as "
            "chain(first, second), not as a list."
        )

    def fold(key: Array | None, index: int) -> Array | None:
        return None if key is None else jax.random.fold_in(key, index)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key("chain", key)
        states = []
        for i, tx in enumerate(transforms):
            mine = jax.random.fold_in(key, i)
            states.append(tx.init(mine, params))
            if i + 1 < len(transforms):
                params = tx.apply(params, states[-1], key=mine)
        return State(tuple(s.trainable for s in states), tuple(s.fixed for s in states))

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        for i, (tx, member) in enumerate(
            zip(transforms, _members(state, transforms), strict=True)
        ):
            params = tx.apply(params, member, key=fold(key, i))
        return params

    return Transform(init, apply)


def _members(state: State, transforms: Sequence[Transform]) -> list[State]:
    counts = [len(p) if isinstance(p, tuple) else None for p in state]
    if counts != [len(transforms)] * 2:
        raise ValueError(
            f"chain: expected a state of {len(transforms)} members, got {counts} "
            "(trainable, fixed). Pass the State that this chain's own init returned."
        )
    return [State(*pair) for pair in zip(*state, strict=True)]


def select_paths(tx: Transform, params: PyTree) -> tuple[Path, ...]:
    """The dry run: which leaves a transform will touch.

    Args:
        tx: Any transform.
        params: Parameters, or their shapes.

    Returns:
        The paths in the order of the tree, those of leaves that a chain first adds and
        then changes among them. Nothing is drawn and no array is made.

    Example:
        >>> lrk.select_paths(lrk.lora(2), {"w": jnp.ones((4, 3)), "b": jnp.ones(3)})
        ('w',)
    """
    paths: list[Path] = []

    def run(key: Array, params: PyTree) -> State:
        state = tx.init(key, params)
        paths.extend(_tree.leaves("select_paths", tx.apply(params, state, key=key)))
        return state

    state = _tree.abstractly(run, jax.random.key(0), params)
    touched = {path for part in state for own in state_parts(part) for path in own}
    return tuple(path for path in paths if path in touched)


def state_parts(part: PyTree) -> list[dict[Path, Any]]:
    """The dicts of one half of a state, whatever the nesting of chains."""
    if isinstance(part, tuple):
        return [found for member in part for found in state_parts(member)]
    return [part]


def count(state: State) -> tuple[int, int]:
    """How many parameters are trained and how many are kept fixed.

    Integer leaves (indices, seeds) and scales are no parameters. Entries that `stack`
    padded are not counted.

    Args:
        state: A state, stacked or not, or its shapes.

    Returns:
        `(trainable, fixed)`.

    Raises:
        TypeError: If it is no `State`.

    Example:
        >>> tx = lrk.lora(2)
        >>> lrk.count(tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))}))
        (14, 0)
    """
    if not isinstance(state, State):
        raise TypeError(
            f"count: expected a State, got {type(state).__name__}. Pass what a "
            "transform's init returned; lrk.summary counts parameters."
        )
    trainable = fixed = 0
    for train, fix in zip(
        state_parts(state.trainable), state_parts(state.fixed), strict=True
    ):
        for path, leaf in train.items():
            trainable += _size(leaf) - _padding(leaf, fix.get(path, {}))
        for leaf in fix.values():
            fixed += _size({n: v for n, v in leaf.items() if n != "scale"})
    return trainable, fixed


def _size(leaf: Any) -> int:
    arrays = [x for x in jax.tree.leaves(leaf) if jnp.issubdtype(x.dtype, jnp.floating)]
    return sum(int(x.size) for x in arrays)


def packed(leaf: Any, index: Any) -> dict[str, Any]:
    """The arrays of a leaf that have values, or rows of them, for each index."""
    shape = tuple(index.shape)
    return {n: x for n, x in leaf.items() if tuple(x.shape[: len(shape)]) == shape}


def _padding(leaf: Any, fixed: Any) -> int:
    index = fixed.get("index")
    if index is None or not _compat.is_concrete(index):
        return 0
    places = int((np.asarray(index) == PADDING).sum())
    each = [x.size // index.size for x in packed(leaf, index).values() if places]
    return places * sum(each)
