"""Primitives that hold functions: re-emitted with public JAX, never rebuilt by hand."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from lowrank import _compat
from lowrank._base import is_operator
from lowrank.lifting._evaluate import evaluate
from lowrank.lifting._frame import NO_SLOTS, Frame, Value
from lowrank.lifting._rules import control
from lowrank.operators import _dispatch as ask

Values = list[Value]
Slots = list[frozenset[int]]


def _data(values: Sequence[Value]) -> list[Any]:
    return [value.data for value in values]


def _slots(values: Sequence[Value]) -> list[frozenset[int]]:
    return [value.slots for value in values]


def _values(data: Sequence[Any], slots: Sequence[frozenset[int]]) -> Values:
    return [
        Value(x, s if is_operator(x) else NO_SLOTS)
        for x, s in zip(data, slots, strict=True)
    ]


@control("optimization_barrier")
def _barrier(eqn: Any, values: Values, frame: Frame) -> Values:
    del eqn, frame
    leaves, treedef = jax.tree.flatten(_data(values))
    data = jax.tree.unflatten(treedef, lax.optimization_barrier(leaves))
    return _values(data, _slots(values))


class _Inner:
    """A jitted function that was met once, and what it did with its operands."""

    def __init__(self, eqn: Any, frame: Frame) -> None:
        self.uses: tuple[Any, ...] = ()
        self.slots: list[frozenset[int]] = []

        def run(data: list[Any]) -> list[Any]:
            inner = Frame(frame.session, frame.line(eqn))
            own = [Value(x, frozenset([i])) for i, x in enumerate(data)]
            results = evaluate(eqn.params["jaxpr"], _values(data, _slots(own)), inner)
            self.uses, self.slots = tuple(inner.uses), _slots(results)
            return _data(results)

        run.__name__ = run.__qualname__ = str(eqn.params.get("name", "inner"))
        self.call = jax.jit(run)


@control("jit", "pjit")
def _jit(eqn: Any, values: Values, frame: Frame) -> Values:
    """Evaluated once for each (function, operator structure, shapes)."""
    data = _data(values)
    leaves, treedef = jax.tree.flatten(data)
    avals = tuple(_compat.abstract(x) for x in leaves)
    where = (id(eqn.params["jaxpr"]), treedef, avals)
    inner = frame.session.jitted.get(where)
    if inner is None:
        inner = frame.session.jitted[where] = _Inner(eqn, frame)
    results = inner.call(data)
    frame.translate(eqn, inner.uses, values)
    slots = [NO_SLOTS.union(*(values[i].slots for i in s)) for s in inner.slots]
    wanted = eqn.params.get("out_shardings") or [None] * len(results)
    placed = [_laid_out(x, to) for x, to in zip(results, wanted, strict=True)]
    return _values(placed, slots)


def _laid_out(x: Any, sharding: Any) -> Any:
    """A result where the inner function's `out_shardings` wants it."""
    if is_operator(x) or not isinstance(sharding, jax.sharding.Sharding):
        return x
    return lax.with_sharding_constraint(x, sharding)


@control("remat", "remat2", "checkpoint")
def _remat(eqn: Any, values: Values, frame: Frame) -> Values:
    params, slots = eqn.params, []

    def run(data: list[Any]) -> list[Any]:
        own = _values(data, _slots(values))
        results = evaluate(_compat.close(params["jaxpr"]), own, frame)
        slots[:] = _slots(results)
        return _data(results)

    policy, cse = params["policy"], params["prevent_cse"]
    data = jax.checkpoint(run, policy=policy, prevent_cse=cse)(_data(values))
    return _values(data, slots)


class _Mismatch(Exception):
    """Some results cannot leave a body in the structure that they have."""

    def __init__(self, positions: frozenset[int]) -> None:
        super().__init__(positions)
        self.positions = positions


class _Mixed(Exception):
    """A loop carries operators of more leaves to a place than it began with."""

    def __init__(self, slots: list[frozenset[int]]) -> None:
        super().__init__(slots)
        self.slots = slots


Attempt = Callable[[frozenset[int], Slots], Values]


