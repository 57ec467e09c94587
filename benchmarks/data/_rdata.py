"""Vectors of strings from the data of an R package: an index and what it points at.

The index is an R list in XDR form; what it points at are blocks, each the length of a
serialised object and that object, packed by zlib. Only the kinds of object that such an
index and vectors of strings consist of are read.
"""

import gzip
import zlib
from typing import Any

from benchmarks.data._archives import DataError

# SEXP types of R's serialisation (R Internals, section 1.8), and its flags.
_SYMBOL, _PAIRS, _CHARS, _LOGICAL, _INTS, _STRINGS, _LIST = 1, 2, 9, 10, 13, 16, 19
_REFERENCE, _NULL = 255, 254
_HAS_ATTRIBUTES, _HAS_TAG = 0x200, 0x400
_HEADER = b"X\n"


def character_vectors(index: bytes, blocks: bytes) -> dict[str, list[str]]:
    """All vectors of strings of a package's data, by name.

    Args:
        index: The content of an `.rdx` file.
        blocks: The content of the `.rdb` file beside it.

    Raises:
        DataError: If the files hold anything else.
    """
    try:
        found, out = _Reader(gzip.decompress(index)).whole(), {}
        for name, (start, size) in found["variables"].items():
            packed = blocks[start + 4 : start + size]
            out[name] = _Reader(zlib.decompress(packed)).whole()
    except (zlib.error, OSError, IndexError, KeyError, TypeError, ValueError) as error:
        raise DataError(f"character_vectors: no data of R: {error}.") from error
    return out


class _Reader:
    """Reads one serialised object."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0
        self.symbols: list[str] = []

    def whole(self) -> Any:
        """The object behind the header."""
        if not self.data.startswith(_HEADER):
            raise ValueError("expected XDR form")
        self.at = len(_HEADER)
        version = self._int()
        self.at += 8  # versions of R
        if version == 3:
            self._bytes(self._int())  # the native encoding
        return self._item()

    def _bytes(self, size: int) -> bytes:
        self.at += size
        if self.at > len(self.data):
            raise ValueError("cut short")
        return self.data[self.at - size : self.at]

    def _int(self) -> int:
        return int.from_bytes(self._bytes(4), "big", signed=True)

    def _item(self) -> Any:
        flags = self._int()
        kind = flags & 0xFF
        if kind == _NULL:
            return None
        if kind == _REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == _SYMBOL:
            self.symbols.append(self._item())
            return self.symbols[-1]
        if kind == _PAIRS:
            if flags & _HAS_ATTRIBUTES:
                self._item()
            tag = self._item() if flags & _HAS_TAG else ""
            value = self._item()
            return {tag: value} | (self._item() or {})
        size = self._int()
        if kind == _CHARS:
            return self._bytes(size).decode("utf-8") if size >= 0 else ""
        if kind in (_INTS, _LOGICAL):
            value: Any = [self._int() for _ in range(size)]
        elif kind in (_STRINGS, _LIST):
            value = [self._item() for _ in range(size)]
        else:
            raise ValueError(f"an object of type {kind}")
        names = (self._item() or {}).get("names") if flags & _HAS_ATTRIBUTES else None
        return value if names is None else dict(zip(names, value, strict=True))
