"""`lift`: run an unmodified function on trees that hold operators."""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import Path, PyTree, is_operator
from lowrank.lifting import _control_flow, _products, _structure
from lowrank.lifting._evaluate import evaluate
from lowrank.lifting._frame import Frame, Session, Use, Value
from lowrank.lifting._plan import Plan, check_matches, check_plan, planned
from lowrank.lifting._refusal import refuse, refuse_mismatch, refuse_unused
from lowrank.operators import _dispatch as ask

RULE_FILES = (_control_flow, _products, _structure)
_CHOICES = ("raise", "allow")


def lift(
    fn: Callable[..., PyTree],
    *,
    on_dense: str = "raise",
    on_unused: str = "raise",
    plan: Plan | None = None,
) -> Callable[..., PyTree]:
    """Run an unmodified function on parameters that hold operators.

    The function is staged to a jaxpr on abstract weights of the operators' shapes, then
    evaluated with a rule for each primitive that an operator can meet: a product
    multiplies by the factors, a transpose relabels them, a loop slices them. The
    function sees ordinary JAX tracing, so any function that `jax.jit` takes will do.

    Args:
        fn: A function of any arguments. Arrays are traced; Python numbers, strings,
            None and callables stay what they are. Operators may sit in any argument,
            but not in a closure.
        on_dense: `raise` refuses an operation that would form a weight; `allow` forms
            it there, and `explain` reports it.
        on_unused: `raise` refuses a function that ignores an operator; `allow` runs it.
        plan: How to multiply, by path: a mapping from regular expressions to `factored`
            (the default), `premerged` or `dense`; the first match counts.

    Returns:
        A function of the same arguments. It is staged at each call: wrap it, or what
        calls it, in `jax.jit`.

    Raises:
        ValueError: If a choice is unknown.
        LiftError: When called, if a weight cannot stay factored, an operator's parts do
            not fit, or an operator is ignored. All offending leaves are named.

    Example:
        >>> params = {"kernel": jnp.ones((4, 3))}
        >>> tx = lrk.lora(2)
        >>> adapted = tx.apply(params, tx.init(jax.random.key(0), params))
        >>> def fn(p, x):
        ...     return jnp.tanh(x @ p["kernel"])
        >>> lrk.lift(fn)(adapted, jnp.ones((5, 4))).shape
        (5, 3)
    """
    for name, value in (("on_dense", on_dense), ("on_unused", on_unused)):
        if value not in _CHOICES:
            raise ValueError(f"lift: {name} must be one of {_CHOICES}, got {value!r}.")
    check_plan(plan)

    @functools.wraps(fn)
    def lifted(*args: PyTree, **kwargs: PyTree) -> PyTree:
        run = evaluated(fn, args, kwargs, Session(), plan)
        if run is None:
            return fn(*args, **kwargs)
        bad = ("impossible",) if on_dense == "allow" else ("impossible", "dense")
        if offending := [use for use in run.uses if use.kind in bad]:
            refuse(offending, run.paths)
        if on_unused == "raise":
            used = {use.slot for use in run.uses}
            if unused := [p for i, p in enumerate(run.paths) if i not in used]:
                refuse_unused(unused)
        return run.result

    return lifted


class Evaluated(NamedTuple):
    """A call of a function on operators: its result, and what became of each leaf."""

    result: PyTree
    paths: list[Path]
    operators: list[Any]
    uses: list[Use]


def evaluated(
    fn: Callable[..., PyTree],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    session: Session,
    plan: Plan | None = None,
) -> Evaluated | None:
    """Stage and evaluate one call; None if no argument holds an operator."""
    flat, treedef = jax.tree_util.tree_flatten_with_path((args, kwargs), is_operator)
    leaves = [_on_device(leaf) for _, leaf in flat]
    where = [i for i, leaf in enumerate(leaves) if is_operator(leaf)]
    if not where:
        return None
    paths = _paths([keypath for keypath, _ in flat], where)
    operators = [leaves[i] for i in where]
    _check(paths, operators)
    check_matches(plan, paths)
    weights = planned(paths, operators, plan)
    closed, dynamic, rebuild = _stage(fn, leaves, treedef)
    frame, values = Frame(session), []
    slot_of = {i: slot for slot, i in enumerate(where)}
    for i in dynamic:
        if i in slot_of:
            slot = slot_of[i]
            values.append(Value(ask.settle(weights[slot]), frozenset([slot])))
        else:
            values.append(Value(leaves[i]))
    results = evaluate(closed, [_plain(v) for v in values], frame)
    uses = [*frame.uses, *_settled_uses(closed, values)]
    uses += [_returned(slot) for r in results for slot in sorted(r.slots)]
    return Evaluated(rebuild([r.data for r in results]), paths, operators, uses)


