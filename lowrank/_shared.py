"""Arrays that leaves share: where a state keeps them, and what is checked of them.

A state is `{path: {name: array}}`. What belongs to no single leaf stands at a path of
its own below `shared`, such as `shared/in/768`: an entry like any other, so it counts,
stacks, divides (`partition`) and goes to disk as they do, and draws from a key of its
own path. Which entries a leaf takes follows from the leaf; that it is selected is told,
as ever, by its own path in the state.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lowrank import _tree
from lowrank._base import Path, State

SHARED = "shared"

Shape = tuple[int | None, ...]


def place(*names: Any) -> Path:
    """The path of an entry that leaves share: `shared/in/768`."""
    return "/".join((SHARED, *map(str, names)))


def is_shared(path: Path) -> bool:
    """Whether an entry of a state belongs to no single leaf."""
    return path.split("/", 1)[0] == SHARED


def check_free(who: str, tree: Iterable[Path]) -> None:
    """Refuse parameters that sit where the state keeps what leaves share.

    Raises:
        ValueError: If there are any; all are named.
    """
    if bad := [path for path in tree if is_shared(path)]:
        raise ValueError(
            f"{who}: {_tree.quoted(bad)}: the state keeps below '{SHARED}/' what "
            "leaves share. Rename them."
        )


def divide(state: State) -> tuple[State, State]:
    """What leaves own, and what they share; what is no dict by path counts as owned."""

    def part(half: Any, shared: bool) -> Any:
        if not isinstance(half, Mapping):
            return {} if shared else half
        return {path: own for path, own in half.items() if is_shared(path) is shared}

    return State(*(part(half, False) for half in state)), State(
        *(part(half, True) for half in state)
    )


def check_shared(
    who: str,
    found: Mapping[Path, Any],
    wanted: Mapping[Path, Mapping[str, Shape]],
) -> None:
    """Refuse shared entries that are missing or of other shapes.

    Args:
        who: Name of the transform, for messages.
        found: The shared half of a state.
        wanted: For each path and name the shape; None for a size that may be any.

    Raises:
        ValueError: If there are any; all are named.
    """
    bad = []
    for path, names in wanted.items():
        for name, shape in names.items():
            got = found.get(path, {}).get(name)
            if got is None:
                bad.append(f"'{path}' lacks {name!r}")
            elif len(got.shape) != len(shape) or any(
                size not in (None, have)
                for size, have in zip(shape, got.shape, strict=True)
            ):
                sizes = ", ".join("any" if s is None else str(s) for s in shape)
                bad.append(
                    f"{name!r} at '{path}': expected shape ({sizes}), got "
                    f"{tuple(got.shape)}"
                )
    if bad:
        raise ValueError(
            f"{who}: the state does not fit: {'; '.join(bad)}. Pass the State that "
            "this transform's own init returned for this tree; call apply inside "
            "jax.vmap or lrk.map_tasks for states that lrk.stack made."
        )
