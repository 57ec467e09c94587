"""Refusals of what a training step is given."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lowrank._base import Array, Transform, is_array

_WHO = "training.step"
_OWN = {"loss", "grad_norm", "loss_scale", "finite"}


def check_step(loss: Any, tx: Any, optimizer: Any, axis: Any, accumulate: Any) -> None:
    """Refuse what is of the wrong kind.

    Raises:
        TypeError: If a function or a transform is none.
        ValueError: If a number is out of range.
    """
    if not callable(loss):
        raise TypeError(f"{_WHO}: loss must be a function, got {type(loss).__name__}.")
    if not isinstance(tx, Transform):
        raise TypeError(
            f"{_WHO}: expected a Transform, got {type(tx).__name__}. Pass lrk.lora(8) "
            "or the like, between the loss and the optimiser."
        )
    kind = isinstance(optimizer, optax.GradientTransformation)
    if not kind and not callable(optimizer):
        raise TypeError(
            f"{_WHO}: expected an Optax transformation or a function that makes one, "
            f"got {type(optimizer).__name__}. Pass optax.adam(1e-3), or optax.adam "
            "with hyper={'learning_rate': rates}."
        )
    if axis not in (0, None):
        raise ValueError(f"{_WHO}: batch_axis must be 0 or None, got {axis!r}.")
    if isinstance(accumulate, bool) or not isinstance(accumulate, int):
        raise TypeError(f"{_WHO}: accumulate must be an int, got {accumulate!r}.")
    if accumulate < 1:
        raise ValueError(f"{_WHO}: accumulate must be at least 1, got {accumulate}.")


def hyper_of(hyper: Mapping[str, Any], number: int) -> dict[str, Array]:
    """Hyperparameters of all adapters; a single number serves them all.

    Raises:
        ValueError: If one is neither a number nor one number for each adapter.
    """
    found = {name: jnp.asarray(x, jnp.float32) for name, x in hyper.items()}
    bad = [f"{n} {x.shape}" for n, x in found.items() if x.shape not in ((), (number,))]
    if bad:
        raise ValueError(
            f"{_WHO}: hyper must hold one number for each of {number} adapters, got "
            f"{', '.join(bad)}."
        )
    return {name: jnp.broadcast_to(x, (number,)) for name, x in found.items()}


def check_batch(batch: Any, number: int) -> None:
    """Refuse a batch without the axis of adapters.

    Raises:
        ValueError: If a leaf lacks it.
    """
    shapes = [np.shape(x) for x in jax.tree.leaves(batch)]
    if any(shape[:1] != (number,) for shape in shapes):
        raise ValueError(
            f"{_WHO}: expected batches with a leading axis of {number} adapters, got "
            f"{shapes}. Pass batch_axis=None if all adapters see the same batch."
        )


def check_parts(batch: Any, accumulate: int) -> None:
    """Refuse a batch without the axis of the batches of one step.

    Raises:
        ValueError: If a leaf lacks it.
    """
    shapes = [np.shape(x) for x in jax.tree.leaves(batch)]
    if any(shape[:1] != (accumulate,) for shape in shapes):
        raise ValueError(
            f"{_WHO}: expected {accumulate} batches in one step, in the first axis "
            f"(behind that of the adapters), got {shapes}."
        )


def check_loss(value: Any, metrics: Any) -> None:
    """Refuse what is no loss.

    Raises:
        TypeError: If the metrics are no dict.
        ValueError: If the loss is no scalar, or a metric has a name of ours.
    """
    if not isinstance(metrics, Mapping):
        raise TypeError(
            f"{_WHO}: the loss must return a scalar or (scalar, dict), got a second "
            f"part of {type(metrics).__name__}."
        )
    if not is_array(value) or value.shape != ():
        shape = getattr(value, "shape", type(value).__name__)
        raise ValueError(f"{_WHO}: the loss must be a scalar, got {shape}.")
    if taken := sorted(_OWN & metrics.keys()):
        raise ValueError(f"{_WHO}: metrics may not be called {taken}. Rename them.")
