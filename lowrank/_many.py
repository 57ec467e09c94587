"""Many adapters at once: stacked states, mapped axes, mapped functions."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _tree
from lowrank._base import Array, Path, PyTree, State, is_operator
from lowrank._combine import PADDING, packed, state_parts


def stack(states: Sequence[State]) -> State:
    """Put the states of many adapters side by side, for `vmap`.

    Args:
        states: States of one transform, for tasks, seeds or chips. Packed leaves (those
            with an `index`) may differ in length: the shorter are padded with indices
            that point nowhere and values of zero.

    Returns:
        One state whose arrays have a leading axis of `len(states)`.

    Raises:
        ValueError: If there is no state, or the states differ in structure or shape.

    Example:
        >>> tx, params = lrk.lora(2), {"w": jnp.ones((4, 3))}
        >>> states = [tx.init(jax.random.key(i), params) for i in range(5)]
        >>> lrk.stack(states).trainable["w"]["a"].shape
        (5, 4, 2)
    """
    states = list(states)
    if not states:
        raise ValueError("stack: expected at least one state, got none.")
    if len({jax.tree.structure(state) for state in states}) > 1:
        raise ValueError(
            "stack: the states differ in structure. Stack states of one transform over "
            "one tree of parameters."
        )
    longest = max((_lengths(state) for state in states), key=lambda x: sum(x.values()))
    for state in states:
        longest = {k: max(n, longest[k]) for k, n in _lengths(state).items()}
    padded = [_pad(state, longest) for state in states]
    flat = [jax.tree_util.tree_flatten_with_path(state)[0] for state in padded]
    bad = [
        f"'{_tree.join(pairs[0][0])}': {[tuple(x.shape) for _, x in pairs]}"
        for pairs in zip(*flat, strict=True)
        if len({tuple(x.shape) for _, x in pairs}) > 1
    ]
    if bad:
        raise ValueError(
            f"stack: shapes differ at {'; '.join(bad)}. Use equal ranks, "
            "or pass the states through lrk.pad_ranks."
        )
    return jax.tree.map(lambda *xs: jnp.stack(xs), *padded)


def _lengths(state: State) -> dict[tuple[int, Path], int]:
    """Packed length of each leaf that has an index."""
    return {
        (i, path): leaf["index"].shape[-1]
        for i, part in enumerate(state_parts(state.fixed))
        for path, leaf in part.items()
        if "index" in leaf
    }


def _edit_packed(state: State, edit: Any) -> State:
    """`edit((member, path), values, index) -> (values, index)` on packed leaves.

    The values are the arrays of a leaf with an entry or a row for each index, by name.
    """
    counter = iter(range(len(state_parts(state.fixed))))

    def walk(train: PyTree, fix: PyTree) -> tuple[PyTree, PyTree]:
        if isinstance(fix, tuple):
            pairs = [walk(t, f) for t, f in zip(train, fix, strict=True)]
            return tuple(t for t, _ in pairs), tuple(f for _, f in pairs)
        member = next(counter)
        train, fix = dict(train), dict(fix)
        for path, leaf in fix.items():
            if "index" in leaf:
                values = packed(train[path], leaf["index"])
                values, index = edit((member, path), values, leaf["index"])
                train[path] = {**train[path], **values}
                fix[path] = {**leaf, "index": index}
        return train, fix

    return State(*walk(state.trainable, state.fixed))


def _pad(state: State, lengths: dict[tuple[int, Path], int]) -> State:
    def edit(where: tuple[int, Path], values: Any, index: Array) -> tuple[Any, Array]:
        extra = [(0, 0)] * (index.ndim - 1) + [(0, lengths[where] - index.shape[-1])]

        def pad(x: Array, value: Any = 0) -> Array:
            wide = extra + [(0, 0)] * (x.ndim - index.ndim)
            # On the host: every length would compile a program of its own.
            host = np if _compat.is_concrete(x) else jnp
            return jnp.asarray(host.pad(x, wide, constant_values=value))

        return {n: pad(x) for n, x in values.items()}, pad(index, PADDING)

    return _edit_packed(state, edit)


def unstack(state: State) -> list[State]:
    """Take apart what `stack` put side by side.

    Args:
        state: A stacked state.

    Returns:
        The states, without the padding where the indices are concrete.

    Raises:
        ValueError: If the arrays do not share one leading axis.

    Example:
        >>> tx, params = lrk.lora(2), {"w": jnp.ones((4, 3))}
        >>> states = [tx.init(jax.random.key(i), params) for i in range(5)]
        >>> len(lrk.unstack(lrk.stack(states)))
        5
    """
    sizes = {x.shape[:1] for x in jax.tree.leaves(state)}
    if len(sizes) != 1 or sizes == {()}:
        raise ValueError(
            f"unstack: expected one leading axis on every array, got {sorted(sizes)}. "
            "Pass what lrk.stack returned."
        )

    def trim(where: Any, values: Any, index: Array) -> tuple[Any, Array]:
        del where
        if not _compat.is_concrete(index) or index.ndim != 1:
            return values, index
        keep = np.asarray(index) != PADDING
        if keep.all():
            return values, index
        return {n: x[keep] for n, x in values.items()}, index[keep]

    number = sizes.pop()[0]
    parts = [jax.tree.map(lambda x, i=i: x[i], state) for i in range(number)]
    return [_edit_packed(part, trim) for part in parts]


def in_axes(adapted: PyTree) -> PyTree:
    """Axes for `vmap` over adapters that share a base.

    Args:
        adapted: A tree whose operators hold many adapters along a leading axis.

    Returns:
        A tree of the same structure: None at base arrays, 0 at what the adapters own.

    Example:
        >>> op = lrk.LowRank(jnp.ones((4, 3)), jnp.ones((4, 2)), jnp.ones((2, 3)))
        >>> axes = lrk.in_axes({"w": op, "bias": jnp.ones(3)})
        >>> axes["w"].w, axes["w"].a, axes["bias"]
        (None, 0, None)
    """

    def axes(leaf: Any) -> Any:
        if not is_operator(leaf):
            return None
        own = {n: getattr(leaf, n) for n in leaf.fields}
        shared = {n: axes(v) for n, v in own.items() if n in leaf.base_fields}
        mapped = {n: jax.tree.map(lambda _: 0, v) for n, v in own.items()}
        return leaf.replace(**(mapped | shared))

    return _tree.map_operators("in_axes", adapted, lambda _, leaf: axes(leaf))


_METHODS = ("auto", "vmap", "map")


def map_tasks(
    f: Callable[..., PyTree], *, method: str = "auto", in_axes: Any = 0
) -> Callable[..., PyTree]:
    """Run a function for many tasks, seeds or chips at once.

    `vmap` keeps the product with a shared base unbatched (one large product); `map`
    runs the tasks one after another in one compiled loop, whose working set is that of
    one task. On a CPU the loop is faster and smaller, on an accelerator the batch is.

    Args:
        f: A function of arrays and pytrees of arrays.
        method: `vmap`, `map`, or `auto`: `map` on a CPU backend, else `vmap`.
        in_axes: One entry for each argument: 0 if its leaves have a leading task axis,
            None if it is shared. A single entry serves all arguments.

    Returns:
        A function of the same arguments whose outputs have a leading task axis.

    Raises:
        ValueError: If the method is unknown or `in_axes` is not made of 0 and None.

    Example:
        >>> total = lrk.map_tasks(lambda a, w: (a @ w).sum(), in_axes=(0, None))
        >>> total(jnp.ones((3, 2, 4)), jnp.ones((4, 5))).shape
        (3,)
    """
    if method not in _METHODS:
        raise ValueError(
            f"map_tasks: unknown method {method!r}. Use one of {_METHODS}."
        )
    axes = in_axes if isinstance(in_axes, tuple) else None
    if any(axis not in (0, None) for axis in (axes or (in_axes,))):
        raise ValueError(
            f"map_tasks: in_axes must hold 0 or None for each argument, "
            f"got {in_axes!r}."
        )

    def mapped(*args: PyTree) -> PyTree:
        each = axes or (in_axes,) * len(args)
        if len(each) != len(args):
            raise ValueError(
                f"map_tasks: in_axes has {len(each)} entries for {len(args)} arguments."
            )
        if all(axis is None for axis in each):
            raise ValueError("map_tasks: no argument has a task axis. Set in_axes.")
        cpu = jax.default_backend() == "cpu"
        if method == "vmap" or (method == "auto" and not cpu):
            return jax.vmap(f, in_axes=each)(*args)

        def one(own: list[PyTree]) -> PyTree:
            rest = iter(own)
            return f(
                *(
                    a if x is None else next(rest)
                    for a, x in zip(args, each, strict=True)
                )
            )

        return jax.lax.map(
            one, [a for a, x in zip(args, each, strict=True) if x is not None]
        )

    return mapped
