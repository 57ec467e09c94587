"""One training run in a subspace, as a pure function of its dimension."""

import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat
from lowrank._base import Array, PyTree, Transform
from lowrank._select import Select
from lowrank.subspace._projection import SUBSPACE, Projection, floating
from lowrank.subspace._random import random

_WHO = "subspace.sweep"

# train(place, trainable, rate, key, data) -> scores
Train = Callable[..., PyTree]
Dimension = int | np.integer | Array
Start = Callable[[Array, PyTree], PyTree]


def is_nested(subspace: Any) -> bool:
    """Whether one draw serves all dimensions."""
    return isinstance(subspace, Projection) and subspace.nested


def whole(name: str, value: Any) -> int:
    """An argument as an int; its range is checked elsewhere.

    Raises:
        TypeError: If it is none.
    """
    try:
        if not isinstance(value, bool):
            return operator.index(value)
    except TypeError:
        pass
    raise TypeError(f"{_WHO}: {name} must be ints, got {value!r}.")


def trial(
    train: Train,
    subspace: Projection | Callable[[int], Transform],
    largest: int,
    *,
    start: Start | None = None,
    select: Select = floating,
) -> Callable[[PyTree, Dimension, float | Array, Array, PyTree], PyTree]:
    """One training run in a subspace as a pure function of dimension, rate and key.

    With a nested projection (dense, sparse, Fastfood) the subspace of `d` dimensions is
    that of `largest` with `z[d:]` masked: `theta = theta_0 + P (z * [i < d])`. The mask
    acts within the model, so gradients of `z[d:]` are zero and one program, compiled
    once, serves every `d <= largest`.

    Args:
        train: `train(place, trainable, rate, key, data) -> scores`. `place(trainable)`
            is the adapted tree, for `lrk.lift(model)(place(trainable), x)` or
            `lrk.materialize`; `trainable` is where training starts (`z` is zero), a
            pytree of arrays to differentiate and to give to an optimizer; `rate` may be
            traced; `key` is for the order of batches and the like; `data` is what was
            given to the run. The scores are a pytree of arrays.
        subspace: A projection, or a function `d -> Transform`, such as
            `lambda d: lrk.subspace.structured(d, projection)`.
        largest: The most dimensions of a run, at least 1.
        start: `start(key, params)`: the tree that a run starts from, drawn anew for
            each seed. None: every run starts from `params`.
        select: Which leaves a projection moves.

    Returns:
        `run(params, d, rate, key, data)`: the scores. Pure: `jit` it, `vmap` it over
        keys. For what is not nested (a one-hot gather, a function) `d` must be the int
        `largest`.

    Raises:
        TypeError: If `train` is no function, `largest` no int or `subspace` neither
            form.
        ValueError: If `largest < 1`; in the run, if `d` must be `largest` and is not,
            or is known and exceeds it.

    Example:
        >>> def train(place, z, rate, key, data):
        ...     loss = lambda z: jnp.sum((lrk.materialize(place(z))["w"] - data) ** 2)
        ...     steps = jnp.arange(20)
        ...     down = lambda z, g: z - rate * g
        ...     step = lambda z, _: (jax.tree.map(down, z, jax.grad(loss)(z)), None)
        ...     return loss(jax.lax.scan(step, z, steps)[0])
        >>> run = lrk.subspace.trial(train, lrk.subspace.dense(), 4)
        >>> params, target = {"w": jnp.zeros(6)}, jnp.ones(6)
        >>> one, four = (run(params, d, 0.1, jax.random.key(0), target) for d in (1, 4))
        >>> bool(four < one)
        True

    Notes:
        Three keys come of `key`: for `start`, for the projection, and for `train`. Runs
        of one key and several `d` share all three, and so differ in `d` alone.
    """
    if not callable(train):
        raise TypeError(
            f"subspace.trial: expected a function to train with, got {train!r}."
        )
    largest = whole("dimensions", largest)
    tx, nested = _transform(subspace, largest, select)

    def run(
        params: PyTree, d: Dimension, rate: float | Array, key: Array, data: PyTree
    ) -> PyTree:
        known = _compat.is_known(d)
        if not nested and not (known and d == largest):
            raise ValueError(
                f"subspace.trial: this subspace is not nested: expected d={largest}, "
                f"got {d}. Make one trial for each d."
            )
        if known and d > largest:
            raise ValueError(
                f"subspace.trial: expected d up to largest={largest}, got {d}. Raise "
                "largest."
            )
        first, drawn, order = jax.random.split(key, 3)
        origin = params if start is None else start(first, params)
        state = tx.init(drawn, origin)

        def place(trainable: PyTree) -> PyTree:
            own = _masked(trainable, d) if nested else trainable
            return tx.apply(origin, state._replace(trainable=own))

        return train(place, state.trainable, rate, order, data)

    return run


def _transform(subspace: Any, largest: int, select: Select) -> tuple[Transform, bool]:
    """The transform of the largest dimension, and whether smaller ones lie within.

    Raises:
        TypeError: If `subspace` gives no transform.
        ValueError: If a selection would be ignored.
    """
    if isinstance(subspace, Projection):
        return random(largest, subspace, select=select), subspace.nested
    made = subspace(largest) if _takes_one(subspace) else None
    if not isinstance(made, Transform):
        raise TypeError(
            f"{_WHO}: expected a Projection, or a function d -> Transform, got "
            f"{subspace!r}. Pass lrk.subspace.dense()."
        )
    if select is not floating:
        raise ValueError(
            f"{_WHO}: select= is for projections. Give it to the transform."
        )
    return made, False


def _takes_one(subspace: Any) -> bool:
    """Whether this is a function of one dimension: `sparse` without `()` is not."""
    try:
        inspect.signature(subspace).bind(1)
    except TypeError:
        return False
    return True


def _masked(trainable: Mapping[str, Any], d: Dimension) -> PyTree:
    """The trained vector with zeros from entry `d` on."""
    z = trainable[SUBSPACE]["z"]
    return {SUBSPACE: {"z": jnp.where(jnp.arange(z.shape[0]) < d, z, 0)}}
