"""What is remembered while a function is evaluated on operators."""

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax.numpy as jnp

from lowrank import _compat
from lowrank._base import Operator, is_operator

NO_SLOTS: frozenset[int] = frozenset()


class Value(NamedTuple):
    """An array or operator, and the leaves (by slot) that an operator came from.

    Paths travel here, beside the operators: in their tree definitions they would make
    every layer of a model a function of its own.
    """

    data: Any
    slots: frozenset[int] = NO_SLOTS


class Use(NamedTuple):
    """One equation that used a leaf.

    Attributes:
        slot: Which leaf.
        kind: `product`, `dense` (formed), `impossible` (has no dense form), `returned`.
        primitive: Name of the operation.
        source: `file.py:12` of the user's code.
        operator: Class of the operator that met the equation.
        note: Why it was formed, where there is more to say.
        flops: FLOPs of what was emitted, if counted.
        dense_flops: FLOPs of the same equation on plain arrays, if counted.
        where: Identity of the equation and of the calls around it.
    """

    slot: int
    kind: str
    primitive: str
    source: str
    operator: str
    note: str
    flops: int
    dense_flops: int
    where: tuple[int, ...]


@dataclasses.dataclass
class Session:
    """One call of a lifted function."""

    count_flops: bool = False
    jitted: dict[Any, Any] = dataclasses.field(default_factory=dict)


class Frame:
    """Uses of the leaves of one function body."""

    def __init__(self, session: Session, source: str = "") -> None:
        self.session = session
        self.source = source  # the line of the call, for equations that have none
        self.uses: dict[Use, None] = {}
        self.repeat = 1

    @contextmanager
    def repeated(self, times: int) -> Iterator[None]:
        """What is recorded inside happens `times` times."""
        self.repeat *= times
        try:
            yield
        finally:
            self.repeat //= times

    def line(self, eqn: Any) -> str:
        """`file.py:12` of the user's code, as near as it is known."""
        return _compat.source_line(eqn) or self.source

    def record(
        self,
        eqn: Any,
        values: Sequence[Value],
        kind: str,
        note: str = "",
        flops: tuple[int, int] = (0, 0),
    ) -> None:
        """Note that an equation used the operators among its operands."""
        name, source = eqn.primitive.name, self.line(eqn)
        for value in values:
            if is_operator(value.data):
                op = type(value.data).__name__
                for slot in sorted(value.slots):
                    own, plain = flops[0] * self.repeat, flops[1] * self.repeat
                    where = (id(eqn),)
                    use = Use(slot, kind, name, source, op, note, own, plain, where)
                    self.uses[use] = None

    def translate(self, eqn: Any, uses: Sequence[Use], values: Sequence[Value]) -> None:
        """Take over the uses of an inner function, whose slots are our operands."""
        for use in uses:
            for slot in sorted(values[use.slot].slots):
                new = use._replace(
                    slot=slot,
                    flops=use.flops * self.repeat,
                    dense_flops=use.dense_flops * self.repeat,
                    where=(id(eqn), *use.where),
                )
                self.uses[new] = None

    def form(self, eqn: Any, values: Sequence[Value], note: str = "") -> list[Value]:
        """Form the operators among some values, and record that it was done."""
        for value in values:
            if is_operator(value.data):
                kind = "dense" if value.data.has_dense else "impossible"
                self.record(eqn, [value], kind, note)
        return [Value(_formed(value.data)) for value in values]


def _formed(data: Any) -> Any:
    if not isinstance(data, Operator):
        return data
    # Without a dense form the call is refused at its end: the numbers do not matter.
    return data.dense() if data.has_dense else jnp.zeros(data.shape, data.dtype)
