"""SAID: a random subspace with a trained scale for each group of leaves."""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from lowrank import _check, _tree
from lowrank._base import Array, Path, PyTree, State, Transform
from lowrank._select import Select, check_select
from lowrank.operators import Delta
from lowrank.subspace._projection import (
    SUBSPACE,
    Projection,
    check_dimension,
    check_projection,
    check_total,
    floating,
    moves,
    moving,
    sizes_of,
    taken,
)

_WHO = "subspace.structured"
_NAMES = ("z", "lambda")


def per_path(path: Path) -> str:
    """Every leaf is a group of its own."""
    return path


def structured(
    d: int,
    projection: Projection,
    *,
    select: Select = floating,
    groups: Callable[[Path], str] = per_path,
) -> Transform:
    """SAID: `theta_i = theta_0,i + lambda_g(i) (P z)_i`, with `d` numbers in all.

    As `random`, with one more trained number `lambda` for each group of leaves. The `m`
    of them count: `z` has `d - m` entries.

    Args:
        d: How many numbers are trained, the scales among them: above `m`, and `d - m`
            at most `D`.
        projection: How `P: [D, d - m]` is drawn, as for `random`.
        select: Which leaves move; called once, in `init`, as `select(path, leaf)`.
        groups: `groups(path)`, the name of the group that a leaf belongs to. By default
            each leaf is one; for transformer layers, say, `lambda path:
            path.split("/")[1]`.

    Returns:
        A transform that is the identity at init. Trainable, under the path `subspace`:
        `z: [d - m]`, zero, and `lambda: [m]`, ones, in the order in which groups first
        occur in the tree. Fixed: what the projection draws. `lrk.subspace.group_names`
        tells which `lambda` is whose.

    Raises:
        TypeError: If `d` is no int, `projection` no `Projection` or `groups` no
            function.
        ValueError: If `d < 1`; in `init`, if `d <= m`, `d - m > D`, a selected leaf is
            not floating or none is selected; in `apply`, as `random`.

    Example:
        >>> params = {"a": {"w": jnp.ones((4, 3)), "bias": jnp.zeros(3)}}
        >>> tx = lrk.subspace.structured(5, lrk.subspace.dense())
        >>> state = tx.init(jax.random.key(0), params)
        >>> {k: v.shape for k, v in state.trainable["subspace"].items()}
        {'z': (3,), 'lambda': (2,)}

    Notes:
        At init `lambda` has the gradient zero, as it multiplies `P z = 0`: the first
        step moves `z` only.
        The authors' code has one `lambda` for each named tensor and leaves `d - m - 1`
        for `z`. That alone would be some 393 for RoBERTa-large; over which groups the
        paper counts is not known: report `m` with every result.

    References:
        Aghajanyan et al., Intrinsic dimensionality explains the effectiveness of
        language model fine-tuning, 2020, arXiv:2012.13255: SAID, theta_i^D =
        theta_0,i^D + lambda_i P(theta^(d-m))_i. DID is `random`.
    """
    d = check_dimension(_WHO, d)
    check_projection(_WHO, projection)
    check_select(_WHO, select)
    if not callable(groups):
        raise TypeError(
            f"{_WHO}: groups must be a function of the path, got {groups!r}. Leave it "
            "out for one group for each leaf."
        )

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(_WHO, key)
        sizes = sizes_of(moving(_WHO, params, select))
        names = group_names(groups, sizes)
        if d <= len(names):
            raise ValueError(
                f"{_WHO}: d={d} leaves nothing for z: expected more than the "
                f"{len(names)} groups {_tree.quoted(names[:8])}"
                f"{', ...' if len(names) > 8 else ''}. Raise d, or pass groups= with "
                "fewer names."
            )
        rest = d - len(names)
        check_total(_WHO, rest, sizes)
        trained = {
            "z": jnp.zeros(rest, jnp.float32),
            "lambda": jnp.ones(len(names), jnp.float32),
        }
        return State({SUBSPACE: trained}, projection.draw(key, sizes, rest))

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(_WHO, params)
        vectors = taken(_WHO, leaves, state, projection, d, _NAMES)
        chosen = {path: leaf for path, leaf in leaves.items() if path in state.fixed}
        index = _indices(groups, chosen, vectors["lambda"])
        moved = moves(_WHO, projection, state.fixed, vectors["z"], chosen)
        new = {}
        for path, w in chosen.items():
            scale = vectors["lambda"][index[path]]
            new[path] = Delta._make(w=w, d=scale * moved[path])
        return _tree.replace(_WHO, params, new)

    return Transform(init, apply)


def group_names(groups: Callable[[Path], str], paths: Any) -> tuple[str, ...]:
    """The names of all groups, in the order of the scales of `structured`.

    Args:
        groups: As for `structured`.
        paths: The paths that move, such as `lrk.select_paths(tx, params)`.

    Returns:
        Each name once, where it first occurs.

    Raises:
        TypeError: If a name is no string.

    Example:
        >>> first = lambda path: path.split("/")[0]
        >>> lrk.subspace.group_names(first, ["a/bias", "a/w", "b/w"])
        ('a', 'b')
    """
    names = {path: groups(path) for path in paths}
    wrong = [
        f"'{p}': {name!r}" for p, name in names.items() if not isinstance(name, str)
    ]
    if wrong:
        raise TypeError(
            f"{_WHO}: groups must return a string, got {'; '.join(wrong)}. Name a "
            "group for every path."
        )
    return tuple(dict.fromkeys(names.values()))


def _indices(
    groups: Callable[[Path], str], chosen: Mapping[Path, Any], scales: Array
) -> dict[Path, int]:
    """Which scale is that of each leaf.

    Raises:
        ValueError: If there are not as many scales as groups.
    """
    names = group_names(groups, chosen)
    if scales.shape[0] != len(names):
        raise ValueError(
            f"{_WHO}: expected {len(names)} entries of 'lambda', one for each group, "
            f"got {scales.shape[0]}. Pass the State that this transform's own init "
            "returned."
        )
    return {path: names.index(groups(path)) for path in chosen}
