"""Numbers to reach, and whether they are."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.record import Record
from benchmarks.report import Table


class Goal(NamedTuple):
    """A number to reach.

    Attributes:
        text: What is to be reached.
        limit: The largest value that meets it.
        value: What was measured, with its interval where there is one; None: not run.
        source: The record.
        within: Whether an interval that reaches the limit meets it too.
    """

    text: str
    limit: float
    value: Any
    source: Record | None
    within: bool = False

    def verdict(self) -> str | None:
        """Returns `met` or `not met`, and whether the interval leaves it open."""
        if self.value is None:
            return None
        value = self.value
        middle, low, high = value if isinstance(value, tuple) else (value,) * 3
        word = "met" if middle <= self.limit else "not met"
        open_ = low <= self.limit < high
        if self.within and open_:
            return "met" if word == "met" else "met within its interval"
        return f"{word}, but the interval spans the limit" if open_ else word


def goal_table(
    found: Sequence[Goal], note: str, digits: Mapping[str, int] | None = None
) -> Table:
    """Lists what is to be reached, what was measured, and the verdict."""
    return Table(
        ["lowrank's ...", "at most", "measured", "verdict"],
        [[goal.text, goal.limit, goal.value, goal.verdict()] for goal in found],
        caption="What is to be reached, and whether it is.",
        notes=[note],
        align="lrll",
        digits=dict(digits or {}),
        sources=[goal.source for goal in found],
    )