def _paths(keypaths: list[Any], where: list[int]) -> list[Path]:
    """Paths of some leaves within their argument, or with it if there are several."""
    chosen = [keys for i, keys in enumerate(_tree.unwrapped(keypaths)) if i in where]
    several = len({keys[:2] for keys in chosen}) > 1
    return [
        _tree.join(keys[1:] if several else keys[2:] or keys[1:]) for keys in chosen
    ]


def _check(paths: Sequence[Path], operators: Sequence[Any]) -> None:
    reasons = [
        f"'{path}': {reason}"
        for path, op in zip(paths, operators, strict=True)
        if (reason := op.mismatch()) is not None
    ]
    if reasons:
        refuse_mismatch(reasons)


def _plain(value: Value) -> Value:
    return value if is_operator(value.data) else Value(value.data)


def _settled_uses(closed: Any, values: Sequence[Value]) -> list[Use]:
    """Uses of the leaves that became plain arrays before the first equation."""
    inputs = _compat.binders(closed)[-len(values) :] if values else []
    read = {
        slot
        for var, value in zip(inputs, values, strict=True)
        if value.slots and not is_operator(value.data) and _reads(closed, var)
        for slot in value.slots
    }
    return [Use(slot, "formed", "entry", "", "array", "", 0, 0, ()) for slot in read]


def _reads(closed: Any, var: Any) -> bool:
    """Whether a variable is read: passing it to a function that ignores it is not."""
    jaxpr = _compat.body(closed)
    if any(var is out for out in jaxpr.outvars):
        return True
    live = _compat.live(jaxpr)
    for eqn in (eqn for site, eqn in enumerate(jaxpr.eqns) if site in live):
        at = [i for i, other in enumerate(eqn.invars) if other is var]
        inner = (
            eqn.params.get("jaxpr") if eqn.primitive.name in ("jit", "pjit") else None
        )
        if at and inner is None:
            return True
        if inner is not None:
            own = _compat.binders(inner)[-len(eqn.invars) :]
            if any(_reads(inner, own[i]) for i in at):
                return True
    return False


def _returned(slot: int) -> Use:
    return Use(slot, "returned", "return", "", "operator", "", 0, 0, ())


def _is_dynamic(leaf: Any) -> bool:
    """Whether a leaf is traced: arrays and operators are, Python values are not."""
    numpy = isinstance(leaf, (np.ndarray, np.generic))
    return is_operator(leaf) or isinstance(leaf, jax.Array) or numpy


def _stage(
    fn: Callable[..., PyTree], leaves: list[Any], treedef: Any
) -> tuple[Any, list[int], Callable[[list[Any]], PyTree]]:
    """The jaxpr of a call on abstract weights, its traced leaves, its output tree."""
    dynamic = [i for i, leaf in enumerate(leaves) if _is_dynamic(leaf)]
    output: dict[str, Any] = {}

    def flat(*arrays: Any) -> list[Any]:
        own = list(leaves)
        for i, array in zip(dynamic, arrays, strict=True):
            own[i] = array
        args, kwargs = jax.tree.unflatten(treedef, own)
        out, output["tree"] = jax.tree.flatten(fn(*args, **kwargs))
        output["traced"] = [i for i, leaf in enumerate(out) if _is_dynamic(leaf)]
        output["leaves"] = [None if _is_dynamic(leaf) else leaf for leaf in out]
        return [out[i] for i in output["traced"]]

    avals = [_aval(leaves[i]) for i in dynamic]
    closed = jax.make_jaxpr(flat)(*avals)

    def rebuild(results: list[Any]) -> PyTree:
        out = list(output["leaves"])
        for i, result in zip(output["traced"], results, strict=True):
            out[i] = result
        return jax.tree.unflatten(output["tree"], out)

    return closed, dynamic, rebuild


def _on_device(leaf: Any) -> Any:
    """NumPy arrays as JAX arrays, those inside operators too."""
    if is_operator(leaf):
        return jax.tree.map(_on_device, leaf)
    if isinstance(leaf, (np.ndarray, np.generic)):
        return jnp.asarray(leaf)
    return leaf


def _aval(leaf: Any) -> Any:
    return leaf.aval if is_operator(leaf) else _compat.abstract(leaf)
