"""Safetensors files and JSON objects: list, read, write atomically.

The one low module that needs an extra package: only parts with that extra import it.
"""

import json
import math
import os
import shutil
import uuid
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
FLOATS = ("F64", "F32", "F16", "BF16")
_DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_PIECE = 2**20
_MOST_JSON = 64 * 2**20  # bytes; an index of a million tensors is about as long


class Stored(NamedTuple):
    """Where a tensor lies, and what the file's header says of it."""

    file: Path
    key: str
    shape: tuple[int, ...]
    dtype: str


def list_tensors(who: str, directory: Path) -> list[Stored]:
    """Read the headers of `model.safetensors` or of the shards of its index."""
    files = weight_files(who, directory)
    absent = [str(file) for file in files if not file.is_file()]
    if absent:
        raise FileNotFoundError(
            f"{who}: no file at {', '.join(map(repr, absent))}: expected "
            f"'{WEIGHTS}', or '{INDEX}' and its shards. Pass the folder of a "
            "complete local checkpoint."
        )
    return [entry for file in files for entry in list_file(who, file)]


def list_file(who: str, file: Path) -> list[Stored]:
    """Read the header of one file, in the order of the keys."""
    with opened(who, file) as handle:
        slices = {key: handle.get_slice(key) for key in sorted(handle.keys())}
        return [
            Stored(file, key, tuple(s.get_shape()), s.get_dtype())
            for key, s in slices.items()
        ]


def read_metadata(who: str, file: Path) -> dict[str, str]:
    """Read the free entries of a file's header."""
    with opened(who, file) as handle:
        return handle.metadata() or {}


def read_tensors(stored: Mapping[str, Stored]) -> dict[str, np.ndarray]:
    """Read tensors, each file opened once."""
    out = {}
    for file in sorted({entry.file for entry in stored.values()}):
        with safetensors.safe_open(file, framework="numpy") as handle:
            for name, entry in stored.items():
                if entry.file == file:
                    out[name] = _tensor(handle, entry)
    return out


def _tensor(handle: Any, entry: Stored) -> np.ndarray:
    """One tensor of an open file."""
    try:
        return handle.get_tensor(entry.key)
    except (AttributeError, KeyError, TypeError, safetensors.SafetensorError) as error:
        raise ValueError(
            f"safetensors: cannot read '{entry.key}' of '{entry.file}': {entry.dtype} "
            f"is unknown to NumPy ({error}). Convert it to F32, F16 or BF16."
        ) from error


