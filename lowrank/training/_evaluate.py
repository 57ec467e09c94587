"""Scores of many adapters over the same batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import numpy as np

from lowrank._base import Array, PyTree, State, Transform
from lowrank._many import map_tasks
from lowrank.lifting import lift as lift_fn
from lowrank.training._fetch import fetched
from lowrank.training._step import cast

Metrics = Mapping[str, Array]


def evaluator(
    metrics: Callable[[PyTree, Any], Metrics],
    tx: Transform,
    params: PyTree,
    data: Iterable[Any],
    *,
    batch_axis: int | None = 0,
    method: str = "auto",
    lift: Callable[..., Any] = lift_fn,
    dtype: Any = None,
) -> Callable[[State], dict[str, np.ndarray]]:
    """Make the `evaluate` of `fit`: means over batches, for every adapter.

    Args:
        metrics: `metrics(params, batch)`, a dict of arrays for one batch. It is lifted
            here.
        tx: The transform that the states belong to; nothing random is drawn.
        params: The frozen base.
        data: Batches that can be gone through again and again, such as a list. All
            count alike: give them one size.
        batch_axis: 0 if every leaf of a batch has a leading axis of adapters, None if
            all adapters see the same batch.
        method: As for `map_tasks`.
        lift: As for `step`.
        dtype: As for `step`.

    Returns:
        `evaluate(states)`: given a stacked state, the mean of each metric over the
        batches, `[adapters]`. It compiles once for each shape of a batch.

    Raises:
        ValueError: When called, if there is no batch.

    Example:
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> def metrics(params, batch):
        ...     return {"error": jnp.mean((batch @ params["w"] - 1) ** 2)}
        >>> evaluate = lrk.training.evaluator(
        ...     metrics, tx, params, [jnp.ones((5, 4))], batch_axis=None
        ... )
        >>> states = [tx.init(jax.random.key(i), params) for i in range(3)]
        >>> evaluate(lrk.stack(states))["error"].tolist()
        [9.0, 9.0, 9.0]
    """
    lifted = lift(metrics)

    @jax.jit
    def run(params: PyTree, states: State, batch: Any) -> Metrics:
        def one(params: PyTree, state: State, batch: Any) -> Metrics:
            params, batch = (cast(tree, dtype) for tree in (params, batch))
            return lifted(tx.apply(params, state), batch)

        axes = (None, 0, batch_axis)
        return map_tasks(one, method=method, in_axes=axes)(params, states, batch)

    def evaluate(states: State) -> dict[str, np.ndarray]:
        found = fetched([run(params, states, batch) for batch in data])
        if not found:
            raise ValueError(
                "training.evaluator: there is no batch. Pass a list: an iterator is "
                "used up by the first evaluation."
            )
        return {n: np.mean([own[n] for own in found], axis=0) for n in found[0]}

    return evaluate