def _until_closed(attempt: Attempt, slots: Slots) -> Values:
    """Try with every operator kept, then with those formed that cannot be kept.

    `slots` says which leaves each carried place may hold; loops that swap operators
    make it grow.
    """
    formed: frozenset[int] = NO_SLOTS
    while True:
        try:
            return attempt(formed, slots)
        except _Mismatch as mismatch:
            formed |= mismatch.positions
        except _Mixed as mixed:
            slots = mixed.slots


def _same_leaves(data: Sequence[Any], slots: Slots, results: Sequence[Value]) -> None:
    """Raise if an operator of another leaf comes back to a carried place."""
    joined = [
        old | (v.slots if is_operator(x) else NO_SLOTS)
        for x, old, v in zip(data, slots, results, strict=True)
    ]
    if joined != slots:
        raise _Mixed(joined)


def _check(before: Sequence[Any], after: Sequence[Any]) -> None:
    """Raise where two lists of values differ in structure."""
    structures = [list(map(jax.tree.structure, data)) for data in (before, after)]
    pairs = enumerate(zip(*structures, strict=True))
    differ = frozenset(i for i, (old, new) in pairs if old != new)
    if differ:
        raise _Mismatch(differ)


def _formed_at(
    eqn: Any, values: Values, where: frozenset[int], note: str, frame: Frame
) -> Values:
    """The same values, formed at some positions."""
    return [
        frame.form(eqn, [value], note)[0] if i in where else value
        for i, value in enumerate(values)
    ]


_BRANCHES = "the branches return it in different structures"
_CARRY = "the loop carries it in one structure and returns it in another"


@control("cond")
def _cond(eqn: Any, values: Values, frame: Frame) -> Values:
    """An operator that every branch returns in one structure stays an operator."""
    index, operands = values[0].data, values[1:]

    def attempt(where: frozenset[int], slots: Slots) -> Values:
        slots, first = list(slots), []

        def branch(closed: Any) -> Callable[[list[Any]], list[Any]]:
            def run(data: list[Any]) -> list[Any]:
                results = evaluate(closed, _values(data, _slots(operands)), frame)
                slots[:] = [a | v.slots for a, v in zip(slots, results, strict=True)]
                out = _data(_formed_at(eqn, results, where, _BRANCHES, frame))
                if first:
                    _check(first[0], out)
                first.append(out)
                return out

            return run

        branches = [branch(closed) for closed in eqn.params["branches"]]
        return _values(lax.switch(index, branches, _data(operands)), slots)

    return _until_closed(attempt, [NO_SLOTS] * len(eqn.outvars))


def _at_step(values: Values, step: Any) -> Values:
    """Random operators draw anew in each iteration."""
    return [
        v._replace(data=v.data.at(0, step))
        if is_operator(v.data) and v.data.stochastic
        else v
        for v in values
    ]


class _Stacked(NamedTuple):
    """What a scan slices: arrays with the layers in front, and how to use a slice."""

    arrays: Any
    rebuild: Callable[[Any], Any]
    slots: frozenset[int]


def _stacked(eqn: Any, value: Value, frame: Frame) -> _Stacked:
    if not is_operator(value.data):
        return _Stacked(value.data, lambda part: part, NO_SLOTS)
    answer = value.data.unstack()
    if answer is NotImplemented:
        formed = frame.form(eqn, [value], "its leading axis cannot be sliced")[0]
        return _Stacked(formed.data, lambda part: part, NO_SLOTS)
    arrays, rebuild = answer
    return _Stacked(arrays, rebuild, value.slots)


def _slice(eqn: Any, stacked: _Stacked, part: Any, frame: Frame) -> Value:
    """One slice; as a plain array if that is as small as its factors."""
    weight = stacked.rebuild(part)
    settled = ask.settle(weight)
    if is_operator(settled) or not is_operator(weight):
        return Value(settled, stacked.slots)
    frame.record(eqn, [Value(weight, stacked.slots)], "product")
    return Value(settled)


