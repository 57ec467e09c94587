"""Names of torch parameters, and paths of the same weights here."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from lowrank._base import Path

Rename = Callable[[str], str | None]
_LAST = ("kernel", "embedding", "scale")  # what a torch `weight` is called in Flax


def parameter_name(path: Path) -> str:
    """The torch name of the parameter that stands at a path.

    Args:
        path: A path of a parameter tree, such as `encoder/layer/0/dense/kernel`.

    Returns:
        The same with `.` for `/`, and `weight` for a last `kernel`, `embedding` or
        `scale`: the names that the public checkpoints of the reference models have.

    Example:
        >>> lrk.interop.parameter_name("encoder/layer/0/attention/self/query/kernel")
        'encoder.layer.0.attention.self.query.weight'
    """
    *parents, last = path.split("/")
    return ".".join([*parents, "weight" if last in _LAST else last])


def module_path(name: str, *, embedding: bool) -> Path:
    """The path that an adapted module's weight has by default."""
    return "/".join([*name.split("."), "embedding" if embedding else "kernel"])


class Names(NamedTuple):
    """Which path each torch parameter of a file has.

    Attributes:
        paths: By torch name; None where the tree has no such path.
        name: The torch name that a path has in the file, whether it is there or not.
    """

    paths: dict[str, Path | None]
    name: Callable[[Path], str]


def find_paths(
    names: Iterable[str], leaves: Mapping[Path, Any], rename: Rename | None
) -> Names:
    """Look for the torch parameters of a file in a tree.

    Where `rename` has no answer, one leading name may be lacking: the same one for all
    names in the file (`bert.encoder...` for `encoder/...`), or the same one for all in
    the tree.
    """
    own = {name: rename(name) if rename is not None else None for name in names}
    table: dict[str, Path] = {}
    for path in leaves:
        # A torch weight of two axes is [out, in]: under its own name it is no kernel.
        if not path.endswith("weight") or len(leaves[path].shape) != 2:
            table.setdefault(parameter_name(path), path)
    rest = [name for name, path in own.items() if path is None]
    drop, add = _heads(rest, table)

    def spelled(name: str) -> str:
        return name if name in table else add + name.removeprefix(drop)

    def back(path: Path) -> str:
        return drop + parameter_name(path).removeprefix(add)

    found = {name: table.get(spelled(name)) for name in rest}
    told = {name: path for name, path in own.items() if path is not None}
    known = {name: path if path in leaves else None for name, path in told.items()}
    return Names({name: {**found, **known}[name] for name in own}, back)


def _heads(names: list[str], table: Mapping[str, Any]) -> tuple[str, str]:
    """What to drop from all names, or to add, so that the tree has them; or nothing."""
    drops = dict.fromkeys(f"{name.split('.')[0]}." for name in names)
    adds = dict.fromkeys(f"{name.split('.')[0]}." for name in table)
    for drop, add in [("", ""), *((d, "") for d in drops), *(("", a) for a in adds)]:
        if all(n in table or add + n.removeprefix(drop) in table for n in names):
            return drop, add
    return "", ""