@contextmanager
def opened(who: str, file: Path) -> Generator[Any]:
    """An open safetensors file; its header is checked against its length."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: no file at '{file}': expected a safetensors file. Fetch it again."
        )
    try:
        with safetensors.safe_open(file, framework="numpy") as handle:
            yield handle
    except safetensors.SafetensorError as error:
        raise ValueError(
            f"{who}: cannot read '{file}': expected a safetensors file, got: "
            f"{error}. It is cut short or damaged: fetch it again."
        ) from error


# "pt" says that kernels are [out, in]; readers of such checkpoints ask for it.
TORCH = {"format": "pt"}


def write_tensors(
    file: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] = TORCH
) -> None:
    """Write one file whose values follow C order, whole or not at all."""
    # The writer stores the buffer and ignores strides: a transposed view would be
    # stored untransposed.
    plain = {key: np.asarray(array, order="C") for key, array in tensors.items()}
    data = safetensors.numpy.save(plain, dict(metadata))
    write_atomically(file, lambda path: path.write_bytes(data))


def write_streamed(
    file: Path, stored: Iterable[Stored], tensor: Callable[[Stored], np.ndarray]
) -> None:
    """Write a file like one that is there, with one tensor in memory at a time.

    `tensor(entry)` gives an array of the shape and dtype that the entry names.
    """
    entries = sorted(stored, key=_place)

    def write(path: Path) -> None:
        with path.open("wb") as out:
            out.write(_head(entries))
            for entry in entries:
                out.write(tensor(entry).tobytes(order="C"))

    write_atomically(file, write)


def write_spooled(file: Path, tensors: Iterable[tuple[str, np.ndarray]]) -> None:
    """Write a file whose floating tensors come one by one, with one in memory.

    The file begins with all their sizes, so until the last has come they are kept in
    another one beside it.
    """
    spool = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    found: list[tuple[Stored, int]] = []

    def write(path: Path) -> None:
        entries = sorted(found, key=lambda pair: _place(pair[0]))
        with path.open("wb") as out, spool.open("rb") as data:
            out.write(_head([entry for entry, _ in entries]))
            for entry, start in entries:
                data.seek(start)
                for size in _pieces(_size(entry)):
                    out.write(data.read(size))

    try:
        with spool.open("xb") as out:
            for key, array in tensors:
                dtype = _dtype(key, array)
                found.append((Stored(file, key, array.shape, dtype), out.tell()))
                out.write(array.tobytes(order="C"))
        write_atomically(file, write)
    finally:
        spool.unlink(missing_ok=True)


def _dtype(key: str, array: np.ndarray) -> str:
    """What a header calls the dtype of a floating array.

    Raises:
        ValueError: If it is none of them.
    """
    if array.dtype.name not in _DTYPES:
        raise ValueError(
            f"safetensors: cannot write '{key}': expected one of {', '.join(_DTYPES)}, "
            f"got {array.dtype}. Cast it."
        )
    return _DTYPES[array.dtype.name]


def _pieces(size: int) -> Iterable[int]:
    """A number of bytes in parts that fit into memory."""
    while size > 0:
        yield min(size, _PIECE)
        size -= _PIECE


def _place(entry: Stored) -> tuple[int, str]:
    """Wide dtypes first: so each tensor begins at a multiple of its own width."""
    return -item_size(entry.dtype), entry.key


def _size(entry: Stored) -> int:
    """Bytes of a tensor."""
    return math.prod(entry.shape) * item_size(entry.dtype)


def _head(entries: Iterable[Stored]) -> bytes:
    """The first bytes of a file that holds these tensors in this order."""
    start = 0
    header: dict[str, Any] = {"__metadata__": dict(TORCH)}
    for entry in entries:
        end = start + _size(entry)
        header[entry.key] = {
            "dtype": entry.dtype,
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def item_size(dtype: str) -> int:
    """Bytes of one entry of a dtype as the header writes it: `BF16`, `I64`, `BOOL`."""
    digits = "".join(filter(str.isdigit, dtype.split("_")[0]))
    return int(digits) // 8 if digits else 1


def write_atomically(file: Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a temporary file beside `file`; on the disk, it is renamed."""
    # Neither tempfile nor save_file: their files are private to the user, and the
    # rename would keep that.
    partial = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        write(partial)
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def replaced(folder: Path, last: Sequence[str]) -> Generator[Path]:
    """A new folder for the files of `folder`, which go there when all are written.

    `last` names the files without which no one can read `folder`. If it is there they
    are taken away first and come last, so an interruption leaves the old files, the new
    ones, or what is refused; never a mixture that can be read. Other files stay.

    Raises:
        NotADirectoryError: If `folder` is a file; nothing was written then.
    """
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise NotADirectoryError(f"expected a folder, got a file: {str(folder)!r}")
    there, name = folder.is_dir(), uuid.uuid4().hex
    new = folder / f".{name}" if there else folder.with_name(f".{folder.name}.{name}")
    new.mkdir(parents=True)
    try:
        yield new
        if not there:
            os.rename(new, folder)
            return
        for old in last:
            (folder / old).unlink(missing_ok=True)
        first = sorted(file.name for file in new.iterdir() if file.name not in last)
        for file in [*first, *(file for file in last if (new / file).exists())]:
            os.replace(new / file, folder / file)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_json(file: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    text = json.dumps(value, indent=2, sort_keys=True) + "\n"
    write_atomically(file, lambda path: path.write_text(text, "utf-8"))


def read_json(who: str, file: Path) -> dict[str, Any]:
    """Read a JSON object."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: no file at '{file}': expected a JSON object. Pass the folder of a "
            "complete local checkpoint."
        )
    value: Any
    if (size := file.stat().st_size) > _MOST_JSON:
        value = f"{size} bytes"
    else:
        try:
            value = json.loads(file.read_text("utf-8"))
        except (ValueError, RecursionError) as error:  # bad JSON, bad UTF-8, too deep
            value = error
    if not isinstance(value, dict):
        raise ValueError(
            f"{who}: cannot read '{file}': expected a JSON object, got "
            f"{shortened(repr(value))}. Fetch the file again."
        )
    return value


def shortened(text: str, most: int = 200) -> str:
    """A text from a file, cut so that a message stays readable."""
    return text if len(text) <= most else f"{text[:most]}..."


def listed(groups: Mapping[str, list[str]], most: int = 50) -> str:
    """`missing 'a', 'b'; unexpected 'c'`: what is wrong, each kind in one list."""

    def some(items: list[str]) -> str:
        more = [f"and {len(items) - most} more"] if len(items) > most else []
        return ", ".join([*map(shortened, items[:most]), *more])

    return "; ".join(f"{what} {some(items)}" for what, items in groups.items() if items)


def weight_files(who: str, directory: Path) -> list[Path]:
    """Name the weight files; the single file wins over an index beside it."""
    single, index = directory / WEIGHTS, directory / INDEX
    if single.is_file() or not index.is_file():
        return [single]
    shards = read_json(who, index).get("weight_map")
    names = list(shards.values()) if isinstance(shards, dict) else [shards]
    if not all(isinstance(n, str) and n and Path(n).name == n for n in names):
        raise ValueError(
            f"{who}: wrong 'weight_map' in '{index}': expected key -> file name in the "
            f"same folder, got {shortened(repr(shards))}. Fetch the file again."
        )
    return [directory / name for name in sorted(set(names))]
