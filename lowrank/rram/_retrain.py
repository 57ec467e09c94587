"""Training through a chip's map: masks, reduce and freeze, stages in order of depth."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lowrank import _tree
from lowrank._base import Array, Path, PyTree, as_struct, is_floating
from lowrank._select import Select
from lowrank.rram._freeze import check_leaves
from lowrank.rram._numbers import check
from lowrank.rram._penalty import defect_penalty

Leaves = dict[Path, Array]
Loss = Callable[[PyTree, Any], Array]


@runtime_checkable
class Optimizer(Protocol):
    """What is asked of an optimizer: that of Optax, for one."""

    @property
    def init(self) -> Callable[[Any], Any]:
        """`init(params) -> memory`."""
        ...

    @property
    def update(self) -> Callable[..., tuple[Any, Any]]:
        """`update(grads, memory, params) -> (updates, memory)`, updates to be added."""
        ...


class Retrained(NamedTuple):
    """What `retrain` leaves behind.

    Attributes:
        params: The trained weights: what to program, not what the chip makes of it.
        losses: `[steps]`, the loss of each batch before its step, without the penalty.
    """

    params: PyTree
    losses: Array


class _Stage(NamedTuple):
    """Some of the batches, and what is held in them."""

    first: int
    end: int
    ideal: frozenset[Path]
    fixed: frozenset[Path]


class _Plan(NamedTuple):
    """All that does not change between steps."""

    loss: Loss
    tree: PyTree
    deploy: Callable[..., PyTree]
    optimizer: Optimizer
    order: Mapping[Path, Array]
    per_step: Any
    shrink: Any
    target: Mapping[Path, Array]
    penalty: Any
    importance: Mapping[Path, Array] | None
    mask: Mapping[Path, Array]


def retrain(
    loss: Loss,
    params: PyTree,
    deploy: Callable[..., PyTree],
    batches: PyTree,
    optimizer: Optimizer,
    *,
    order: Mapping[Path, Array] | None = None,
    per_step: Any = 0,
    shrink: Any = 0.0,
    target: Mapping[Path, Array] | None = None,
    penalty: Any = 0.0,
    importance: Mapping[Path, Array] | None = None,
    mask: Mapping[Path, Any] | None = None,
    stages: Sequence[Select] | None = None,
    key: Array | None = None,
) -> Retrained:
    """Train the full weights through what a chip makes of them.

    One step for each batch, `loss(deploy(params), batch)`. Pure: it may be jitted, and
    mapped over chips that `deploy` closes over.

    Args:
        loss: `loss(deployed, batch)`, a scalar. Where `deploy` gives operators it has
            to be lifted.
        params: The weights. Every floating leaf is trained.
        deploy: `lambda p: tx.apply(p, state)`, or, with a key, of two arguments:
            `lambda p, key: tx.apply(p, state, key=key)`.
        batches: A tree whose arrays have the steps in front, at least 1.
        optimizer: Like one of Optax; it is given `{path: array}`.
        order: As `freeze_order` gives it, for reduce and freeze.
        per_step: Weights that are frozen before each step, in that order, at least 0:
            `(k + 1) per_step` in step `k = 0, 1, ..`; may be traced.
        shrink: What is left, after each step, of a frozen weight's distance to its
            target, in [0, 1); 0 puts it there at once.
        target: By path, where frozen weights go: `reduced`; None: zero.
        penalty: Factor of `defect_penalty`, at least 0.
        importance: As for `defect_penalty`.
        mask: By path, True where a weight is trained: `fault_free` for FAP+T. Leaves
            that it does not name are trained.
        stages: Layer-wise adjustment: predicates `(path, leaf) -> bool`, one for each
            layer in order of depth; of several that match, the first counts. The
            batches are divided evenly between the stages and a last one. In stage `k`
            the layers up to `k` are deployed, deeper ones are ideal, those before `k`
            are fixed; in the last, all are deployed and trained. Leaves of no layer are
            deployed and trained throughout.
        key: A random key, for a `deploy` that needs one; each step has its own.

    Returns:
        The trained weights and the losses. Weights that are masked out keep their
        values; frozen ones lie at their target exactly, if `shrink` is 0.

    Raises:
        ValueError: If a number is out of its range, the batches have no common number
            of steps, there are not more of them than stages, a stage matches nothing,
            or `order`, `target` or `mask` do not fit the tree.

    Example:
        >>> class Descent:
        ...     init = staticmethod(lambda params: ())
        ...     update = staticmethod(
        ...         lambda g, m, p: (jax.tree.map(lambda x: -0.1 * x, g), m)
        ...     )
        >>> stuck = lambda p: {"w": p["w"].at[0].set(1.0)}  # what the chip does
        >>> loss = lambda p, x: (p["w"] @ x) ** 2
        >>> run = lrk.rram.retrain(
        ...     loss, {"w": jnp.ones(2)}, stuck, jnp.ones((20, 2)), Descent
        ... )
        >>> run.params["w"].round(1).tolist()  # the healthy weight makes up for it
        [1.0, -1.0]

    References:
        Chen et al., DATE 2017, DOI 10.23919/DATE.2017.7926952, as described in notes on
        the paper, for reduce and freeze; Song et al., ITT-RNA, 2020, DOI
        10.1109/TCAD.2020.2989373, abstract, for an adjustment because errors grow from
        layer to layer. The form of the stages is ours: the paper's is not known.
    """
    leaves = _tree.leaves("retrain", params)
    theta = {path: jnp.asarray(w) for path, w in leaves.items() if is_floating(w)}
    _check_numbers(order, per_step, shrink, penalty)
    for name, given in (("order", order), ("target", target), ("mask", mask)):
        check_mapping("retrain", name, given or {}, theta)
    count = steps("retrain", batches)
    parts = _stages(stages, theta, count)
    plan = _Plan(
        loss,
        params,
        deploy,
        optimizer,
        order if _counts(per_step) and order is not None else {},
        per_step,
        shrink,
        target or {},
        penalty,
        importance,
        mask or {},
    )
    carry, losses = (theta, optimizer.init(theta)), []
    numbers = jnp.arange(count)
    keys = None if key is None else jax.random.split(key, count)
    for part in parts:
        items = jax.tree.map(
            lambda x, part=part: x[part.first : part.end], (numbers, keys, batches)
        )
        carry, own = lax.scan(_step(plan, part), carry, items)
        losses.append(own)
    trained = _tree.replace("retrain", params, carry[0])
    return Retrained(trained, jnp.concatenate(losses))


def _step(plan: _Plan, stage: _Stage) -> Callable[..., Any]:
    """One step of training in one stage."""

    def step(carry: tuple[Leaves, Any], item: Any) -> tuple[tuple[Leaves, Any], Array]:
        theta, memory = carry
        number, key, batch = item
        held = {
            path: rank < (number + 1) * plan.per_step
            for path, rank in plan.order.items()
        }
        theta = {**theta, **_reduced(plan, theta, held)}

        def objective(theta: Leaves) -> tuple[Array, Array]:
            return _objective(plan, stage, theta, key, batch)

        grads, task = jax.grad(objective, has_aux=True)(theta)
        updates, memory = plan.optimizer.update(
            _still(plan, stage, held, grads), memory, theta
        )
        return (added(theta, _still(plan, stage, held, updates)), memory), task

    return step


def _reduced(plan: _Plan, theta: Leaves, held: Leaves) -> Leaves:
    """The leaves in which weights are held, with these a step nearer to their target.

    Weights that a mask keeps from training stay where they are.
    """
    new = {}
    for path, hold in held.items():
        w, goal = theta[path], plan.target.get(path, 0.0)
        if path in plan.mask:
            hold = hold & plan.mask[path]
        near = goal + plan.shrink * (w - goal)
        new[path] = jnp.where(hold, near, w).astype(w.dtype)
    return new


def _objective(
    plan: _Plan, stage: _Stage, theta: Leaves, key: Array | None, batch: Any
) -> tuple[Array, Array]:
    """The loss with the penalty, and without."""
    wanted = _tree.replace("retrain", plan.tree, theta)
    deployed = plan.deploy(wanted) if key is None else plan.deploy(wanted, key)
    ideal = {path: theta[path] for path in stage.ideal}
    deployed = _tree.replace("retrain", deployed, ideal)
    task = plan.loss(deployed, batch)
    if not _counts(plan.penalty):
        return task, task
    return task + plan.penalty * defect_penalty(wanted, deployed, plan.importance), task


def _still(plan: _Plan, stage: _Stage, held: Leaves, changes: Leaves) -> Leaves:
    """Zero for all that does not train."""
    new = {}
    for path, change in changes.items():
        if path in stage.fixed:
            new[path] = jnp.zeros_like(change)
            continue
        new[path] = jnp.where(held[path], 0, change) if path in held else change
    return masked(new, plan.mask)


def masked(changes: Leaves, mask: Mapping[Path, Array]) -> Leaves:
    """Zero where a mask keeps weights from training."""
    return {
        path: jnp.where(mask[path], change, 0) if path in mask else change
        for path, change in changes.items()
    }


def added(theta: Leaves, updates: Leaves) -> Leaves:
    """Weights after an update, in their own dtype."""
    return {path: (w + updates[path]).astype(w.dtype) for path, w in theta.items()}


def _counts(factor: Any) -> bool:
    """Whether a factor may be other than zero."""
    return not (isinstance(factor, (int, float)) and factor == 0)


def steps(who: str, batches: PyTree) -> int:
    """How many steps the batches are for.

    Raises:
        ValueError: If the arrays do not share one leading axis of at least 1.
    """
    sizes = {np.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(sizes) != 1 or sizes in ({()}, {(0,)}):
        raise ValueError(
            f"{who}: batches: expected arrays with the same number of steps in front, "
            f"at least one, got sizes {sorted(sizes)}. Stack the batches on axis 0."
        )
    return int(next(iter(sizes))[0])


def _stages(stages: Sequence[Select] | None, theta: Leaves, count: int) -> list[_Stage]:
    """The batches and the held leaves of every stage.

    Raises:
        ValueError: If there is no stage, one matches nothing, or there are fewer
            batches than stages.
    """
    if stages is None:
        return [_Stage(0, count, frozenset(), frozenset())]
    if not stages or not all(map(callable, stages)):
        raise ValueError(
            "retrain: stages must be predicates, one for each layer in order of depth, "
            f"got {stages!r}. Pass (lrk.matching('first'), lrk.matching('second'))."
        )
    layer: dict[Path, int] = {}
    missing = []
    for k, select in enumerate(stages):
        own = [path for path, w in theta.items() if select(path, as_struct(w))]
        if not own:
            missing.append(k)
        for path in own:
            layer.setdefault(path, k)
    if missing:
        raise ValueError(
            f"retrain: stages {missing} match nothing. The trained leaves are "
            f"{_tree.quoted(theta)}."
        )
    number = len(stages) + 1
    if count < number:
        raise ValueError(
            f"retrain: expected at least {number} batches, one for each of "
            f"{len(stages)} stages and one for all layers at the end, got {count}."
        )
    everything = len(stages)  # no layer is deeper, and none is fixed

    def part(k: int) -> _Stage:
        ideal = {path for path, depth in layer.items() if depth > k}
        fixed = {path for path, depth in layer.items() if depth < k}
        ends = k * count // number, (k + 1) * count // number
        last = k == everything
        return _Stage(*ends, frozenset(ideal), frozenset(() if last else fixed))

    return [part(k) for k in range(number)]


def check_mapping(
    who: str, what: str, given: Mapping[Path, Any], theta: Mapping[Path, Any]
) -> None:
    """Refuse a mapping with paths that the trained leaves lack, or other shapes.

    Raises:
        ValueError: If there are any; all are named.
    """
    missing = [path for path in given if path not in theta]
    if missing:
        near = _tree.quoted(_tree.nearest(missing, theta))
        raise ValueError(
            f"{who}: {what} has {_tree.quoted(missing)}, which the trained leaves "
            f"lack; the nearest are {near}."
        )
    check_leaves(who, what, given, {path: theta[path] for path in given})


def _check_numbers(order: Any, per_step: Any, shrink: Any, penalty: Any) -> None:
    """Refuse numbers out of their range.

    Raises:
        ValueError: If there are any, or weights are to be frozen in no order.
    """
    check("retrain", per_step=(per_step, 0, None), penalty=(penalty, 0, None))
    check("retrain", shrink=(shrink, 0, 1))
    if isinstance(shrink, (int, float)) and shrink == 1:
        raise ValueError("retrain: shrink must be below 1, got 1: nothing is reduced.")
    if order is None and _counts(per_step):
        raise ValueError(
            f"retrain: got per_step={per_step} without an order. Pass "
            "order=freeze_order(importance, afflicted)."
        )
