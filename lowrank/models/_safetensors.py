"""Directories of safetensors files: list, read, write atomically."""

import json
import os
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"


class Stored(NamedTuple):
    """Where a tensor lies, and what the file's header says of it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def list_tensors(who: str, directory: Path) -> list[Stored]:
    """Read the headers of `model.safetensors` or of the shards of its index."""
    files = _weight_files(who, directory)
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{who}: no file at {', '.join(map(repr, absent))}: expected "
            f"'{WEIGHTS}', or '{INDEX}' and its shards. Pass the folder of a "
            "complete local checkpoint."
        )
    stored = []
    for file in files:
        try:
            with safetensors.safe_open(file, framework="numpy") as handle:
                slices = {key: handle.get_slice(key) for key in handle.keys()}
                stored += [
                    Stored(file, key, tuple(s.get_shape()), s.get_dtype())
                    for key, s in slices.items()
                ]
        except safetensors.SafetensorError as error:
            raise ValueError(
                f"{who}: cannot read '{file}': expected a safetensors file, got: "
                f"{error}. It is cut short or damaged: fetch it again."
            ) from error
    return stored


def read_tensors(stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """Read tensors, each file opened once."""
    out = {}
    for file in sorted({entry.file for entry in stored.values()}):
        with safetensors.safe_open(file, framework="numpy") as handle:
            for name, entry in stored.items():
                if entry.file == file:
                    out[name] = handle.get_tensor(entry.key)
    return out


def write_tensors(file: Path, tensors: Mapping[str, np.ndarray]) -> None:
    """Write one file whose values follow C order, whole or not at all."""
    # The writer stores the buffer and ignores strides: a transposed view would be
    # stored untransposed.
    plain = {key: np.ascontiguousarray(array) for key, array in tensors.items()}
    # "pt" says that kernels are [out, in]; readers of such checkpoints ask for it.
    data = safetensors.numpy.save(plain, {"format": "pt"})
    write_atomically(file, lambda path: path.write_bytes(data))


def write_atomically(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `file`, then rename it."""
    # Neither tempfile nor save_file: their files are private to the user, and the
    # rename would keep that.
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        write(partial)
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def read_json(who: str, file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: no file at '{file}': expected a JSON object. Pass the folder of a "
            "complete local checkpoint."
        )
    try:
        value = json.loads(file.read_text("utf-8"))
    except ValueError as error:  # bad JSON and bad UTF-8 alike
        value = error
    if not isinstance(value, dict):
        raise ValueError(
            f"{who}: cannot read '{file}': expected a JSON object, got {value!r}. "
            "Fetch the file again."
        )
    return value


def _weight_files(who: str, directory: Path) -> list[Path]:
    """Name the weight files; the single file wins over an index beside it."""
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file() or not index.is_file():
        return [single]
    shards = read_json(who, index).get("weight_map")
    names = set(shards.values()) if isinstance(shards, dict) else {shards}
    if not all(isinstance(n, str) and n and Path(n).name == n for n in names):
        raise ValueError(
            f"{who}: wrong 'weight_map' in '{index}': expected key -> file name in the "
            f"same folder, got {shards!r}. Fetch the file again."
        )
    return [directory / name for name in sorted(names)]
