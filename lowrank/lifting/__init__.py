"""Evaluate unmodified functions on operators."""

from lowrank.lifting._axes import trace_axes
from lowrank.lifting._explain import Explanation, explain
from lowrank.lifting._lift import lift
from lowrank.lifting._refusal import LiftError
from lowrank.lifting._routed import check_examples, routed

__all__ = [
    "Explanation",
    "LiftError",
    "check_examples",
    "explain",
    "lift",
    "routed",
    "trace_axes",
]
