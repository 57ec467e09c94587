"""Ways to run the product with a low-rank weight, chosen by path."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lowrank import _tree
from lowrank._adapted import split
from lowrank._base import Operator, Path, is_operator

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


def planned(
    paths: Sequence[Path], operators: Sequence[Operator], plan: Plan | None
) -> list[Any]:
    """The operators as their plans want them.

    Raises:
        ValueError: If a plan needs a dense form that an operator lacks, or would keep
            gradients from trained parts; all such leaves are named.
    """
    names = [plan_of(path, plan) for path in paths]
    forms = [_form(op, name) for op, name in zip(operators, names, strict=True)]
    bad = [
        f"'{path}' ({type(op).__name__}) cannot be {name}: {_reason(op)}"
        for path, op, name, form in zip(paths, operators, names, forms, strict=True)
        if form is NotImplemented
    ]
    if bad:
        raise ValueError(f"lift: {'; '.join(bad)}. Leave it factored.")
    return forms


def _form(op: Operator, name: str) -> Any:
    """One operator under a plan, or NotImplemented."""
    if name == "factored":
        return op
    if not op.has_dense:
        return NotImplemented
    return op.dense() if name == "dense" else op.premerge()


def _reason(op: Operator) -> str:
    """Why an operator has no other form than its own."""
    if not op.has_dense:
        return "it has no dense form"
    base, _ = split(op)
    if is_operator(base) and base.trained:
        kind = type(base).__name__
        return f"what {kind} holds may be trained, and would get no gradient"
    return f"{type(op).__name__} does not offer it"
