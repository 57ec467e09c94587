"""`.npz` files without pickles, whose headers are checked before anything is read."""

import math
import struct
import tokenize
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from lowrank import _files

_DAMAGE = (
    zipfile.BadZipFile,
    struct.error,
    tokenize.TokenError,
    EOFError,
    MemoryError,
    NotImplementedError,
    OSError,
    RecursionError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}


def read_npz(who: str, file: Path) -> dict[str, np.ndarray]:
    """Read all arrays of an uncompressed file.

    Raises:
        FileNotFoundError: If there is no file.
        ValueError: If it is no such file, holds objects, or promises more than it has.
    """
    if not file.is_file():
        raise FileNotFoundError(
            f"{who}: no file at '{file}': expected an .npz file. Check the path."
        )
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            if sum(info.file_size for info in entries) > file.stat().st_size:
                raise ValueError("more data than the file has, or compressed data")
            return {
                info.filename.removesuffix(".npy"): _array(archive, info)
                for info in entries
            }
    except _DAMAGE as error:
        raise ValueError(
            f"{who}: cannot read '{file}': expected an uncompressed .npz file of "
            f"arrays, got: {_files.shortened(str(error))}. Write it again."
        ) from error


def _array(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> np.ndarray:
    """One array, if it is as long as its header says."""
    with archive.open(info) as handle:
        version = np.lib.format.read_magic(handle)
        if version not in _HEADERS:
            raise ValueError(f"version {version} of the header of {info.filename!r}")
        shape, fortran, dtype = _HEADERS[version](handle)
        size = math.prod(shape) * dtype.itemsize
        if dtype.hasobject or min(shape, default=0) < 0:
            raise ValueError(f"objects in {info.filename!r}, which are never loaded")
        if size != info.file_size - handle.tell():
            raise ValueError(f"{info.filename!r} is not as long as its shape {shape}")
        data = np.frombuffer(handle.read(size), dtype)
        return data.reshape(shape, order="F" if fortran else "C").copy()


def write_npz(who: str, file: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays, whole or not at all.

    Raises:
        ValueError: If an array has a dtype that the format does not know.
    """
    odd = [name for name, x in arrays.items() if np.asarray(x).dtype.kind in "OV"]
    if odd:
        raise ValueError(
            f"{who}: an .npz file cannot hold the dtype of {', '.join(odd)}. Write a "
            ".safetensors file."
        )

    def write(path: Path) -> None:
        with path.open("wb") as out:
            np.savez(out, **arrays)

    _files.write_atomically(file, write)
