"""One tensor for the changes of many weights: outer factors shared, a middle for each.

Weights of one number of inputs share `A: [n, r]`, those of one number of outputs share
`B: [r, m]`; a leaf adds `s A M B` with a small `M` that its decomposition makes from
what the leaf owns and what its layer and type own. `M B` is formed, `A M B` never is.
"""

import math
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lowrank import _check, _shared, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Array, Operator, Path, PyTree, State, Transform
from lowrank._select import Select, check_select, selected
from lowrank.adapters._hydra import check_heads
from lowrank.adapters._lora import Initializer, check_leaves, scale_of
from lowrank.adapters._modes import Groups, Modes, check_groups, read_modes
from lowrank.operators import LowRank

Arrays = Mapping[str, Array]
NO_MODES = Modes((), (), {})
MODES = _shared.place("modes")


class Decomposition(NamedTuple):
    """What makes the middle of each leaf.

    Attributes:
        shared: Names and shapes of what all leaves share; None for a number of members.
        draw_shared: `draw_shared(key, modes)`: those arrays.
        own: Names and shapes of what each leaf trains for itself, for one stack index.
        draw_own: `draw_own(key, stack)`: those arrays, with the stack in front.
        right: `right(shared, own, index, b)`: `M b: [r, m]` for one stack index, where
            `index` tells the rows of the leaf's layer and type.
    """

    shared: Mapping[str, _check.Shape]
    draw_shared: Callable[[Array, Modes], Arrays]
    own: Mapping[str, tuple[int, ...]]
    draw_own: Callable[[Array, tuple[int, ...]], Arrays]
    right: Callable[[Arrays, Arrays, Arrays, Array], Array]


def nothing(*_: Any) -> Arrays:
    """For a decomposition without shared, or without own arrays."""
    return {}


class _Plan(NamedTuple):
    """What a factory closes over."""

    who: str
    rank: int
    form: Decomposition
    number: Any
    select: Select
    axes: Mapping[Path, Axes] | None
    init: Initializer
    init_b: Initializer
    read: Callable[[Path], tuple[Any, Any] | None] | None
    heads: int


