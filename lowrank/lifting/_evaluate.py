"""Evaluate a jaxpr on arrays and operators, equation by equation."""

from collections.abc import Sequence
from typing import Any

import jax

from lowrank import _compat
from lowrank._base import is_operator
from lowrank.lifting._flops import count_equation, count_flops
from lowrank.lifting._frame import NO_SLOTS, Frame, Value
from lowrank.lifting._rules import CONTROL, RULES

_NOTES = {
    "custom_jvp_call": "its custom derivative takes the weight",
    "custom_vjp_call": "its custom derivative takes the weight",
}


def evaluate(closed: Any, values: Sequence[Value], frame: Frame) -> list[Value]:
    """Evaluate a closed jaxpr.

    Args:
        closed: The jaxpr, staged on plain arrays of the operators' shapes.
        values: One for each of its arguments.
        frame: Where uses are recorded.

    Returns:
        One value for each of its results; operators stay operators.
    """
    jaxpr = _compat.body(closed)
    constants = [Value(c) for c in _compat.constants(closed)]
    env = dict(zip(_compat.binders(closed), [*constants, *values], strict=True))

    def read(var: Any) -> Value:
        return Value(var.val) if _compat.is_literal(var) else env[var]

    last, live = _last_uses(jaxpr), _compat.live(jaxpr)
    for site, eqn in enumerate(jaxpr.eqns):
        if site not in live:
            continue
        with _compat.context(eqn):
            results = _step(eqn, site, [read(v) for v in eqn.invars], frame)
        env |= zip(eqn.outvars, results, strict=True)
        for var in last.get(site, ()):
            env.pop(var, None)
    return [read(var) for var in jaxpr.outvars]


def _last_uses(jaxpr: Any) -> dict[int, list[Any]]:
    """For each equation the variables that are not read after it."""
    kept = {v for v in jaxpr.outvars if not _compat.is_literal(v)}
    last: dict[Any, int] = {}
    for site, eqn in enumerate(jaxpr.eqns):
        last |= {v: site for v in eqn.outvars if v not in kept}
        last |= {
            v: site for v in eqn.invars if not _compat.is_literal(v) and v not in kept
        }
    by_site: dict[int, list[Any]] = {}
    for var, site in last.items():
        by_site.setdefault(site, []).append(var)
    return by_site


def _step(eqn: Any, site: int, values: list[Value], frame: Frame) -> list[Value]:
    """One equation: bound as it is, or by the rule for its primitive."""
    if not any(is_operator(v.data) for v in values):
        return [Value(out) for out in _compat.bind(eqn, [v.data for v in values])]
    values = [_placed(value, site) for value in values]
    name = eqn.primitive.name
    if name in CONTROL:
        return CONTROL[name](eqn, values, frame)
    data = [value.data for value in values]
    answer = RULES[name](*data, **eqn.params) if name in RULES else NotImplemented
    if answer is NotImplemented:
        formed = frame.form(eqn, values, _NOTES.get(name, ""))
        return [Value(out) for out in _compat.bind(eqn, [v.data for v in formed])]
    results = [_settled(x) for x in (answer if isinstance(answer, list) else [answer])]
    if not all(map(is_operator, results)):
        counted = frame.session.count_flops
        flops = _flops(eqn, data) if counted else (0, 0)
        frame.record(eqn, values, "product", flops=flops)
    slots = NO_SLOTS.union(*(value.slots for value in values))
    return [Value(x, slots if is_operator(x) else NO_SLOTS) for x in results]


def _placed(value: Value, site: int) -> Value:
    """A random operator gets a key of its own for each equation."""
    if is_operator(value.data) and value.data.stochastic:
        return value._replace(data=value.data.at(site))
    return value


def _settled(x: Any) -> Any:
    return x.settle() if is_operator(x) else x


def _flops(eqn: Any, data: list[Any]) -> tuple[int, int]:
    """FLOPs of what a rule emits, and of the equation on plain arrays."""

    def emitted(operands: list[Any]) -> Any:
        return RULES[eqn.primitive.name](*operands, **eqn.params)

    return count_flops(jax.make_jaxpr(emitted)(data)), count_equation(eqn)
