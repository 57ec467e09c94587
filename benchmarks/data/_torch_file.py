"""Tensors of a PyTorch file, read without PyTorch and without running its pickles.

A file of the old form (before PyTorch 1.6) is five pickles and then raw numbers: a
magic number, a protocol, facts about the writer, the object, the keys of the storages,
and for each storage its length and its numbers. The pickles are read by an unpickler
that knows a few names, each of which becomes a plain value of ours, and refuses every
other.
"""

import io
import os
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from benchmarks.data._archives import DataError

MAGIC = 0x1950A86A20F9469CFC6C
_LENGTH = np.dtype("<i8")
_BROKEN = (pickle.UnpicklingError, EOFError, TypeError, ValueError, LookupError)
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "LongStorage": np.dtype("<i8"),
}


class _Place(NamedTuple):
    """A storage that a tensor looks into."""

    key: str
    dtype: np.dtype
    length: int


class _View(NamedTuple):
    """A tensor: where it begins in its storage, and how its axes run there."""

    place: _Place
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self, storage: np.ndarray) -> np.ndarray:
        """The numbers; strides that leave the storage are refused."""
        sizes = zip(self.shape, self.strides, strict=True)
        last = self.offset + sum((size - 1) * step for size, step in sizes)
        if min((self.offset, *self.strides, *self.shape)) < 0 or last >= len(storage):
            raise DataError(f"read_torch: a tensor leaves its storage: {self}.")
        steps = [step * storage.itemsize for step in self.strides]
        view = np.lib.stride_tricks.as_strided(
            storage[self.offset :], self.shape, steps, writeable=False
        )
        return np.array(view)


class _TensorsOnly(pickle.Unpickler):
    """Reads dicts of tensors as dicts of views, and refuses every other name."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda place, offset, shape, strides, *_: _View(
                place, offset, tuple(shape), tuple(strides)
            )
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        raise pickle.UnpicklingError(f"refused '{module}.{name}'")

    def persistent_load(self, pid: Any) -> _Place:
        kind, dtype, key, _, length, part = pid
        if kind != "storage" or part is not None:
            raise pickle.UnpicklingError(f"refused the storage {pid!r}")
        return _Place(key, dtype, length)


def read_torch(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """The tensors of a state dict that `torch.save` wrote before PyTorch 1.6.

    Args:
        path: The file. Check its hash first: `fetch` does.

    Returns:
        NumPy arrays by key, in the file's order.

    Raises:
        DataError: If the file is of another form, holds more than tensors, or is cut
            short.
    """
    stream = io.BytesIO(Path(path).read_bytes())
    try:
        head = [_TensorsOnly(stream).load() for _ in range(3)]
        if head[0] != MAGIC or not head[2]["little_endian"]:
            raise DataError(
                f"read_torch: '{path}' has another form: expected a little-endian file "
                "from before PyTorch 1.6."
            )
        views, keys = (_TensorsOnly(stream).load() for _ in range(2))
    except _BROKEN as error:
        raise DataError(
            f"read_torch: '{path}' holds more than tensors, or is no such file: "
            f"{error}. Do not use it."
        ) from error
    strange = [key for key, view in views.items() if not isinstance(view, _View)]
    if strange:
        raise DataError(f"read_torch: no tensors at {strange} of '{path}'.")
    places = {view.place.key: view.place for view in views.values()}
    storages = {key: _storage(stream, places[key]) for key in keys}
    return {key: view.read(storages[view.place.key]) for key, view in views.items()}


def _storage(stream: BinaryIO, place: _Place) -> np.ndarray:
    """The numbers of the storage that comes next."""
    length = int.from_bytes(stream.read(_LENGTH.itemsize), "little")
    data = stream.read(place.length * place.dtype.itemsize)
    if length != place.length or len(data) != place.length * place.dtype.itemsize:
        raise DataError(
            f"read_torch: storage {place.key!r} is cut short: expected {place.length} "
            f"numbers, got {length} and {len(data)} bytes."
        )
    return np.frombuffer(data, place.dtype)