def tensor(
    who: str,
    rank: int,
    decomposition: Decomposition,
    *,
    alpha: Any,
    scale: Any,
    select: Select,
    axes: Mapping[Path, Axes] | None,
    init: Initializer,
    init_b: Initializer,
    groups: Groups | None = None,
    heads: int | None = None,
) -> Transform:
    """The transform of a decomposition: see `lorta`, `metatt`, `fact_tt`, `fact_tk`."""
    check_select(who, select)
    number = scale_of(who, rank, alpha, scale)
    read = None if groups is None else check_groups(who, groups)
    parts = 1 if heads is None else check_heads(who, heads)
    made = (rank, decomposition, number, select, axes, init, init_b, read, parts)
    plan = _Plan(who, *made)

    def start(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        return _start(plan, key, params)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        return _apply(plan, params, state)

    return Transform(start, apply)


def _start(plan: _Plan, key: Array, params: PyTree) -> State:
    """The state of all selected leaves."""
    who, form = plan.who, plan.form
    _shared.check_free(who, _tree.leaves(who, params))
    chosen = selected(who, params, plan.select)
    found = resolve(who, chosen, plan.axes)
    check_leaves(who, plan.rank, chosen, found)
    _check_outputs(plan, chosen, found)
    modes = read_modes(who, plan.read, chosen, found) if plan.read else NO_MODES
    draws = {"a": plan.init, "b": plan.init_b}
    trainable: dict[Path, Any] = {}
    for path, shapes in _outer(plan, chosen, found).items():
        mine = _tree.leaf_key(key, path)
        drawn = {n: draws[n](mine, shape, jnp.float32) for n, shape in shapes.items()}
        trainable[path] = drawn
    if form.shared:
        trainable[MODES] = form.draw_shared(_tree.leaf_key(key, MODES), modes)
    for path, leaf in chosen.items() if form.own else ():
        stack = found[path].sizes(leaf.shape).stack
        trainable[path] = form.draw_own(_tree.leaf_key(key, path), stack)
    number = jnp.asarray(plan.number, jnp.float32)
    fixed = {p: {"scale": number, **modes.rows.get(p, {})} for p in chosen}
    return State(trainable, fixed)


def _apply(plan: _Plan, params: PyTree, state: State) -> PyTree:
    """The tree with a low-rank term at every leaf of the state."""
    who, form = plan.who, plan.form
    leaves = _tree.leaves(who, params)
    own, shared = _shared.divide(state)
    rows = ("layer_row", "type_row") if plan.read else ()
    names = {"trainable": tuple(form.own), "fixed": ("scale", *rows)}
    _check.check_state(who, leaves, own, **names)
    chosen = {path: leaves[path] for path in own.fixed}
    found = resolve(who, chosen, plan.axes)
    wanted = _outer(plan, chosen, found) | ({MODES: form.shared} if form.shared else {})
    _check.check_shapes(who, shared.trainable, wanted)
    new = {}
    for path, w in chosen.items():
        fixed = own.fixed[path]
        parts = (own.trainable.get(path, {}), {name: fixed[name] for name in rows})
        new[path] = _leaf(form, w, found[path], fixed["scale"], shared, parts)
    _check.check_operators(who, new)
    return _tree.replace(who, params, new)


def _sides(shape: tuple[int, ...], axes: Axes) -> tuple[int, int]:
    """How many inputs and outputs a leaf has."""
    sizes = axes.sizes(shape)
    return math.prod(sizes.inputs), math.prod(sizes.outputs)


def _outer(
    plan: _Plan, chosen: Mapping[Path, Any], found: Mapping[Path, Axes]
) -> dict[Path, Any]:
    """Paths, names and shapes of the outer factors of these leaves."""
    wanted = {}
    for path, leaf in chosen.items():
        n, m = _sides(leaf.shape, found[path])
        wanted[_shared.place("in", n)] = {"a": (n, plan.rank)}
        wanted[_shared.place("out", m)] = {"b": (plan.rank, m // plan.heads)}
    return wanted


def _leaf(
    form: Decomposition,
    w: Any,
    axes: Axes,
    scale: Array,
    shared: State,
    parts: tuple[Arrays, Arrays],
) -> Operator:
    """The leaf with its term, `A` repeated for each stack index."""
    sizes = axes.sizes(w.shape)
    n, m = _sides(w.shape, axes)
    a = shared.trainable[_shared.place("in", n)]["a"]
    b = shared.trainable[_shared.place("out", m)]["b"]
    modes = shared.trainable.get(MODES, {})

    def right(own: Arrays, index: Arrays) -> Array:
        return form.right(modes, own, index, b)

    for _ in sizes.stack:
        right = jax.vmap(right)
    rank, stack = a.shape[-1], sizes.stack
    return LowRank._make(
        w=w,
        a=jnp.broadcast_to(a, (*stack, n, rank)).reshape(*stack, *sizes.inputs, rank),
        b=right(*parts).reshape(*stack, rank, *sizes.outputs),
        scale=scale,
        a_dims=axes.a_dims,
        b_dims=axes.b_dims,
    )


def _check_outputs(
    plan: _Plan, chosen: Mapping[Path, Any], found: Mapping[Path, Axes]
) -> None:
    """Refuse leaves whose outputs do not divide into heads.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, leaf in chosen.items():
        outputs = _sides(leaf.shape, found[path])[1]
        if outputs % plan.heads:
            bad.append(f"{_tree.describe(path, leaf)}: {outputs} outputs")
    if bad:
        raise ValueError(
            f"{plan.who}: cannot divide {'; '.join(bad)} into {plan.heads} heads. Pass "
            "another heads=, or leave them out with select=."
        )
