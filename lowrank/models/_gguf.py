"""GGUF files: metadata, the table of tensors, and their numbers as float32."""

import math
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

MAGIC = b"GGUF"
VERSIONS = (2, 3)
ALIGNMENT = "general.alignment"
# Codes of the types of metadata that are one number.
NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "?",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}
STRING, ARRAY = 8, 9
# Of what a file may ask for: axes of a tensor, arrays within arrays, entries of one.
_AXES, _DEPTH, _ITEMS = 4, 4, 2**24
_MOST_ALIGNMENT = 2**20


def _halves(packed: np.ndarray) -> np.ndarray:
    """Unpack `[blocks, 16]` bytes: the low halves are the first 16 numbers."""
    return np.concatenate([packed & 15, packed >> 4], axis=1)


def _f32(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f4")


def _f16(raw: np.ndarray) -> np.ndarray:
    return raw.view("<f2")


def _bf16(raw: np.ndarray) -> np.ndarray:
    return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _scale(raw: np.ndarray, at: int) -> np.ndarray:
    """The float16 at a byte of each block, as a column."""
    return raw[:, at : at + 2].copy().view("<f2").astype(np.float32)


def _q4_0(raw: np.ndarray) -> np.ndarray:
    return _scale(raw, 0) * (_halves(raw[:, 2:]).astype(np.float32) - 8)


def _q4_1(raw: np.ndarray) -> np.ndarray:
    return _scale(raw, 0) * _halves(raw[:, 4:]).astype(np.float32) + _scale(raw, 2)


def _q8_0(raw: np.ndarray) -> np.ndarray:
    return _scale(raw, 0) * raw[:, 2:].view(np.int8).astype(np.float32)


class Format(NamedTuple):
    """How numbers are stored: a block of `bytes` holds `numbers`."""

    name: str
    numbers: int
    bytes: int
    decode: Callable[[np.ndarray], np.ndarray]


FORMATS = {
    0: Format("F32", 1, 4, _f32),
    1: Format("F16", 1, 2, _f16),
    2: Format("Q4_0", 32, 18, _q4_0),
    3: Format("Q4_1", 32, 20, _q4_1),
    8: Format("Q8_0", 32, 34, _q8_0),
    30: Format("BF16", 1, 2, _bf16),
}


class Entry(NamedTuple):
    """A tensor of the file: shape `[out, in]`, code of its format, first byte."""

    shape: tuple[int, ...]
    format: int
    offset: int


class Gguf(NamedTuple):
    """What a file says before its data."""

    file: Path
    metadata: dict[str, Any]
    tensors: dict[str, Entry]


def read_gguf(who: str, file: Path) -> Gguf:
    """Read metadata and the table of tensors, and check that the data are there."""
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: no file at '{file}': expected a GGUF file. Pass its path."
        )
    data = np.memmap(file, np.uint8, "r") if file.stat().st_size else np.zeros(0, "u1")
    try:
        found = _read(file, data)
    except (struct.error, ValueError, OverflowError, KeyError) as error:
        raise ValueError(
            f"{who}: cannot read '{file}': expected a GGUF file of version "
            f"{' or '.join(map(str, VERSIONS))}, got: {error}. It is cut short, "
            "damaged or of another kind: fetch it again."
        ) from error
    strange = [
        f"'{name}': format {entry.format}"
        for name, entry in found.tensors.items()
        if entry.format not in FORMATS
    ]
    if strange:
        known = ", ".join(f.name for f in FORMATS.values())
        raise ValueError(
            f"{who}: cannot decode '{file}' at {'; '.join(strange)}: expected one of "
            f"{known}. Pass a file quantized in one of these."
        )
    broken = [
        f"'{name}': {entry.shape}"
        for name, entry in found.tensors.items()
        if math.prod(entry.shape[-1:]) % FORMATS[entry.format].numbers
    ]
    if broken:
        raise ValueError(
            f"{who}: cannot decode '{file}' at {'; '.join(broken)}: expected rows of "
            "whole blocks. It is damaged: fetch it again."
        )
    short = [name for name, e in found.tensors.items() if _end(e) > data.size]
    if short:
        raise ValueError(
            f"{who}: '{file}' ends before its data at {', '.join(map(repr, short))}: "
            "expected them whole. It is cut short: fetch it again."
        )
    return found


def read_tensor(gguf: Gguf, name: str) -> np.ndarray:
    """The numbers of one tensor, float32, `[out, in]`."""
    entry = gguf.tensors[name]
    kind = FORMATS[entry.format]
    size = _end(entry) - entry.offset
    raw = np.fromfile(gguf.file, np.uint8, size, offset=entry.offset)
    numbers = kind.decode(raw.reshape(-1, kind.bytes))
    return numbers.astype(np.float32, copy=False).reshape(entry.shape)


def _end(entry: Entry) -> int:
    """The byte after a tensor."""
    kind = FORMATS[entry.format]
    return entry.offset + math.prod(entry.shape) // kind.numbers * kind.bytes


class _Cursor:
    """Reads forward through bytes; raises where they end."""

    def __init__(self, data: np.ndarray):
        self.data = data
        self.at = 0

    def take(self, size: int) -> np.ndarray:
        if size > self.data.size - self.at:
            raise ValueError(f"{size} bytes at byte {self.at} of {self.data.size}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str) -> Any:
        return self.take(np.dtype(code).itemsize).view(code)[0].item()

    def string(self) -> str:
        return self.take(self.number("<u8")).tobytes().decode("utf-8")

    def count(self, code: str, most: int, what: str) -> int:
        """A number of things, refused if there are too many to be true."""
        number = self.number(code)
        if number > most:
            raise ValueError(f"{number} {what}, where {most} are the most")
        return number

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind == STRING:
            return self.string()
        if kind != ARRAY:
            if kind not in NUMBERS:
                raise ValueError(f"a value of the unknown type {kind}")
            return self.number(NUMBERS[kind])
        if depth == _DEPTH:
            raise ValueError(f"arrays nested deeper than {_DEPTH}")
        inner, count = self.number("<u4"), self.count("<u8", _ITEMS, "items")
        if inner in NUMBERS:
            dtype = np.dtype(NUMBERS[inner])
            return self.take(count * dtype.itemsize).view(dtype).tolist()
        return [self.value(inner, depth + 1) for _ in range(count)]


def _read(file: Path, data: np.ndarray) -> Gguf:
    """Parse the head of a file."""
    cursor = _Cursor(data)
    magic, version = cursor.take(4).tobytes(), cursor.number("<u4")
    if magic != MAGIC or version not in VERSIONS:
        raise ValueError(f"{magic!r}, version {version}")
    tensors, pairs = cursor.number("<u8"), cursor.number("<u8")
    metadata = {}
    for _ in range(pairs):
        name = cursor.string()
        metadata[name] = cursor.value(cursor.number("<u4"))
    entries = {}
    for _ in range(tensors):
        name = cursor.string()
        if name in entries:
            raise ValueError(f"two tensors {name!r}")
        # Written with the fastest axis first.
        axes = cursor.count("<u4", _AXES, "axes")
        shape = [cursor.number("<u8") for _ in range(axes)][::-1]
        entries[name] = Entry(tuple(shape), cursor.number("<u4"), cursor.number("<u8"))
    align = metadata.get(ALIGNMENT, 32)
    if type(align) is not int or not 1 <= align <= _MOST_ALIGNMENT:
        raise ValueError(f"{ALIGNMENT!r} of {align!r}")
    start = -(-cursor.at // align) * align
    moved = {n: e._replace(offset=start + e.offset) for n, e in entries.items()}
    return Gguf(file, metadata, moved)
