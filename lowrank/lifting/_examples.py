"""Follow the axis of the examples through a jaxpr."""

import functools
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax

from lowrank import _compat
from lowrank.lifting._example_rules import RULES, spans


class At(NamedTuple):
    """The examples lie along an axis of size `outer * examples * inner`."""

    axis: int
    outer: int = 1
    inner: int = 1


class Free(NamedTuple):
    """No example is in it, and along these axes all entries are known to be equal."""

    equal: frozenset[int]


class Mixed(NamedTuple):
    """One example's part depends on other examples, since this operation."""

    why: str


State = At | Free | Mixed
_PLACE = "it treats examples by their place in the batch"
_ALONG = "it works along the axis of the examples"
_TOGETHER = "it brings examples together with each other"
_UNKNOWN = "it is not known to keep examples apart"


class _Mixes(Exception):
    """An operation does not keep examples apart."""


def free(shape: Sequence[int], *equal: int) -> Free:
    """An array without examples; axes of size 1 are equal along themselves."""
    return Free(frozenset([*equal, *(d for d, n in enumerate(shape) if n == 1)]))


def walk(closed: Any, states: Sequence[State], number: int, line: str) -> list[Any]:
    """Follow the examples through a closed jaxpr."""
    jaxpr = _compat.body(closed)
    consts = [free(jax.numpy.shape(c)) for c in _compat.constants(closed)]
    env = dict(zip(_compat.binders(closed), [*consts, *states], strict=True))

    def read(var: Any) -> State:
        if _compat.is_literal(var):
            return free(jax.numpy.shape(var.val))
        return env[var]

    for site in sorted(_compat.live(jaxpr)):
        eqn = jaxpr.eqns[site]
        own, here = [read(v) for v in eqn.invars], _compat.source_line(eqn) or line
        env |= zip(eqn.outvars, _step(eqn, own, number, here), strict=True)
    return [read(var) for var in jaxpr.outvars]


