"""Private and shared parts of a state: taken apart by a predicate, put together."""

from collections.abc import Iterable, Mapping
from typing import Any

import jax

from lowrank import _tree
from lowrank._base import PyTree, State, as_struct
from lowrank._combine import state_parts
from lowrank._select import Select, check_select


def partition(state: PyTree, select: Select) -> tuple[PyTree, PyTree]:
    """Divide a state in two, such as what each task owns and what all tasks share.

    A leaf's path is that in the tree, with the name of the leaf at its end and, in a
    chain, the number of the member in front: `dense/kernel/mix`, `1/dense/kernel/b`.
    So `matching("/(task|mix)$")` selects by name, and `matching("^1/")` a member.

    Args:
        state: A `State`, or its `trainable` or `fixed` alone. Both halves of a `State`
            are divided by the same paths.
        select: Which leaves go to the first part, as `select(path, leaf)`.

    Returns:
        `(selected, rest)`: two trees of the same kind that hold each leaf once; both
        have all members and paths. `combine` puts them together.

    Raises:
        TypeError: If `select` cannot be called, or the state is no tree of dicts.
        ValueError: If it selects no leaf.

    Example:
        >>> tx = lrk.chain(lrk.lora(2), lrk.lori(2))
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> private, shared = lrk.partition(state, lrk.matching("^1/"))
        >>> private.trainable[1]["w"]["b"].shape, list(shared.trainable[0]["w"])
        ((2, 3), ['a', 'b'])
        >>> private.trainable[0], shared.fixed[1]
        ({'w': {}}, {'w': {}})

    References:
        Equinox's `partition` and `combine`, which leave None where a leaf has gone;
        here it is left out.
    """
    check_select("partition", select)
    halves = tuple(state) if isinstance(state, State) else (state,)
    _check_leaves(halves)
    flat = [jax.tree_util.tree_flatten_with_path(half) for half in halves]
    named = [[(_tree.join(keys), x) for keys, x in pairs] for pairs, _ in flat]
    flags = [[bool(select(path, as_struct(x))) for path, x in own] for own in named]
    if not any(map(any, flags)):
        paths = [path for own in named for path, _ in own]
        raise ValueError(
            f"partition: the selection matches none of {len(paths)} leaves; the first "
            f"are {_tree.quoted(paths[:8])}. A path ends in the leaf's name and, in a "
            "chain, starts with the number of the member."
        )

    def part(wanted: bool) -> Any:
        held = [
            jax.tree.unflatten(
                treedef,
                [
                    x if f is wanted else None
                    for (_, x), f in zip(own, mine, strict=True)
                ],
            )
            for own, mine, (_, treedef) in zip(named, flags, flat, strict=True)
        ]
        trees = [_without_none(tree) for tree in held]
        return State(*trees) if isinstance(state, State) else trees[0]

    return part(True), part(False)


def _check_leaves(halves: Iterable[Any]) -> None:
    """Refuse what is no dict by path, or tuple of them.

    Raises:
        TypeError: If there is anything else.
    """
    wrong = {
        type(part).__name__
        for half in halves
        for part in state_parts(half)
        if not isinstance(part, Mapping)
    }
    if wrong:
        raise TypeError(
            f"partition: expected dicts of arrays by path, got {', '.join(wrong)}. "
            "Pass a State, or one half of it."
        )


def _without_none(tree: Any) -> Any:
    """The tree without the entries of its dicts that are None."""
    if isinstance(tree, tuple):
        return tuple(map(_without_none, tree))
    if isinstance(tree, Mapping):
        return {k: _without_none(x) for k, x in tree.items() if x is not None}
    return tree


def combine(*parts: PyTree) -> PyTree:
    """Put the parts of a state together: the inverse of `partition`.

    Args:
        *parts: Trees of one kind that hold different leaves; stacked ones under `vmap`.

    Returns:
        One tree with all leaves.

    Raises:
        ValueError: If there is no part, a leaf is in two of them, or they are not of
            one kind; every such place is named.

    Example:
        >>> tx = lrk.mtl_lora(2, 3)
        >>> state = tx.init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> private, shared = lrk.partition(state, lrk.matching("/(task|mix)$"))
        >>> back = lrk.combine(private, shared)
        >>> jax.tree.structure(back) == jax.tree.structure(state)
        True
    """
    if not parts:
        raise ValueError("combine: expected at least one part, got none.")
    bad: list[str] = []
    whole = parts[0]
    for part in parts[1:]:
        whole = _merged(whole, part, "", bad)
    if bad:
        raise ValueError(
            f"combine: the parts do not fit: {'; '.join(bad)}. Pass what lrk.partition "
            "returned."
        )
    return whole


def _merged(one: Any, two: Any, path: str, bad: list[str]) -> Any:
    """The union of two trees of dicts; what does not fit is noted by path."""
    inner = f"{path}/" if path else ""
    if isinstance(one, tuple) and type(one) is type(two) and len(one) == len(two):
        names = getattr(one, "_fields", range(len(one)))
        items = [
            _merged(x, y, f"{inner}{name}", bad)
            for name, x, y in zip(names, one, two, strict=True)
        ]
        return type(one)(*items) if hasattr(one, "_fields") else tuple(items)
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        only = {k: v for k, v in two.items() if k not in one}
        both = {
            k: _merged(v, two[k], f"{inner}{k}", bad) if k in two else v
            for k, v in one.items()
        }
        return both | only
    kinds = {type(x).__name__ for x in (one, two)}
    different = isinstance(one, (tuple, Mapping)) or isinstance(two, (tuple, Mapping))
    reason = f"of different kinds ({', '.join(sorted(kinds))})"
    bad.append(f"'{path}' is {reason if different else 'in two of them'}")
    return one
