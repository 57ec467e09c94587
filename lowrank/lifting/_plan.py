"""Ways to run the product with a low-rank weight, chosen by path."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank import _tree
from lowrank._base import Operator, Path

Plan = Mapping[str, str]
PLANS = ("factored", "premerged", "dense")


def check_plan(plan: Plan | None) -> None:
    """Refuse plans that do not exist.

    Raises:
        ValueError: If a value is no plan.
    """
    wrong = {k: v for k, v in (plan or {}).items() if v not in PLANS}
    if wrong:
        raise ValueError(f"lift: unknown plan {wrong}. Use one of {PLANS}.")


def check_matches(plan: Plan | None, paths: Sequence[Path]) -> None:
    """Refuse expressions that match no operator.

    Raises:
        ValueError: If there are any.
    """
    idle = [r for r in plan or {} if not any(re.search(r, path) for path in paths)]
    if idle:
        near = ", ".join(f"'{path}'" for path in _tree.nearest(idle, paths))
        raise ValueError(
            f"lift: the plan's {idle} match no operator; the nearest paths are {near}."
        )


def plan_of(path: Path, plan: Plan | None) -> str:
    """The plan of the first expression that matches a path."""
    for regex, name in (plan or {}).items():
        if re.search(regex, path):
            return name
    return "factored"


def planned(path: Path, op: Operator, plan: Plan | None) -> Any:
    """The operator as its plan wants it.

    Raises:
        ValueError: If the plan needs a dense form and there is none.
    """
    name = plan_of(path, plan)
    if name == "factored":
        return op
    if not op.has_dense:
        raise ValueError(
            f"lift: the plan {name!r} needs a dense form, which '{path}' "
            f"({type(op).__name__}) has not. Leave it factored."
        )
    if name == "dense":
        return op.dense()
    merged = op.premerge()
    if merged is NotImplemented:
        raise ValueError(
            f"lift: '{path}' ({type(op).__name__}) cannot be premerged. Leave it "
            "factored."
        )
    return merged
