"""What quantisers share: codes drawn from the weights that `init` meets."""

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array

from lowrank import _check, _tree
from lowrank._axes import Axes, resolve
from lowrank._base import Operator, Path, PyTree, State, Transform, is_floating
from lowrank._select import Select, check_select, selected
from lowrank.operators import Quantized
from lowrank.operators import _dispatch as ask
from lowrank.operators._rows import matrix_shape, to_matrix

Encode = Callable[[Array, int], dict[str, Array]]
NAMES = ("code", "scale")


def check_block(who: str, block: Any, multiple: int) -> None:
    """Refuse a block that is no whole number of rows.

    Raises:
        TypeError: If it is no int.
        ValueError: If it is below 1 or no multiple of the rows of a byte.
    """
    if isinstance(block, bool) or not isinstance(block, int):
        raise TypeError(f"{who}: block must be an int, got {block!r}.")
    if block < multiple or block % multiple:
        least = "at least 1" if multiple == 1 else f"a positive multiple of {multiple}"
        raise ValueError(f"{who}: block must be {least}, got {block}.")


def quantiser(
    who: str,
    encode: Encode,
    block: int | None,
    select: Select,
    axes: Mapping[Path, Axes] | None,
) -> Transform:
    """The transform whose codes are `encode(matrix, block)`."""
    check_select(who, select)

    def init(key: Array, params: PyTree) -> State:
        _check.check_key(who, key)
        chosen = selected(who, params, select)
        found = resolve(who, chosen, axes)
        _check_leaves(who, chosen)
        _check.check_ties(who, chosen)
        fixed = {}
        for path, leaf in chosen.items():
            matrix = to_matrix(ask.dense(leaf), found[path])
            fixed[path] = encode(matrix, block or matrix.shape[-2])
        return State({}, fixed)

    def apply(params: PyTree, state: State, *, key: Array | None = None) -> PyTree:
        del key
        leaves = _tree.leaves(who, params)
        _check.check_state(who, leaves, state, fixed=NAMES)
        chosen = {path: leaves[path] for path in state.fixed}
        found = resolve(who, chosen, axes)
        new = {
            path: Quantized._make(
                **{"coarse": None, "middle": None} | dict(state.fixed[path]),
                block=block or matrix_shape(leaf, found[path])[-2],
                sizes=tuple(leaf.shape),
                axes=found[path],
                kind=leaf.dtype,
            )
            for path, leaf in chosen.items()
        }
        _check.check_operators(who, new)
        return _tree.replace(who, params, new)

    return Transform(init, apply)


def _check_leaves(who: str, chosen: Mapping[Path, Any]) -> None:
    """Refuse leaves that are not floating or have no weight to take.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = [
        f"{_tree.describe(path, leaf)}: not floating"
        for path, leaf in chosen.items()
        if not is_floating(leaf)
    ]
    bad += [
        f"{_tree.describe(path, leaf)}: {type(leaf).__name__} acts inside the product"
        for path, leaf in chosen.items()
        if isinstance(leaf, Operator) and not leaf.has_dense
    ]
    if bad:
        raise ValueError(
            f"{who}: cannot quantise {'; '.join(bad)}. Leave these out with select=, "
            "or put the quantiser before what acts inside the product."
        )
