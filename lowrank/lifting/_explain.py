"""What a lifted call does with every adapted leaf, and what that costs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax

from lowrank import _show, _tree
from lowrank._base import Path, PyTree, is_operator
from lowrank._combine import state_parts
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
        plan: How it is multiplied; `formed` where an operation forms the weight,
            `entry` where it is a plain array from the start, as no form is smaller.
        flops: FLOPs of its products in one call, forward only; loops counted, `while`
            loops once.
        dense_flops: The same with a plain array in its place.
        parameters: Numbers that the operator, and those nested in it, add to the
            innermost base, whether they are trained or not. Scales, keys and what
            follows from the weight (norms) are left out.
        trainable: How many of them are trained; None if `explain` was not told.
        nbytes: Bytes of all that they add, with what is left out of `parameters`.
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
    trainable: int | None
    nbytes: int


class Explanation(NamedTuple):
    """A table of adapted leaves; prints as text and as HTML.

    Attributes:
        leaves: One entry for each operator, in the order of the tree.
    """

    leaves: tuple[ExplainedLeaf, ...]

    def _table(self) -> tuple[str, list[str], list[list[str]], str]:
        head = ["path", "shape", "operator", "operations", "axes", "plan"]
        head += ["flops", "flops/dense", "parameters", "trainable", "size"]
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
    trained = "?" if leaf.trainable is None else f"{leaf.trainable:,}"
    numbers = [f"{leaf.flops:,}", ratio, f"{leaf.parameters:,}", trained]
    first = [leaf.path, shape, leaf.operator, operations, leaf.axes, leaf.plan]
    return [*first, *numbers, _show.bytes_text(leaf.nbytes)]


def explain(
    fn: Callable[..., PyTree],
    adapted: PyTree,
    *args: Any,
    plan: Plan | None = None,
    trainable: PyTree = None,
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
        trainable: `state.trainable` of the transform that made the tree, so that the
            table can say how many numbers are trained at each leaf.
        **kwargs: Keyword arguments.

    Returns:
        A table with one row for each operator: operations with source lines, axes that
        each factor holds, plan, FLOPs beside those of a dense weight, numbers added and
        trained.

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
    call, trained = seen[-1], None if trainable is None else _trained(trainable)
    slots = range(len(call.paths))
    return Explanation(tuple(_leaf(call, slot, plan, trained) for slot in slots))


def _trained(trainable: PyTree) -> dict[Path, int]:
    """Trained numbers by path."""
    counts: dict[Path, int] = {}
    for part in state_parts(trainable):
        for path, leaf in part.items():
            size = sum(x.size for x in jax.tree.leaves(leaf))
            counts[path] = counts.get(path, 0) + size
    return counts


def _leaf(
    call: Evaluated, slot: int, plan: Plan | None, trained: dict[Path, int] | None
) -> ExplainedLeaf:
    op, path = call.operators[slot], call.paths[slot]
    mine = [use for use in call.uses if use.slot == slot]
    parameters, nbytes = _added(op)
    return ExplainedLeaf(
        path=path,
        shape=op.shape,
        operator=type(op).__name__,
        operations=tuple(dict.fromkeys(map(_operation, mine))) or ("unused",),
        axes=op.describe_axes(),
        plan=_plan(mine, plan_of(path, plan)),
        flops=sum(use.flops for use in mine),
        dense_flops=sum(use.dense_flops for use in mine),
        parameters=parameters,
        trainable=None if trained is None else trained.get(path, 0),
        nbytes=nbytes,
    )


# What is no parameter: settings, and norms, which follow from the weight.
_UNCOUNTED = ("scale", "key", "rate", "norm")


def _added(weight: Any) -> tuple[int, int]:
    """Numbers and bytes that all operators in a weight add to the innermost base."""
    if not is_operator(weight):
        return 0, 0
    own = {n: getattr(weight, n) for n in weight.fields if n not in weight.base_fields}
    numbers = {n: v for n, v in own.items() if n not in _UNCOUNTED}
    below = [_added(getattr(weight, n)) for n in weight.base_fields]
    count = sum(row.count for row in _show.tree_rows(numbers))
    nbytes = sum(row.nbytes for row in _show.tree_rows(own))
    return count + sum(c for c, _ in below), nbytes + sum(n for _, n in below)


def _operation(use: Use) -> str:
    return f"{use.primitive} ({use.source})" if use.source else use.primitive


def _plan(uses: list[Use], asked: str) -> str:
    kinds = {use.kind for use in uses}
    if kinds & {"dense", "impossible"}:
        return "formed"
    return "entry" if kinds == {"formed"} and asked == "factored" else asked
