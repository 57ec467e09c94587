"""What a lifted call does with every adapted leaf, and what that costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

from lowrank import _show, _tree
from lowrank._base import Path, PyTree
from lowrank.lifting._frame import Session, Use
from lowrank.lifting._lift import Evaluated, evaluated
from lowrank.lifting._plan import Plan, check_plan, plan_of


class ExplainedLeaf(NamedTuple):
    """One adapted leaf of a lifted call.

    Attributes:
        path: Where it is.
        shape: Shape of the weight.
        operator: Class of the operator.
        operations: Names of the operations that used it, with source lines.
        axes: Which axes each factor holds, where it has factors.
        plan: How it is multiplied; `formed` where an operation forms the weight.
        flops: FLOPs of its products in one call, forward only; loops counted, `while`
            loops once.
        dense_flops: The same with a plain array in its place.
        parameters: Numbers that the operator adds to its base.
        nbytes: Their bytes.
    """

    path: Path
    shape: tuple[int, ...]
    operator: str
    operations: tuple[str, ...]
    axes: str
    plan: str
    flops: int
    dense_flops: int
    parameters: int
    nbytes: int


class Explanation(NamedTuple):
    """A table of adapted leaves; prints as text and as HTML.

    Attributes:
        leaves: One entry for each operator, in the order of the tree.
    """

    leaves: tuple[ExplainedLeaf, ...]

    def _table(self) -> tuple[str, list[str], list[list[str]], str]:
        head = ["path", "shape", "operator", "operations", "axes", "plan"]
        head += ["flops", "of dense", "parameters", "size"]
        body = [_cells(leaf) for leaf in self.leaves]
        flops = sum(leaf.flops for leaf in self.leaves)
        numbers = sum(leaf.parameters for leaf in self.leaves)
        size = _show.bytes_text(sum(leaf.nbytes for leaf in self.leaves))
        foot = (
            f"{len(body)} leaves: {flops:,} flops forward, {numbers:,} numbers ({size})"
        )
        return "Explanation", head, body, foot

    def __repr__(self) -> str:
        """One line per leaf, with totals."""
        return _show.grid_text(*self._table())

    def _repr_html_(self) -> str:
        return _show.grid_html(*self._table())


def _cells(leaf: ExplainedLeaf) -> list[str]:
    ratio = f"{leaf.flops / leaf.dense_flops:.2f}" if leaf.dense_flops else "-"
    shape = "x".join(map(str, leaf.shape))
    operations = ", ".join(leaf.operations)
    numbers = [f"{leaf.flops:,}", ratio, f"{leaf.parameters:,}"]
    first = [leaf.path, shape, leaf.operator, operations, leaf.axes, leaf.plan]
    return [*first, *numbers, _show.bytes_text(leaf.nbytes)]


def explain(
    fn: Callable[..., PyTree],
    adapted: PyTree,
    *args: Any,
    plan: Plan | None = None,
    **kwargs: Any,
) -> Explanation:
    """Show what `lift(fn)(adapted, *args)` does with every operator.

    The call is evaluated abstractly: nothing is computed. Operations that would form a
    weight are reported, not refused.

    Args:
        fn: The function, not lifted.
        adapted: Its first argument: a tree that holds operators.
        *args: Further arguments.
        plan: As for `lift`.
        **kwargs: Keyword arguments.

    Returns:
        A table with one row for each operator: operations with source lines, axes,
        plan, FLOPs beside those of a dense weight, and numbers added.

    Raises:
        ValueError: If no argument holds an operator.

    Example:
        >>> op = lrk.LowRank(jnp.zeros((4, 3)), jnp.ones((4, 1)), jnp.ones((1, 3)))
        >>> def fn(p, x):
        ...     return x @ p["w"]
        >>> table = lrk.explain(fn, {"w": op}, jnp.ones((5, 4)))
        >>> table.leaves[0].plan, table.leaves[0].flops, table.leaves[0].parameters
        ('factored', 190, 7)
    """
    check_plan(plan)
    seen: list[Evaluated | None] = []

    def run(adapted: PyTree, args: Any, kwargs: Any) -> None:
        session = Session(count_flops=True)
        seen.append(evaluated(fn, (adapted, *args), kwargs, session, plan))

    _tree.abstractly(run, adapted, args, kwargs)
    if seen[-1] is None:
        raise ValueError(
            "explain: no argument holds an operator. Apply a transform first."
        )
    return Explanation(tuple(_leaf(seen[-1], slot, plan) for slot in _slots(seen[-1])))


def _slots(call: Evaluated) -> range:
    return range(len(call.paths))


def _leaf(call: Evaluated, slot: int, plan: Plan | None) -> ExplainedLeaf:
    op, path = call.operators[slot], call.paths[slot]
    mine = [use for use in call.uses if use.slot == slot]
    own = [getattr(op, name) for name in op.fields if name not in op.base_fields]
    rows = _show.tree_rows(own)
    return ExplainedLeaf(
        path=path,
        shape=op.shape,
        operator=type(op).__name__,
        operations=tuple(dict.fromkeys(map(_operation, mine))) or ("unused",),
        axes=op.describe_axes(),
        plan=_plan(mine, plan_of(path, plan)),
        flops=sum(use.flops for use in mine),
        dense_flops=sum(use.dense_flops for use in mine),
        parameters=sum(row.count for row in rows if row.count != 1) or 0,
        nbytes=sum(row.nbytes for row in rows),
    )


def _operation(use: Use) -> str:
    return f"{use.primitive} ({use.source})" if use.source else use.primitive


def _plan(uses: list[Use], asked: str) -> str:
    kinds = {use.kind for use in uses}
    if kinds & {"dense", "impossible"}:
        return "formed"
    return "entry" if kinds == {"formed"} and asked == "factored" else asked
