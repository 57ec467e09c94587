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
