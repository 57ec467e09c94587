"""Batches put together: those of one step, and those of the steps of one program."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_WHO = "training.fit"

Data = Iterable[Any] | Callable[[int], Iterable[Any]]


class Batches:
    """The batches of a run, as its program takes them.

    Args:
        data: The batches.
        accumulate: Batches of one step.
        fused: Steps of one program.
        batch_axis: 0 if the adapters are in front.
    """

    def __init__(
        self, data: Iterator[Any], accumulate: int, fused: int, batch_axis: int | None
    ) -> None:
        self._data, self._accumulate, self._fused = data, accumulate, fused
        self._axis = 0 if batch_axis is None else 1
        self._ahead: list[Any] = []

    def _step(self) -> Any:
        """The batches of one step, put together; None where the data ends."""
        if self._ahead:
            return self._ahead.pop()
        parts = []
        for _ in range(self._accumulate):
            found = next(self._data, self)
            if found is self:
                return None
            parts.append(jax.tree.map(_array, found))
        if self._accumulate == 1:
            return parts[0]
        if len({_form(part) for part in parts}) > 1:
            raise ValueError(
                f"{_WHO}: the {self._accumulate} batches of one step differ in shape: "
                f"{[[x.shape for x in jax.tree.leaves(part)] for part in parts]}. Pad "
                "them to one shape, or put batches of one shape together."
            )
        return _stacked(parts, self._axis)

    @property
    def over(self) -> bool:
        """Whether there is no further step; looks one step ahead."""
        if not self._ahead and (found := self._step()) is not None:
            self._ahead.append(found)
        return not self._ahead

    def take(self, most: int) -> tuple[Any, int] | None:
        """Steps of one shape, at most so many, and their number; None at the end."""
        first = self._step()
        if first is None:
            return None
        if self._fused == 1:
            return first, 1
        steps = [first]
        while len(steps) < min(self._fused, most):
            found = self._step()
            if found is None:
                break
            if _form(found) != _form(first):
                self._ahead.append(found)
                break
            steps.append(found)
        return _stacked(steps, 0), len(steps)


def batches_from(data: Data, skip: int) -> Iterator[Any]:
    """Batches from a number on.

    Raises:
        TypeError: If the data cannot be iterated.
    """
    found = data(skip) if callable(data) else data
    if not isinstance(found, Iterable):
        raise TypeError(
            f"{_WHO}: data must be an iterable of batches, or a function that returns "
            f"one, got {type(found).__name__}."
        )
    batches = iter(found)
    for _ in range(0 if callable(data) else skip):
        next(batches, None)
    return batches


def _array(leaf: Any) -> Any:
    return leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)


def _form(batch: Any) -> Any:
    """What a compiled program depends on."""
    leaves, treedef = jax.tree.flatten(batch)
    return treedef, tuple((x.shape, x.dtype) for x in leaves)


def _stacked(parts: Sequence[Any], axis: int) -> Any:
    def together(*xs: Any) -> Any:
        device = any(isinstance(x, jax.Array) for x in xs)
        return jnp.stack(xs, axis) if device else np.stack(xs, axis)

    return jax.tree.map(together, *parts)
