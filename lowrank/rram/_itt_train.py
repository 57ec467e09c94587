"""Training for one chip whose defects are known: pure, for many chips at once."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank import _tree
from lowrank._axes import Axes
from lowrank._base import Array, Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, is_matrix
from lowrank.lifting import lift
from lowrank.rram._compensate import compensated, reduced
from lowrank.rram._freeze import afflicted, freeze_order, frozen
from lowrank.rram._importance import importance as importance_of
from lowrank.rram._numbers import check, check_whole
from lowrank.rram._on_device import Cells, on_device
from lowrank.rram._retrain import Leaves, Loss, Optimizer, retrain, steps


class Trained(NamedTuple):
    """What `itt_train` leaves behind.

    Attributes:
        params: The trained weights: what the chip is programmed with.
        losses: `[steps]`, the loss of each batch before its step, on the device last.
        writes: `[device_steps]`, int32: cells written in each step on the device.
    """

    params: PyTree
    losses: Array
    writes: Array


def loss_importance(
    loss: Loss,
    params: PyTree,
    batches: PyTree,
    *,
    select: Select = is_matrix,
    count: int = 8,
) -> dict[Path, Array]:
    """Importance `|w| mean |dL/dw|` of the weights of an ideal net.

    Args:
        loss: `loss(params, batch)`, a scalar.
        params: The weights.
        batches: A tree whose arrays have the steps in front.
        select: Which leaves.
        count: How many of the batches the mean is over, at least 1.

    Returns:
        By path, an array of the leaf's shape, not negative.

    Raises:
        ValueError: If `count < 1` or is not whole, nothing is selected or the batches
            have no common number of steps.

    Example:
        >>> loss = lambda p, x: jnp.sum(x @ p["w"])
        >>> batches = jnp.asarray([[[1.0, 3.0]], [[-1.0, 3.0]]])
        >>> params = {"w": jnp.asarray([[2.0], [1.0]])}
        >>> lrk.rram.loss_importance(loss, params, batches)["w"].tolist()
        [[2.0], [3.0]]

    Notes:
        The mean is of magnitudes: at the end of training the gradient itself is near
        zero, its magnitude on a batch is not.

    References:
        As `importance`.
    """
    check("loss_importance", count=(count, 1, None))
    check_whole("loss_importance", count=count)
    number = min(count, steps("loss_importance", batches))
    leaves = _tree.leaves("loss_importance", params)
    theta = {path: w for path, w in leaves.items() if is_floating(w)}

    def size(batch: Any) -> Leaves:
        def own(theta: Leaves) -> Array:
            return loss(_tree.replace("loss_importance", params, theta), batch)

        return jax.tree.map(jnp.abs, jax.grad(own)(theta))

    sizes = lax.map(size, jax.tree.map(lambda x: x[:number], batches))
    return importance_of(
        params, {path: g.mean(0) for path, g in sizes.items()}, select=select
    )


def itt_train(
    loss: Loss,
    params: PyTree,
    transform: Transform,
    state: State,
    batches: PyTree,
    optimizer: Optimizer,
    *,
    importance: Mapping[Path, Array] | None = None,
    compensate: bool = True,
    per_step: Any = 0,
    shrink: Any = 0.0,
    balance: bool = True,
    tolerance: Any = 0.05,
    penalty: Any = 0.0,
    stages: Sequence[Select] | None = None,
    device_steps: int = 0,
    device_optimizer: Optimizer | None = None,
    off_device: Transform | None = None,
    cells: Cells | None = None,
    threshold: Any = 0.0,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
    key: Array | None = None,
) -> Trained:
    """The training half of `itt`: pure, to be jitted and mapped over chips.

    The weights that the chip distorts are found, and put in the order of their
    importance; `retrain` trains through the map of the chip, with reduce and freeze,
    penalty and stages; the last batches are for `on_device`.

    Args:
        loss: `loss(params, batch)`, a scalar. It is lifted here.
        params: The weights of the net, trained on ideal hardware.
        transform: The chip with its wiring: `placed(...).transform`, or `crossbar`.
        state: Its state.
        batches: A tree whose arrays have the steps in front: first those of the
            training off the device, then `device_steps` on it.
        optimizer: Like one of Optax; it is given `{path: array}`.
        importance: By path, for each leaf on the chip; None: `loss_importance`.
        compensate: Whether training starts from what the map says is to be programmed
            (`compensated`). Then only weights that this cannot mend are afflicted.
        per_step: As for `retrain`; 0: nothing is frozen.
        shrink: As for `retrain`.
        balance: Whether a frozen weight is reduced on the chip (`reduced`), so that its
            deployed value is as near zero as its cells allow; else what is programmed
            is zero, whatever comes out.
        tolerance: As for `afflicted`.
        penalty: Factor of `defect_penalty`, whose `omega` is the importance over its
            mean; 0: none.
        stages: As for `retrain`.
        device_steps: Batches for steps on the device, at least 0, fewer than there are.
        device_optimizer: The optimizer of those steps; None: `optimizer`, anew.
        off_device: The chip as training off the device knows it:
            `placed(...).off_device`, without what is random in each product. None:
            `transform`.
        cells: As for `on_device`, which needs it: `placed(...).cells`.
        threshold: As for `on_device`.
        select: Which leaves are on the chip, as for `crossbar`.
        axes: As for `crossbar`.
        key: A random key, for a chip with read noise.

    Returns:
        The weights to program, the losses and the writes. Frozen weights stay frozen in
        the steps on the device.

    Raises:
        ValueError: If `device_steps` is negative, leaves no batch for the rest or comes
            without `cells`; and as `retrain`, `afflicted` and `on_device`.

    Example:
        >>> params, device = {"w": jnp.eye(2)}, lrk.rram.Device(p_hrs=0.2)
        >>> class Descent:
        ...     init = staticmethod(lambda params: ())
        ...     update = staticmethod(
        ...         lambda g, m, p: (jax.tree.map(lambda x: -0.1 * x, g), m)
        ...     )
        >>> loss = lambda p, x: jnp.mean((x @ p["w"] - x) ** 2)
        >>> tx = lrk.rram.crossbar(device)
        >>> chips = lrk.stack([tx.init(jax.random.key(i), params) for i in range(3)])
        >>> run = lrk.map_tasks(lambda state, params, batches: lrk.rram.itt_train(
        ...     loss, params, tx, state, batches, Descent, per_step=1
        ... ), method="map", in_axes=(0, None, None))
        >>> run(chips, params, jnp.ones((4, 1, 2))).losses.shape
        (3, 4)

    References:
        As `itt`.
    """
    count = _check_steps(batches, device_steps, cells)
    lifted, off = lift(loss), transform if off_device is None else off_device
    if importance is None:
        importance = loss_importance(loss, params, batches, select=select)
    told: dict[str, Any] = {"select": select, "axes": axes}

    def deploy(params: PyTree, key: Array | None = None) -> PyTree:
        return off.apply(params, state, key=key)

    order = target = None
    first = None if key is None else _tree.leaf_key(key, "afflicted")

    def once(params: PyTree) -> PyTree:
        return deploy(params, first)

    start = compensated(params, once, **told) if compensate else params
    if not (isinstance(per_step, (int, float)) and per_step == 0):
        hit = afflicted(params, once(start), tolerance=tolerance, **told)
        order = freeze_order(importance, hit)
        if balance:
            target = reduced(params, once, **told)
    healed = retrain(
        lifted,
        start,
        deploy,
        jax.tree.map(lambda x: x[:count], batches),
        optimizer,
        order=order,
        per_step=per_step,
        shrink=shrink,
        target=target,
        penalty=penalty,
        importance=_over_mean(importance),
        stages=stages,
        key=None if key is None else _tree.leaf_key(key, "retrain"),
    )
    if not device_steps or cells is None:
        return Trained(healed.params, healed.losses, jnp.zeros(0, jnp.int32))
    held = {} if order is None else frozen(order, count * per_step)
    last = on_device(
        lifted,
        healed.params,
        transform,
        state,
        jax.tree.map(lambda x: x[count:], batches),
        optimizer if device_optimizer is None else device_optimizer,
        None if key is None else _tree.leaf_key(key, "on_device"),
        cells=cells,
        threshold=threshold,
        mask={path: ~hold for path, hold in held.items()},
    )
    losses = jnp.concatenate([healed.losses, last.losses])
    return Trained(last.params, losses, last.writes)


def _over_mean(importance: Mapping[Path, Array]) -> Leaves:
    """Importance over its mean over all leaves: 1 on average."""
    total = sum(jnp.sum(x) for x in importance.values())
    mean = total / sum(x.size for x in importance.values())
    return {path: x / jnp.where(mean > 0, mean, 1.0) for path, x in importance.items()}


def _check_steps(batches: PyTree, device_steps: int, cells: Cells | None) -> int:
    """How many batches are for the training off the device.

    Raises:
        ValueError: If steps on the device leave none, or come without `cells`.
    """
    count = steps("itt_train", batches)
    if not 0 <= device_steps < count:
        raise ValueError(
            f"itt_train: device_steps must be at least 0 and below the number of "
            f"batches, {count}, got {device_steps}."
        )
    if device_steps and cells is None:
        raise ValueError(
            "itt_train: steps on the device need cells, to count writes. Pass "
            "cells=rram.placed(...).cells or rram.programmed(device)."
        )
    return count - device_steps
