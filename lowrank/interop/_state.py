"""States as files: `.safetensors` or `.npz`."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from lowrank import _compat, _files
from lowrank._base import PyTree, State
from lowrank.interop._npz import read_npz, write_npz

_FORMAT, _VERSION = "lowrank state", "1"
_HALVES = ("trainable", "fixed")


def save_state(
    file: str | os.PathLike[str],
    state: State,
    *,
    notes: Mapping[str, Any] | None = None,
) -> None:
    """Write a state to one file, whole or not at all.

    Args:
        file: Path with the suffix `.safetensors` or `.npz`; its folder is made if
            absent.
        state: Any state: dicts by path, in tuples if it is that of a chain.
        notes: What else the file shall hold, as JSON: hyperparameters, say.

    Raises:
        TypeError: If it is no state, or is traced.
        ValueError: If the suffix is another, or `.npz` does not know a dtype.

    Example:
        >>> import pathlib, tempfile
        >>> state = lrk.lora(2).init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "state.safetensors")
        ...     lrk.interop.save_state(file, state)
        ...     lrk.interop.load_state(file).trainable["w"]["a"].shape
        (4, 2)

    Notes:
        An array's name is `half:member:path:name`, such as
        `trainable:0:dense/kernel:a`; the member is empty outside a chain.
    """
    path = _suffixed("save_state", file)
    named = named_arrays("save_state", state)
    if unknown := [key for key, x in named.items() if not _compat.is_known(x)]:
        raise TypeError(
            f"save_state: no numbers at {', '.join(unknown)}. Call it outside jit."
        )
    arrays = {key: np.asarray(x) for key, x in named.items()}
    header = {
        "format": _FORMAT,
        "version": _VERSION,
        "members": json.dumps(_nesting(state.trainable)),
        "notes": json.dumps(notes or {}),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".npz":
        note = np.asarray(json.dumps(header))
        write_npz("save_state", path, arrays | {"header": note})
    else:
        _files.write_tensors(path, arrays, header)


def load_state(file: str | os.PathLike[str], *, like: State | None = None) -> State:
    """Read a state that `save_state` wrote.

    Args:
        file: Path with the suffix `.safetensors` or `.npz`. No pickle is read.
        like: A state of the shapes that are expected, such as
            `jax.eval_shape(tx.init, key, params)`; None to take what there is.

    Returns:
        The state, its arrays as JAX arrays.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is no such file, or differs from `like`: every missing,
            unexpected or mis-shaped array is listed.

    Example:
        >>> import pathlib, tempfile
        >>> tx, params = lrk.lora(2), {"w": jnp.ones((4, 3))}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "state.npz")
        ...     lrk.interop.save_state(file, tx.init(jax.random.key(0), params))
        ...     like = jax.eval_shape(tx.init, jax.random.key(0), params)
        ...     lrk.interop.load_state(file, like=like).fixed["w"]["scale"].item()
        1.0
    """
    path = _suffixed("load_state", file)
    arrays, header = _read("load_state", path)
    if like is not None:
        _check_like(path, arrays, named_arrays("load_state", like))
    try:
        nesting = json.loads(header["members"])
        halves = [_empty(nesting), _empty(nesting)]
        for key, array in arrays.items():
            half, member, rest = key.split(":", 2)
            place, _, name = rest.rpartition(":")
            node: Any = halves[_HALVES.index(half)]
            for i in filter(None, member.split(".")):
                node = node[int(i)]
            node.setdefault(place, {})[name] = jnp.asarray(array)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"load_state: cannot read '{path}': its names are not those of a state "
            f"({_files.shortened(str(error))}). Write it with save_state."
        ) from error
    return State(*map(_frozen, halves))


def read_notes(file: str | os.PathLike[str]) -> dict[str, Any]:
    """Read the notes that `save_state` was given.

    Args:
        file: As for `load_state`.

    Returns:
        The notes; empty if there were none.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is no file of `save_state`.

    Example:
        >>> import pathlib, tempfile
        >>> state = lrk.lora(2).init(jax.random.key(0), {"w": jnp.ones((4, 3))})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = pathlib.Path(folder, "state.npz")
        ...     lrk.interop.save_state(file, state, notes={"rank": 2})
        ...     lrk.interop.read_notes(file)
        {'rank': 2}
    """
    path = _suffixed("read_notes", file)
    header = _read("read_notes", path)[1]
    try:
        notes = json.loads(header.get("notes", "{}"))
    except (TypeError, ValueError, RecursionError):
        notes = None
    if not isinstance(notes, dict):
        raise ValueError(
            f"read_notes: the notes in '{path}' are no JSON object. Write the file "
            "again with save_state."
        )
    return notes


def named_arrays(who: str, state: State) -> dict[str, Any]:
    """The arrays of a state, or their shapes, by the names that a file has.

    Raises:
        TypeError: If it is no state.
    """
    if not isinstance(state, State):
        got = type(state).__name__
        raise TypeError(f"{who}: expected a State, got {got}. Pass tx.init's result.")
    named = {}
    for half, part in zip(_HALVES, state, strict=True):
        for member, own in _members(part):
            for path, leaf in own.items():
                for name, x in leaf.items():
                    named[f"{half}:{member}:{path}:{name}"] = x
    return named


def _members(part: PyTree, prefix: str = "") -> list[tuple[str, Mapping[str, Any]]]:
    """The dicts of one half with their places: `0`, `1.0`, or nothing."""
    if not isinstance(part, tuple):
        return [(prefix, part)]
    head = f"{prefix}." if prefix else ""
    inner = (_members(member, f"{head}{i}") for i, member in enumerate(part))
    return [found for members in inner for found in members]


def _nesting(part: PyTree) -> Any:
    """Lists for the tuples of a half, 0 for its dicts."""
    return [_nesting(member) for member in part] if isinstance(part, tuple) else 0


def _empty(nesting: Any, depth: int = 0) -> Any:
    """Lists and empty dicts of a nesting."""
    if depth > 50 or not (nesting == 0 or isinstance(nesting, list)):
        raise ValueError("no nesting of members")
    return [_empty(x, depth + 1) for x in nesting] if nesting != 0 else {}


def _frozen(part: Any) -> PyTree:
    """Tuples for lists."""
    return tuple(map(_frozen, part)) if isinstance(part, list) else part


def _suffixed(who: str, file: str | os.PathLike[str]) -> Path:
    """The path, if its suffix says what it is.

    Raises:
        ValueError: If it does not.
    """
    path = Path(file)
    if path.suffix not in (".npz", ".safetensors"):
        raise ValueError(
            f"{who}: expected a path that ends in .safetensors or .npz, got '{path}'."
        )
    return path


def _read(who: str, path: Path) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The arrays of a file and its header.

    Raises:
        ValueError: If the header is not one of `save_state`.
    """
    header: Any = {}
    if path.suffix == ".npz":
        arrays = read_npz(who, path)
        note = arrays.pop("header", np.asarray(""))
        try:
            header = json.loads(str(note))
        except (ValueError, RecursionError):
            header = None
    else:
        header = _files.read_metadata(who, path)
        entries = {entry.key: entry for entry in _files.list_file(who, path)}
        arrays = _files.read_tensors(entries)
    known = isinstance(header, dict) and header.get("format") == _FORMAT
    if not known or header.get("version") != _VERSION:
        raise ValueError(
            f"{who}: '{path}' is no state of this version: expected the format "
            f"'{_FORMAT}' {_VERSION} in its header. Write it with save_state; an "
            "adapter of PEFT is a folder, for load_peft."
        )
    return arrays, header


def _check_like(
    path: Path, arrays: Mapping[str, np.ndarray], wanted: Mapping[str, Any]
) -> None:
    """Refuse arrays that are not those expected, all at once."""
    wrong = {
        "missing": [repr(key) for key in wanted if key not in arrays],
        "unexpected": [repr(key) for key in arrays if key not in wanted],
        "mis-shaped": [
            f"{key!r}: expected {want}, got {got}"
            for key, x in arrays.items()
            if key in wanted and (got := _kind(x)) != (want := _kind(wanted[key]))
        ],
    }
    if any(wrong.values()):
        raise ValueError(
            f"load_state: '{path}' does not fit: {_files.listed(wrong)}. Nothing was "
            "loaded. Pass the state of the transform and the tree it was saved for."
        )


def _kind(x: Any) -> str:
    return f"{x.dtype}{list(x.shape)}"