def _step(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    """What one equation makes of its operands."""
    name = eqn.primitive.name
    if name in _HOLDERS:
        return _HOLDERS[name](eqn, states, number, line)
    for state in states:
        if isinstance(state, Mixed):
            return [state] * len(eqn.outvars)
    try:
        if name == "reshape":
            return [_reshaped(eqn, states[0], number)]
        if name in RULES:
            return [_combined(eqn, states)] * len(eqn.outvars)
        if any(isinstance(state, At) for state in states):
            raise _Mixes(_UNKNOWN)
    except _Mixes as mixes:
        why = Mixed(f"{name} ({line}): {mixes}" if line else f"{name}: {mixes}")
        return [why] * len(eqn.outvars)
    shapes = [v.aval.shape for v in eqn.outvars]
    if name == "iota":
        dimension = eqn.params["dimension"]
        others = set(range(len(shapes[0]))) - {dimension}
        return [free(shapes[0], *others)]
    return [free(shape) for shape in shapes]


def _combined(eqn: Any, states: list[State]) -> State:
    """Where an operation with a rule leaves the examples.

    Raises:
        _Mixes: If it mixes them.
    """
    rule, found, differ = RULES[eqn.primitive.name], set(), set()
    for i, (var, state) in enumerate(zip(eqn.invars, states, strict=True)):
        if isinstance(state, At):
            way = rule(eqn, i, state.axis)
            if way.axis is None or not way.apart:
                raise _Mixes(_ALONG)
            found.add(state._replace(axis=way.axis))
        elif isinstance(state, Free):
            ways = [(d, rule(eqn, i, d)) for d in range(var.aval.ndim)]
            differ |= {w.axis for d, w in ways if d not in state.equal or not w.apart}
    if len(found) > 1:
        raise _Mixes(_TOGETHER)
    if any(state.axis in differ for state in found):
        raise _Mixes(_PLACE)
    if found:
        return found.pop()
    shape = eqn.outvars[0].aval.shape
    return free(shape, *(set(range(len(shape))) - differ))


def _reshaped(eqn: Any, state: Any, number: int) -> State:
    """The axis that holds the examples after a reshape.

    Raises:
        _Mixes: If they are split over several axes.
    """
    before, after = (spans(v.aval.shape) for v in (eqn.invars[0], eqn.outvars[0]))
    if isinstance(state, At):
        step = before[state.axis][0] * state.inner
        for d, (low, high) in enumerate(after):
            inside = low <= step and step * number <= high
            if inside and step % low == 0 and high % (step * number) == 0:
                return At(d, high // (step * number), step // low)
        raise _Mixes("it splits the axis of the examples")
    unequal = [span for d, span in enumerate(before) if d not in state.equal]
    met = [any(max(a, low) < min(b, high) for a, b in unequal) for low, high in after]
    return free(eqn.outvars[0].aval.shape, *(d for d, own in enumerate(met) if not own))


def _joined(one: State, two: State) -> State:
    """What is true of both, where a loop or a branch may give either."""
    for state in (one, two):
        if isinstance(state, Mixed):
            return state
    if isinstance(one, Free) and isinstance(two, Free):
        return Free(one.equal & two.equal)
    for at, other in ((one, two), (two, one)):
        alike = (
            isinstance(other, Free) and isinstance(at, At) and at.axis in other.equal
        )
        if alike or at == other:
            return at
    return Mixed(_PLACE)


def _inner(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    """A function that is called once."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr")
    closed = next(eqn.params[n] for n in names if n in eqn.params)
    return walk(_compat.close(closed), states, number, line)


def _through(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    """Operands that come back as they are."""
    del eqn, number, line
    return states


def _cond(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    index, *operands = states
    if isinstance(index, Mixed):
        return [index] * len(eqn.outvars)
    found = [walk(b, operands, number, line) for b in eqn.params["branches"]]
    return [functools.reduce(_joined, each) for each in zip(*found, strict=True)]


def _scan(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    constants, carried = _compat.scan_counts(eqn, states)
    consts, rest = states[:constants], states[constants:]
    carry = rest[:carried]
    along = f"scan ({line}): it goes from one example to the next"
    xs = [_sliced(state, along) for state in rest[carried:]]
    while True:
        out = walk(eqn.params["jaxpr"], [*consts, *carry, *xs], number, line)
        joined = list(map(_joined, carry, out[:carried]))
        if joined == carry:
            break
        carry = joined
    ys = [_moved(s) for s in out[carried:]]
    return [*carry, *ys]


def _sliced(state: State, along: str) -> State:
    """A slice of the first axis."""
    if isinstance(state, At):
        return state._replace(axis=state.axis - 1) if state.axis else Mixed(along)
    if isinstance(state, Free):
        return Free(frozenset(d - 1 for d in state.equal if d))
    return state


def _moved(state: State) -> State:
    """Slices put together along a new first axis."""
    if isinstance(state, At):
        return state._replace(axis=state.axis + 1)
    if isinstance(state, Free):
        return Free(frozenset(d + 1 for d in state.equal))
    return state


def _while(eqn: Any, states: list[State], number: int, line: str) -> list[State]:
    params = eqn.params
    n, m = params["cond_nconsts"], params["body_nconsts"]
    cond, body, carry = states[:n], states[n : n + m], states[n + m :]
    while True:
        test = walk(params["cond_jaxpr"], [*cond, *carry], number, line)[0]
        if isinstance(test, Mixed):
            return [test] * len(carry)
        out = walk(params["body_jaxpr"], [*body, *carry], number, line)
        joined = list(map(_joined, carry, out))
        if joined == carry:
            return carry
        carry = joined


_HOLDERS: dict[str, Callable[..., list[State]]] = {
    "optimization_barrier": _through,
    "device_put": _through,
    "cond": _cond,
    "scan": _scan,
    "while": _while,
} | dict.fromkeys(
    "jit pjit closed_call core_call remat remat2 checkpoint custom_jvp_call "
    "custom_vjp_call custom_vjp_call_jaxpr".split(),
    _inner,
)

# Where axes of size 1 may be left out or put in, and the calls around other programs.
_LAYOUT = frozenset(
    "broadcast_in_dim reshape squeeze expand_dims transpose concatenate iota slice "
    "convert_element_type copy".split()
) | frozenset(_HOLDERS)


def arithmetic(closed: Any) -> Counter[str]:
    """How often each operation stands in a program, with the scalars that it takes."""
    found: Counter[str] = Counter()
    jaxpr = _compat.body(closed)
    for site in _compat.live(jaxpr):
        eqn = jaxpr.eqns[site]
        name = eqn.primitive.name
        if name not in _LAYOUT:
            literals = [v.val for v in eqn.invars if _compat.is_literal(v)]
            scalars = [str(x) for x in literals if jax.numpy.ndim(x) == 0]
            found[" ".join([name, *scalars])] += 1
        for value in jax.tree.leaves(list(eqn.params.values()), is_leaf=_is_program):
            if _is_program(value):
                found += arithmetic(value)
    return found


def _is_program(value: Any) -> bool:
    return hasattr(value, "eqns") or hasattr(value, "jaxpr")
