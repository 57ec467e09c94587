"""The recipe of ITT-RNA, as far as it is public: a net and one chip."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank import _check, _compat, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._select import Select, is_matrix, selected
from lowrank.operators._rows import matrix_shape
from lowrank.rram._assign import Assignment
from lowrank.rram._assign import assign as assign_rows
from lowrank.rram._crossbar import crossbar
from lowrank.rram._device import Device
from lowrank.rram._flip import choose_flips
from lowrank.rram._itt_train import itt_train, loss_importance
from lowrank.rram._permute import permute
from lowrank.rram._placed import placed
from lowrank.rram._retrain import Loss, Optimizer


class Healed(NamedTuple):
    """What `itt` leaves behind: `transform.apply(params, state)` is the deployed net.

    Attributes:
        transform: The chip with its wiring.
        state: Its state.
        params: The trained weights: what the chip is programmed with.
        report: `seconds` of the assignment and its `cost` by path `(before, after)`,
            `rows` and `signs` (None where a part is off), `losses` and `writes` as in
            `Trained`.
    """

    transform: Transform
    state: State
    params: PyTree
    report: dict[str, Any]


def itt(
    loss: Loss,
    params: PyTree,
    device: Device,
    batches: PyTree,
    optimizer: Optimizer,
    key: Array,
    *,
    chip: State | None = None,
    spare: int = 0,
    assign: bool = True,
    flips: bool = True,
    compensate: bool = True,
    per_step: Any = 1,
    shrink: Any = 0.0,
    balance: bool = True,
    tolerance: Any = 0.05,
    penalty: Any = 0.0,
    stages: Sequence[Select] | None = None,
    device_steps: int = 0,
    device_optimizer: Optimizer | None = None,
    threshold: Any = 0.0,
    importance: Mapping[Path, Array] | None = None,
    tile: int | None = None,
    columns: bool = True,
    select: Select = is_matrix,
    axes: Mapping[Path, Axes] | None = None,
) -> Healed:
    """Train a net for one chip whose defects are known, as ITT-RNA is described.

    1. Importance of the weights, on the ideal net. 2. Rows are assigned to rows of the
    crossbar, spare ones among them, and signs of columns chosen, so that important
    weights meet healthy cells. 3. Every weight is programmed so that it comes out as
    near as its cells allow. 4. Training through the map: weights that are still off are
    reduced and frozen in the order of their importance, the others heal. 5. Layer by
    layer, if asked for. 6. A few steps on the device, if asked for.

    This follows the published abstract and overview figure, and what notes say of the
    predecessor at DATE 2017. The text of the paper is closed: it is not its code, and
    `docs/methods/itt.md` lists what is not known.

    Args:
        loss: `loss(params, batch)`, a scalar. It is lifted here.
        params: The weights of the net, trained on ideal hardware.
        device: The device.
        batches: As for `itt_train`.
        optimizer: Like one of Optax; it is given `{path: array}`.
        key: A random key: draws the chip, if none is given, and read noise.
        chip: The known chip: the state of `crossbar` for leaves with `spare` rows more.
            None: drawn from the key.
        spare: Rows that each crossbar has beyond those of its weight, at least 0; none
            for leaves with several input axes. Without `assign` they are not used.
        assign: Whether rows are assigned.
        flips: Whether signs of columns are chosen.
        compensate: As for `itt_train`.
        per_step: As for `itt_train`.
        shrink: As for `itt_train`.
        balance: As for `itt_train`.
        tolerance: As for `itt_train`.
        penalty: As for `itt_train`.
        stages: As for `itt_train`.
        device_steps: As for `itt_train`.
        device_optimizer: As for `itt_train`.
        threshold: As for `itt_train`.
        importance: As for `itt_train`.
        tile: As for `crossbar`; the assignment goes by costs without tiles.
        columns: As for `crossbar`.
        select: As for `crossbar`.
        axes: As for `crossbar`.

    Returns:
        The chip with its wiring, its state, the weights to program, and a report.

    Raises:
        TypeError: If `device` is no `Device`, `key` no key, or the call is traced: the
            assignment runs on the host. Jit `itt_train`.
        ValueError: If nothing is selected, or `chip` was sampled for another tree; and
            as `itt_train` and `permute`.

    Example:
        >>> params, device = {"w": jnp.eye(2)}, lrk.rram.Device(p_hrs=0.2)
        >>> class Descent:
        ...     init = staticmethod(lambda params: ())
        ...     update = staticmethod(
        ...         lambda g, m, p: (jax.tree.map(lambda x: -0.1 * x, g), m)
        ...     )
        >>> loss = lambda p, x: jnp.mean((x @ p["w"] - x) ** 2)
        >>> run = lrk.rram.itt(
        ...     loss, params, device, jnp.ones((4, 1, 2)), Descent, jax.random.key(0),
        ...     spare=1,
        ... )
        >>> run.transform.apply(run.params, run.state)["w"].shape
        (2, 2)

    Notes:
        Not confirmed of the paper: its nets and data beyond "MLP" and "CNN", its
        importance, its regulariser, the split of faults, the number of steps on the
        device, and its spreads.
        A kernel of more than two axes behind converters or read noise is an operator
        whose rows and columns are not wired elsewhere: pass `assign=False` and
        `flips=False` there.

    References:
        Song et al., ITT-RNA: Imperfection Tolerable Training for RRAM-Crossbar-Based
        Deep Neural-Network Accelerator, IEEE TCAD 2020, DOI 10.1109/TCAD.2020.2989373:
        abstract and overview figure. Chen et al., Accelerator-friendly Neural-network
        Training, DATE 2017, DOI 10.23919/DATE.2017.7926952, as described in notes.
    """
    _check_call(device, key, (params, batches, chip))
    told: dict[str, Any] = {"select": select, "axes": axes}
    layout: dict[str, Any] = {"tile": tile, "columns": columns, **told}
    chosen = selected("itt", params, select)
    found = resolve("itt", chosen, axes)
    more = {p: spare if len(found[p].inputs) == 1 else 0 for p in chosen}
    if importance is None:
        measure = functools.partial(loss_importance, loss, select=select)
        importance = jax.jit(measure)(params, batches)
    home = _in_order(chosen, found) if assign or spare else None
    if chip is None:
        seat = permute(home, spare=more, axes=axes) if home else None
        tall = params if seat is None else seat.apply(params, seat.init(key, params))
        chip = crossbar(device, **layout).init(_tree.leaf_key(key, "chip"), tall)
    placing = Assignment(home or {}, 0.0, {})
    if assign:
        placing = assign_rows(
            chosen, chip, device.scheme, importance,
            spare=more, columns=columns, axes=axes,
        )  # fmt: skip
    rows = placing.rows or None
    signs = None
    if flips:
        signs = _signs(
            chosen, chip, device, importance, rows, more, tile, columns, axes
        )
    own = placed(device, rows, signs, spare=more, **layout)
    state = own.state(params, chip)
    train = functools.partial(
        itt_train,
        loss,
        transform=own.transform,
        optimizer=optimizer,
        compensate=compensate,
        per_step=per_step,
        shrink=shrink,
        balance=balance,
        tolerance=tolerance,
        penalty=penalty,
        stages=stages,
        device_steps=device_steps,
        device_optimizer=device_optimizer,
        off_device=own.off_device,
        cells=own.cells,
        threshold=threshold,
        **told,
    )
    last = _tree.leaf_key(key, "train") if device.stochastic else None
    trained = jax.jit(train)(
        params, state=state, batches=batches, importance=dict(importance), key=last
    )
    report = {
        "seconds": placing.seconds,
        "cost": placing.cost,
        "rows": rows,
        "signs": signs,
        "losses": trained.losses,
        "writes": trained.writes,
    }
    return Healed(own.transform, state, trained.params, report)


def _in_order(
    chosen: Mapping[Path, Any], axes: Mapping[Path, Axes]
) -> dict[Path, Array]:
    """Rows that stay where they are."""
    home = {}
    for path, w in chosen.items():
        *stack, rows, _ = matrix_shape(w, axes[path])
        home[path] = jnp.broadcast_to(jnp.arange(rows), (*stack, rows))
    return home


def _signs(
    chosen: Mapping[Path, Any],
    chip: State,
    device: Device,
    importance: Mapping[Path, Array],
    rows: Mapping[Path, Array] | None,
    more: Mapping[Path, int],
    tile: int | None,
    columns: bool,
    axes: Mapping[Path, Axes] | None,
) -> dict[Path, Array]:
    """Signs of columns, for the rows where they are assigned to."""
    own = {path: importance[path] for path in chosen}
    met: list[Any] = [dict(chosen), own]
    if rows is not None:
        seat = permute(rows, spare=more, axes=axes)
        state = seat.init(jax.random.key(0), met[0])
        met = [seat.apply(tree, state) for tree in met]
    return choose_flips(
        met[0], chip, device.scheme, met[1], tile=tile, columns=columns, axes=axes
    )


def _check_call(device: Any, key: Any, given: PyTree) -> None:
    """Refuse what cannot work before anything is trained.

    Raises:
        TypeError: If `device` is no device, `key` no key, or something is traced.
    """
    if not isinstance(device, Device):
        raise TypeError(
            f"itt: expected a Device, got {type(device).__name__}. Pass "
            "lrk.rram.Device(...)."
        )
    _check.check_key("itt", key, "itt(..., jax.random.key(0))")
    arrays = [x for x in jax.tree.leaves((key, given)) if isinstance(x, jax.Array)]
    if not all(_compat.is_concrete(x) for x in arrays):
        raise TypeError(
            "itt: called under jit, vmap or grad, but the assignment runs on the host. "
            "Call it outside, or jit itt_train."
        )
