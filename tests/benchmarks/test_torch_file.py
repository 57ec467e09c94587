"""The reader of PyTorch's old files: tensors as they are, and nothing else."""

import pickle

import numpy as np
import pytest

from benchmarks.data import CATALOG, DataError, efficientnet_lite0
from benchmarks.data._torch_file import MAGIC, read_torch

NUMBERS = np.arange(6, dtype="<f4")


def tensor(offset=1, shape=b"I2\nI2\n", strides=b"I1\nI2\n"):
    """The pickled call that builds a tensor of the storage '0' of six numbers."""
    place = b"(S'storage'\nctorch\nFloatStorage\nS'0'\nS'cpu'\nI6\nNtQ"
    view = b"I%d\n(%st(%st" % (offset, shape, strides)
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + place + view + b"I00\nNtR"


@pytest.fixture
def write(tmp_path):
    def of(entry, *, magic=MAGIC, numbers=NUMBERS):
        head = [magic, 1001, {"little_endian": True}]
        parts = [pickle.dumps(own, protocol=2) for own in head]
        parts += [b"(dS'w'\n" + entry + b"s.", pickle.dumps(["0"], protocol=2)]
        storage = (6).to_bytes(8, "little") + numbers.tobytes()
        path = tmp_path / "weights.pth"
        path.write_bytes(b"".join(parts) + storage)
        return path

    return of


def test_a_transposed_view_of_a_storage(write):
    found = read_torch(write(tensor()))
    assert list(found) == ["w"]
    np.testing.assert_array_equal(found["w"], [[1, 3], [2, 4]])


def test_nothing_but_tensors_is_read(write, tmp_path):
    trap = tmp_path / "trap"
    call = b"cposix\nsystem\n(S'touch %s'\ntR" % str(trap).encode()
    with pytest.raises(DataError, match=r"holds more than tensors.*refused 'posix.sys"):
        read_torch(write(call))
    assert not trap.exists()
    with pytest.raises(DataError, match=r"no tensors at \['w'\]"):
        read_torch(write(b"I5\n"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"entry": tensor(), "magic": 5}, "has another form"),
        ({"entry": tensor(), "numbers": NUMBERS[:3]}, "storage '0' is cut short"),
        ({"entry": tensor(offset=3)}, "a tensor leaves its storage"),
        ({"entry": tensor(strides=b"I-1\nI1\n")}, "a tensor leaves its storage"),
    ],
)
def test_broken_files_are_refused(write, given, message):
    with pytest.raises(DataError, match=message):
        read_torch(write(**given))


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"PK\x03\x04 a zip file")
    with pytest.raises(DataError, match="is no such file"):
        read_torch(path)


@pytest.mark.slow
def test_the_real_file_has_its_tensors():
    if not CATALOG["efficientnet_lite0"].cached():
        pytest.skip("not here: python -m benchmarks.data fetch efficientnet_lite0")
    found = efficientnet_lite0()
    assert sum(x.size for x in found.values()) == 4_694_073
    assert found["_conv_stem.weight"].shape == (32, 3, 3, 3)
    # Channels that never fire have none.
    assert all((found[key] >= 0).all() for key in found if key.endswith("running_var"))
