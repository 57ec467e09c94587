"""The registry of rules: one for each primitive that an operator can meet."""

from collections.abc import Callable
from typing import Any

Rule = Callable[..., Any]

RULES: dict[str, Rule] = {}
CONTROL: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register `rule(*operands, **params)`, which answers or declines."""

    def register(fn: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, fn))
        return fn

    return register


def control(*names: str) -> Callable[[Rule], Rule]:
    """Register `rule(eqn, values, frame)` for a primitive that holds functions."""

    def register(fn: Rule) -> Rule:
        CONTROL.update(dict.fromkeys(names, fn))
        return fn

    return register
