"""`lowrank inspect`: what an adapter, a checkpoint or a state file holds."""

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import tyro

from lowrank import _files
from lowrank.cli import UsageError
from lowrank.cli._report import Report
from lowrank.interop._adapter import Factors, open_adapter
from lowrank.interop._config import CONFIG
from lowrank.interop._state import load_state, named_arrays


@dataclasses.dataclass(frozen=True)
class Options:
    """Show what an adapter, a checkpoint or a state file holds.

    Of an adapter of PEFT: module, sizes, rank, scale and the Frobenius norm of the
    change, |s A B|. Of a checkpoint: what a selection touches, and how many parameters
    a LoRA of a rank would add. Of a state file: its arrays.

    Examples:
      lowrank inspect my-adapter
      lowrank inspect my-model --select "(query|value).weight$" --rank 8
      lowrank inspect state.safetensors --json
    """

    path: tyro.conf.Positional[Path]
    """An adapter's folder, a checkpoint's folder, or a .safetensors or .npz file."""
    select: str | None = None
    """Regular expression, searched in the names of a checkpoint's tensors."""
    rank: int = 8
    """Rank of the LoRA that is counted for a checkpoint, at least 1."""
    json: bool = False
    """One JSON object for each line, the totals last."""


def run(options: Options) -> None:
    """Run the command."""
    if (options.path / CONFIG).exists():
        _adapter(options)
    elif options.path.is_dir():
        _checkpoint(options)
    elif not options.path.exists():
        raise FileNotFoundError(f"no such file or folder: '{options.path}'")
    else:
        _state(options)


def change_norm(own: Factors) -> float:
    """`|s B A|` in the Frobenius norm, by the `r x r` products `A A^T` and `B^T B`."""
    a, b = (np.asarray(x, np.float64).reshape(x.shape[0], -1) for x in (own.a, own.b))
    squared = np.sum((a @ a.T) * (b.T @ b))
    return abs(own.scale) * math.sqrt(max(float(squared), 0.0))


def _adapter(options: Options) -> None:
    adapter = open_adapter("inspect", options.path)
    report = Report(f"Adapter {options.path}", options.json)
    count = 0
    for name in adapter.modules:
        own = adapter.read(name)
        size = sum(x.size for x in own[:3] if x is not None)
        count += size
        report.add(
            module=name,
            kind=kind_of(own),
            shape=(*own.a.shape[1:], own.b.shape[0]),
            rank=own.rank,
            scale=own.scale,
            norm=change_norm(own),
            lengths=own.m is not None,
            parameters=size,
        )
    for name, stored in adapter.saved.items():
        size = math.prod(stored.shape)
        count += size
        report.add(module=name, kind="whole", shape=stored.shape, parameters=size)
    base = adapter.config.raw.get("base_model_name_or_path")
    foot = f"{len(adapter.modules)} modules, {count:,} parameters, base: {base or '-'}"
    report.close(foot, modules=len(adapter.modules), parameters=count, base=base)


def kind_of(own: Factors) -> str:
    """A word for the kind of module."""
    return "embedding" if own.embedding else "conv" if own.conv else "linear"


def pattern(text: str | None) -> re.Pattern[str] | None:
    """A regular expression of the user.

    Raises:
        UsageError: If it is none.
    """
    try:
        return None if text is None else re.compile(text)
    except re.error as error:
        raise UsageError(
            f"--select {text!r} is no regular expression: {error}"
        ) from None


def is_adaptable(entry: _files.Stored) -> bool:
    """Whether a tensor is a floating weight of two axes, or of a convolution."""
    return len(entry.shape) >= 2 and entry.dtype in _files.FLOATS


def _checkpoint(options: Options) -> None:
    if options.rank < 1:
        raise UsageError(f"--rank must be at least 1, got {options.rank}")
    wanted = pattern(options.select)
    entries = _files.list_tensors("inspect", options.path)
    report = Report(f"Checkpoint {options.path}", options.json)
    whole = sum(math.prod(entry.shape) for entry in entries)
    touched = added = 0
    for entry in entries:
        if wanted is not None and not wanted.search(entry.key):
            continue
        m, *rest = entry.shape or (1,)
        own = options.rank * (m + math.prod(rest)) if is_adaptable(entry) else None
        touched, added = touched + 1, added + (own or 0)
        report.add(
            tensor=entry.key,
            shape=entry.shape,
            dtype=entry.dtype,
            parameters=math.prod(entry.shape),
            added=own,
        )
    if not touched:
        raise ValueError(
            f"--select matches none of {len(entries)} tensors; the first are "
            f"{', '.join(entry.key for entry in entries[:5])}"
        )
    share = added / max(whole, 1)
    foot = (
        f"{touched} of {len(entries)} tensors; rank {options.rank} adds {added:,} to "
        f"{whole:,} parameters ({share:.3%})"
    )
    report.close(foot, tensors=touched, parameters=whole, added=added)


def _state(options: Options) -> None:
    state = load_state(options.path)
    report = Report(f"State {options.path}", options.json)
    count = 0
    for key, array in named_arrays("inspect", state).items():
        half, member, rest = key.split(":", 2)
        path, _, name = rest.rpartition(":")
        count += array.size
        row = {"half": half, "member": member or None, "path": path, "name": name}
        report.add(**row, shape=tuple(array.shape), dtype=str(array.dtype))
    report.close(f"{count:,} numbers", numbers=count)
