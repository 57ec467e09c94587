"""Refuse models that mix examples, and run the others with an adapter for each."""

import functools
from collections.abc import Callable
from typing import Any

import jax

from lowrank._base import PyTree, is_array, is_operator
from lowrank._many import in_axes
from lowrank.lifting._examples import At, Free, Mixed, State, arithmetic, free, walk
from lowrank.lifting._lift import lift as lift_fn


def check_examples(fn: Callable[..., PyTree], params: PyTree, *batch: PyTree) -> None:
    """Refuse a function of a batch whose examples do not stay apart.

    Where the result for one example depends on the other examples, adapters cannot be
    mixed in a batch: batch norm in training, contrastive losses, sorting. The function
    is staged, and the axis of the examples is followed through it; nothing is computed.

    Args:
        fn: A function written for a batch, called as `fn(params, *batch)`.
        params: Its parameters; may hold operators.
        *batch: Arrays, or pytrees of them, with the examples in front.

    Raises:
        ValueError: If the arrays do not share a first axis, or an operation mixes the
            examples, or is not known to keep them apart; it is named with its source
            line. Also if the results do not have the examples in front, or a batch of
            one is computed in another way than a batch of several.

    Example:
        >>> params, x = {"w": jnp.ones((4, 3))}, jnp.ones((5, 4))
        >>> lrk.check_examples(lambda p, x: jnp.tanh(x @ p["w"]), params, x)
        >>> lrk.check_examples(lambda p, x: x - x.mean(0, keepdims=True), params, x)
        Traceback (most recent call last):
        ...
        ValueError: check_examples: the model mixes examples: reduce_sum ...

    Notes:
        What depends on an example's place in the batch, or draws random numbers for
        the batch as a whole, is refused as well. The check errs on the side of
        refusal: an index `arange(examples)` is refused, `jnp.take_along_axis` is not.
        What it cannot see is the backward rule of a `jax.custom_vjp`.
    """
    _check("check_examples", fn, params, batch)


def routed(
    fn: Callable[..., PyTree], *, lift: Callable[..., Any] = lift_fn
) -> Callable[..., PyTree]:
    """Run a model of a batch on a tree in which every example has its own adapter.

    The model is checked by `check_examples` and lifted. Then it sees one example at a
    time, as a batch of one, under `vmap`: the product with the base stays one product
    of all examples.

    Args:
        fn: A model written for a batch, called as `fn(params, *batch)`.
        lift: What lifts it, such as `functools.partial(lrk.lift, plan=...)`.

    Returns:
        A function of `(tree, *batch)`, with the tree of `route` and arrays with the
        examples in front; so are its results. It is staged at each call: wrap it, or
        what calls it, in `jax.jit`. It can be differentiated.

    Raises:
        ValueError: When called, as `check_examples`.
        LiftError: When called, as `lift`.

    Example:
        >>> params, tx = {"w": jnp.ones((4, 3))}, lrk.lora(2)
        >>> trees = [
        ...     tx.apply(params, tx.init(jax.random.key(i), params)) for i in range(2)
        ... ]
        >>> run = lrk.routed(lambda p, x: x @ p["w"])
        >>> run(lrk.route(trees, [1, 0, -1, 1]), jnp.ones((4, 5, 4))).shape
        (4, 5, 3)
    """
    lifted = lift(fn)

    @functools.wraps(fn)
    def run(tree: PyTree, *batch: PyTree) -> PyTree:
        _check("routed", fn, tree, batch)

        def one(tree: PyTree, *own: PyTree) -> PyTree:
            single = jax.tree.map(lambda x: x[None] if is_array(x) else x, own)
            return jax.tree.map(lambda x: x[0], lifted(tree, *single))

        axes = jax.tree.map(lambda x: 0 if is_array(x) else None, batch)
        return jax.vmap(one, in_axes=(in_axes(tree), *axes))(tree, *batch)

    return run


def _check(
    who: str, fn: Callable[..., PyTree], params: PyTree, batch: tuple[PyTree, ...]
) -> None:
    number = _number(who, batch)
    leaves, treedef = jax.tree.flatten((params, batch), is_operator)
    first = len(leaves) - len(jax.tree.leaves(batch))
    dynamic = [i for i, x in enumerate(leaves) if is_operator(x) or is_array(x)]

    def stage(examples: int) -> tuple[Any, list[str], list[State]]:
        """The function of so many examples, its results' paths, what is known."""
        avals, states, paths = [], [], []
        for i in dynamic:
            aval = leaves[i].aval if is_operator(leaves[i]) else leaves[i]
            if i >= first:
                aval = jax.ShapeDtypeStruct((examples, *aval.shape[1:]), aval.dtype)
            avals.append(aval)
            states.append(At(0) if i >= first else free(aval.shape))

        def flat(*arrays: Any) -> list[Any]:
            own = list(leaves)
            for i, array in zip(dynamic, arrays, strict=True):
                own[i] = array
            tree, args = jax.tree.unflatten(treedef, own)
            out = jax.tree_util.tree_flatten_with_path(fn(tree, *args))[0]
            paths.extend(jax.tree_util.keystr(path) for path, _ in out)
            return [leaf for _, leaf in out]

        return jax.make_jaxpr(flat)(*avals), paths, states

    # One example alone would hide what mixes several.
    staged = max(number, 2)
    closed, paths, states = stage(staged)
    results = walk(closed, states, staged, "")
    reasons = [
        reason
        for path, state, var in zip(paths, results, closed.out_avals, strict=True)
        if (reason := _reason(path, state, var.shape, staged)) is not None
    ]
    if reasons:
        raise ValueError(
            f"{who}: the model mixes examples: {'; '.join(dict.fromkeys(reasons))}. "
            "Use it as in inference (batch norm with running averages), write the "
            "operation for each example, or map a model of one example yourself, as "
            "lrk.route shows."
        )
    try:
        alone = stage(1)[0]
    except Exception as error:
        raise ValueError(
            f"{who}: the model cannot be staged on one example alone: {error}"
        ) from error
    if (change := _change(closed, alone)) is not None:
        raise ValueError(
            f"{who}: the model computes something else for one example alone than for "
            f"{staged}: {change}. Write it so that nothing depends on the number of "
            "examples."
        )


def _change(many: Any, alone: Any) -> str | None:
    """What differs between a program of many examples and that of one, if anything."""
    for aval, single in zip(many.out_avals, alone.out_avals, strict=True):
        if single.shape != (1, *aval.shape[1:]):
            return f"a result of shape {single.shape} beside {aval.shape}"
    one, other = arithmetic(alone), arithmetic(many)
    if one == other:
        return None
    return f"{sorted(one - other)} in the place of {sorted(other - one)}"


def _number(who: str, batch: tuple[PyTree, ...]) -> int:
    """How many examples there are.

    Raises:
        ValueError: If the arrays do not share a first axis.
    """
    sizes = {x.shape[:1] for x in jax.tree.leaves(batch) if is_array(x)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"{who}: expected arrays with one first axis of examples, got first axes "
            f"{sorted(sizes)}."
        )
    return sizes.pop()[0]


def _reason(path: str, state: State, shape: Any, number: int) -> str | None:
    """Why a result is none of examples one by one, if so."""
    if isinstance(state, Mixed):
        return state.why
    front = state == At(0)
    alike = isinstance(state, Free) and 0 in state.equal and shape[:1] == (number,)
    if front or alike:
        return None
    return f"result{path} of shape {list(shape)} has not the examples in front"
