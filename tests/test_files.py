"""Files that are written whole or not at all."""

import os

import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from lowrank import _files


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda f: [done.append("fsync"), fsync(f)])
    monkeypatch.setattr("os.replace", lambda *f: [done.append("name"), replace(*f)])
    _files.write_tensors(tmp_path / "x.safetensors", {"x": np.ones(3, "f")})
    assert done == ["fsync", "name"]


def test_spooled_tensors_come_back_each_at_a_multiple_of_its_width(tmp_path):
    file = tmp_path / "x.safetensors"
    tensors = {
        "b": jnp.arange(3, dtype=jnp.bfloat16),
        "a": np.arange(6, dtype=np.float32).reshape(2, 3).T,
        "empty": np.zeros((0, 2), np.float16),
        "c": np.arange(2, dtype=np.float64),
    }
    _files.write_spooled(file, ((k, np.asarray(x)) for k, x in tensors.items()))
    for key, array in load_file(file).items():
        np.testing.assert_array_equal(array, tensors[key])
        assert array.dtype == tensors[key].dtype
    data = file.read_bytes()
    head = int.from_bytes(data[:8], "little")
    assert data[8 + head :][:16] == tensors["c"].tobytes()
    assert list(tmp_path.iterdir()) == [file]
    with pytest.raises(ValueError, match="cannot write 'i': expected one of float64"):
        _files.write_spooled(file, [("i", np.arange(3))])
    assert list(tmp_path.iterdir()) == [file]


def test_a_file_where_a_folder_is_to_be_is_named_before_anything_is_written(tmp_path):
    file = tmp_path / "adapter"
    file.write_text("mine")
    with (
        pytest.raises(NotADirectoryError, match="got a file: .*adapter"),
        _files.replaced(file, ["config.json"]),
    ):
        pass
    assert [x.name for x in tmp_path.iterdir()] == ["adapter"]