@control("scan")
def _scan(eqn: Any, values: Values, frame: Frame) -> Values:
    params = eqn.params
    constants, carried = _compat.scan_counts(eqn, _data(values))
    consts, rest = values[:constants], values[constants:]
    xs = [_stacked(eqn, value, frame) for value in rest[carried:]]

    def attempt(where: frozenset[int], slots: Slots) -> Values:
        carry = _formed_at(eqn, rest[:carried], where, _CARRY, frame)

        def run(data: list[Any], x: Any) -> tuple[list[Any], list[Any]]:
            parts, step = x
            own = [
                _slice(eqn, s, part, frame) for s, part in zip(xs, parts, strict=True)
            ]
            inside = _at_step([*consts, *_values(data, slots), *own], step)
            results = evaluate(params["jaxpr"], inside, frame)
            out = _data(_formed_at(eqn, results[:carried], where, _CARRY, frame))
            _check(data, out)
            _same_leaves(data, slots, results[:carried])
            note = "it leaves the loop as a stack"
            return out, _data(frame.form(eqn, results[carried:], note))

        options = {name: params[name] for name in ("length", "reverse", "unroll")}
        random = any(is_operator(v.data) and v.data.stochastic for v in values)
        steps = jnp.arange(params["length"]) if random else None
        inputs = ([s.arrays for s in xs], steps)
        with frame.repeated(params["length"]):
            last, ys = lax.scan(run, _data(carry), inputs, **options)
        return _values([*last, *ys], [*slots, *[NO_SLOTS] * len(ys)])

    return _until_closed(attempt, _slots(rest[:carried]))


@control("while")
def _while(eqn: Any, values: Values, frame: Frame) -> Values:
    params = eqn.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    cond_consts, body_consts, init = values[:n], values[n : n + m], values[n + m :]

    def attempt(where: frozenset[int], slots: Slots) -> Values:
        carry = _formed_at(eqn, init, where, _CARRY, frame)

        def inside(consts: Values, state: tuple[list[Any], Any]) -> Values:
            return _at_step([*consts, *_values(state[0], slots)], state[1])

        def go_on(state: tuple[list[Any], Any]) -> Any:
            own = inside(cond_consts, state)
            return evaluate(params["cond_jaxpr"], own, frame)[0].data

        def run(state: tuple[list[Any], Any]) -> tuple[list[Any], Any]:
            results = evaluate(params["body_jaxpr"], inside(body_consts, state), frame)
            out = _data(_formed_at(eqn, results, where, _CARRY, frame))
            _check(state[0], out)
            _same_leaves(state[0], slots, results)
            return out, state[1] + 1

        last, _ = lax.while_loop(go_on, run, (_data(carry), jnp.int32(0)))
        return _values(last, slots)

    return _until_closed(attempt, _slots(init))


@control("shard_map")
def _shard_map(eqn: Any, values: Values, frame: Frame) -> Values:
    """The factors are split as the axes of the weight that they hold."""
    params = eqn.params
    pairs = list(zip(values, params["in_specs"], strict=True))
    specs = [v.data.partition(s) if is_operator(v.data) else s for v, s in pairs]
    declined = frozenset(i for i, spec in enumerate(specs) if spec is NotImplemented)
    values = _formed_at(eqn, values, declined, "its parts cannot be split", frame)
    specs = [
        s if i in declined else p
        for i, (p, (_, s)) in enumerate(zip(specs, pairs, strict=True))
    ]

    def run(*data: Any) -> tuple[Any, ...]:
        own = _values(data, _slots(values))
        results = evaluate(_compat.close(params["jaxpr"]), own, frame)
        return tuple(_data(frame.form(eqn, results, "it leaves a shard_map")))

    mapped = jax.shard_map(
        run,
        mesh=params["mesh"],
        in_specs=tuple(specs),
        out_specs=tuple(params["out_specs"]),
        check_vma=params["check_vma"],
        axis_names=params["newly_manual_axes"],
    )
    return [Value(x) for x in mapped(*_laid_out_as(specs, values, params["mesh"]))]


def _laid_out_as(specs: Sequence[Any], values: Values, mesh: Any) -> list[Any]:
    """Operands whose factors lie as their specs want them."""

    def move(x: Any, spec: Any) -> Any:
        return _compat.resharded(x, mesh, spec)

    return [
        jax.tree.map(move, v.data, spec) if is_operator(v.data) else v.data
        for v, spec in zip(values, specs, strict=True)
    ]
