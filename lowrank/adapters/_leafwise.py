"""The wiring that methods share: one term for each selected leaf, and its checks."""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, cast

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import (
    Array,
    Operator,
    Path,
    PyTree,
    State,
    Transform,
    is_floating,
)
from lowrank._select import Select, check_select, selected
from lowrank.adapters._lora import Initializer, draw_factor
from lowrank.operators import Delta, LowRank

Arrays = dict[str, Array]


class Reason(NamedTuple):
    """Why a leaf cannot be adapted, and the way out.

    Attributes:
        why: What is wrong with the leaf.
        advice: What to do besides leaving it out, with `{}` for the limit; or empty.
        limit: A number that the advice names: of several leaves, the smallest.
    """

    why: str
    advice: str = ""
    limit: int = 0


class Rules(NamedTuple):
    """What a method does with one leaf.

    Attributes:
        fits: `fits(sizes) -> reason`, None if a leaf of these sizes can be adapted.
        draw: `draw(key, sizes) -> (trainable, fixed)`, arrays by name.
        build: `build(w, arrays, axes) -> operator`, given all arrays of the leaf.
        trainable: Names of the trainable arrays.
        fixed: Names of the fixed ones that every leaf has.
        layout: Axes of a leaf that `axes=` does not name, by its number of axes.
        dense: Whether the leaf must have a dense form.
    """

    fits: Callable[[Axes], Reason | None]
    draw: Callable[[Array, Axes], tuple[Arrays, Arrays]]
    build: Callable[[Any, Arrays, Axes], Any]
    trainable: tuple[str, ...]
    fixed: tuple[str, ...]
    layout: Callable[[int], Axes] | None = None
    dense: bool = False


def leafwise(
    who: str, rules: Rules, select: Select, axes: Mapping[Path, Axes] | None
) -> Transform:
    """A transform that gives each selected leaf an operator of its own.

    Args:
        who: Name of the method, for messages.
        rules: What it does with a leaf.
        select: Which leaves to adapt.
        axes: Axes by path.

    Returns:
        The transform.

    Raises:
        TypeError: If `select` is no function.
        ValueError: In `init`, if a selected leaf is not floating or does not fit; in
            `apply`, if the state is of another tree.
    """
    check_select(who, select)

    def dims_of(chosen: Mapping[Path, Any]) -> dict[Path, Axes]:
        layout = rules.layout
        known = {p: layout(len(x.shape)) for p, x in chosen.items()} if layout else {}
        return resolve(who, chosen, {**known, **(axes or {})})

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = dims_of(chosen)
        sizes = {path: found[path].sizes(tuple(x.shape)) for path, x in chosen.items()}
        reasons = {
            path: _reason(who, leaf, rules.dense) or rules.fits(sizes[path])
            for path, leaf in chosen.items()
        }
        _refuse(who, chosen, reasons)
        drawn = {
            path: rules.draw(_tree.leaf_key(key, path), sizes[path]) for path in chosen
        }
        trainable, fixed = (
            {p: halves[i] for p, halves in drawn.items()} for i in (0, 1)
        )
        return State(trainable, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        names = {"trainable": rules.trainable, "fixed": rules.fixed}
        _check.check_state(who, leaves, state, **names)
        chosen = {path: leaves[path] for path in state.trainable}
        reasons = {p: _reason(who, leaf, rules.dense) for p, leaf in chosen.items()}
        _refuse(who, chosen, reasons)
        found = dims_of(chosen)
        new = {
            path: rules.build(
                w, {**state.trainable[path], **state.fixed[path]}, found[path]
            )
            for path, w in chosen.items()
        }
        _check.check_operators(who, new)
        return _tree.replace(who, params, new)

    return Transform(init, apply)


def _reason(who: str, leaf: Any, dense: bool) -> Reason | None:
    """Why a leaf cannot be adapted, whatever its sizes; or nothing."""
    if not is_floating(leaf):
        return Reason("not floating")
    if dense and isinstance(leaf, Operator) and not leaf.has_dense:
        return Reason(
            f"{type(leaf).__name__} has no dense form",
            f"put {who} before what acts inside the product",
        )
    return None


def _refuse(
    who: str, chosen: Mapping[Path, Any], reasons: Mapping[Path, Reason | None]
) -> None:
    """Refuse the leaves that there is a reason against.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad, limits = [], {}
    for path, reason in reasons.items():
        if reason is None:
            continue
        bad.append(f"{_tree.describe(path, chosen[path])}: {reason.why}")
        if reason.advice:
            known = limits.get(reason.advice, reason.limit)
            limits[reason.advice] = min(known, reason.limit)
    if bad:
        ways = [advice.format(limit) for advice, limit in limits.items()]
        ways.append(f"{'or ' if ways else ''}leave these out with select=")
        advice = ", ".join(ways)
        raise ValueError(
            f"{who}: cannot adapt {'; '.join(bad)}. {advice[0].upper()}{advice[1:]}."
        )


def exceeds(rank: int, sizes: Axes) -> Reason | None:
    """Why a rank is too large for a matrix of some sizes, or nothing."""
    small = min(math.prod(sizes.inputs), math.prod(sizes.outputs))
    return above("rank", rank, small)


def above(name: str, number: int, limit: int) -> Reason | None:
    """Why a hyperparameter is too large for a leaf, or nothing."""
    if number <= limit:
        return None
    return Reason(
        f"{name} {number} exceeds {limit}", f"lower the {name} to {{}}", limit
    )


def drawn(
    init: Initializer,
    key: Array,
    stack: tuple[int, ...],
    inputs: tuple[int, ...],
    outputs: tuple[int, ...],
) -> Array:
    """A factor `[*stack, *inputs, *outputs]`, a matrix for each stack index."""
    fan_in, fan_out = math.prod(inputs), math.prod(outputs)
    return draw_factor(init, key, stack, fan_in, fan_out).reshape(
        *stack, *inputs, *outputs
    )


def low_rank(w: Any, a: Array, b: Array, scale: Array, axes: Axes) -> LowRank:
    """`w + scale * a b`, with factors `[*stack, *in, r]` and `[*stack, r, *out]`."""
    dims = {"a_dims": axes.a_dims, "b_dims": axes.b_dims}
    op = LowRank._make(w=w, a=a, b=b, scale=scale, **dims)
    return cast("LowRank", op)


def thin_or_formed(w: Any, a: Array, b: Array, scale: Array, axes: Axes) -> Operator:
    """The same, in factors if they hold fewer numbers than the weight; else formed.

    Factors that are larger than the weight cost more in every product than forming
    what they stand for costs once.
    """
    op = low_rank(w, a, b, scale, axes)
    thin = a.size + b.size < math.prod(w.shape)
    return op if thin else Delta._make(w=w, d=op.delta())


def as_leaf(d: Array, axes: Axes) -> Array:
    """An array `[*stack, *in, *out]` with its axes where the leaf has them."""
    order = (*axes.stack, *axes.inputs, *axes.outputs)
    return jnp.transpose(d, [order.index(i) for i in range(d.ndim)])
