"""Damaged and hostile files: a clear error, or the same as before; never anything else.

Every file that is read from outside is cut and changed byte by byte from a fixed seed.
"""

import json
import random
import resource
import time

import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from lowrank import _files
from lowrank.interop import load_peft, load_state, save_state
from lowrank.interop._adapter import Factors, open_adapter, write_adapter
from lowrank.interop._patterns import compiled

ROUNDS = 60
PARAMS = {"one": {"kernel": jnp.zeros((4, 3))}, "head": {"kernel": jnp.zeros((3, 2))}}


def adapter(folder):
    own = Factors(np.ones((2, 4), "f"), np.ones((3, 2), "f"), None, 1.0, False)
    head = {"head.weight": np.ones((2, 3), "f")}
    write_adapter(folder, {"one": own}, saved=head, whole=["head"])
    return lambda: load_peft(folder, PARAMS)


def state(suffix):
    def make(folder):
        tree = {"w": {"a": jnp.ones((4, 2)), "b": jnp.ones((2, 3))}}
        save_state(folder / f"x{suffix}", lrk.State(({}, tree), ({}, {})))
        return lambda: load_state(folder / f"x{suffix}")

    return make


def checkpoint(folder):
    _files.write_tensors(folder / "a.safetensors", {"x": np.ones((2, 3), "f")})
    index = {"metadata": {"total_size": 24}, "weight_map": {"x": "a.safetensors"}}
    _files.write_json(folder / _files.INDEX, index)

    def read():
        found = _files.list_tensors("read", folder)
        return _files.read_tensors({entry.key: entry for entry in found})

    return read


def message_of(read):
    """What a reader says of its files, or None; any other error comes through."""
    try:
        read()
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def damaged(data, draw):
    """The bytes with some changed, cut out, doubled or cut off."""
    data = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        place, kind = draw.randrange(len(data) + 1), draw.randrange(5)
        if kind == 0:
            del data[place:]
        elif kind == 1:
            del data[place : place + draw.randrange(1, 9)]
        elif kind == 2:
            data[place:place] = data[place : place + draw.randrange(1, 40)]
        elif place < len(data):
            data[place] = draw.choice((0, 255, 57, 91, 123, draw.randrange(256)))
    return bytes(data)


MAKERS = {
    "adapter": adapter,
    "checkpoint": checkpoint,
    "npz": state(".npz"),
    "safetensors": state(".safetensors"),
}


@pytest.mark.parametrize("kind", MAKERS)
def test_damage_gives_a_clear_error_in_bounded_time_and_memory(kind, tmp_path):
    read = MAKERS[kind](tmp_path)
    read()
    files = sorted(path for path in tmp_path.iterdir() if path.is_file())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for number in range(ROUNDS):
        draw = random.Random(number)
        file = draw.choice(files)
        whole = file.read_bytes()
        file.write_bytes(damaged(whole, draw))
        start = time.perf_counter()
        message = message_of(read)
        assert message is None or 20 < len(message) < 20_000, (number, message)
        assert time.perf_counter() - start < 5, number
        file.write_bytes(whole)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown < 200 * 2**10, f"{grown} KiB more"
    read()


def test_lying_headers_are_not_believed(tmp_path):
    read = adapter(tmp_path)
    file = tmp_path / "adapter_model.safetensors"
    key = "base_model.model.one.lora_A.weight"
    for shape, end in (([2**31, 2**31], 2**62), ([2**40], 8), ([1 << 70], 1 << 72)):
        entry = {"dtype": "F32", "shape": shape, "data_offsets": [0, end]}
        text = json.dumps({key: entry}).encode()
        file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 8)
        with pytest.raises(ValueError, match="expected a safetensors file, got"):
            read()
    for head in (b"", b"\xff" * 8, (2**62).to_bytes(8, "little") + b"{}"):
        file.write_bytes(head)
        with pytest.raises(ValueError, match="cut short or damaged"):
            read()


def test_dtypes_that_numpy_lacks_are_refused_by_name(tmp_path):
    file = tmp_path / "x.safetensors"
    entry = {"dtype": "F8_E4M3", "shape": [4], "data_offsets": [0, 4]}
    text = json.dumps({"x": entry}).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + b"\0" * 4)
    entry = _files.list_file("read", file)[0]
    with pytest.raises(ValueError, match="cannot read 'x' of .*F8_E4M3 is unknown to"):
        _files.read_tensors({"x": entry})


def test_hostile_configs_are_refused(tmp_path):
    read = adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    whole = json.loads(file.read_text())
    file.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="expected a JSON object, got Recursion"):
        read()
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="expected a JSON object, got UnicodeDecode"):
        read()
    file.write_text('{"r": ' + "9" * 5000 + "}")
    with pytest.raises(ValueError, match="expected a JSON object, got ValueError"):
        read()
    with file.open("wb") as out:
        out.truncate(65 * 2**20)
    with pytest.raises(
        ValueError, match="expected a JSON object, got '68157440 bytes'"
    ):
        read()

    def opened():
        return open_adapter("read", tmp_path)

    for name in whole:
        for odd in (-1, "(", {"(": [1e999]}):
            file.write_text(json.dumps(whole | {name: odd}))
            assert len(message_of(opened) or "") < 20_000, (name, odd)


@pytest.mark.parametrize(
    "pattern",
    ["(a|a)*b", "(x+x+)+y", "(a?b?)*", ".*.*.*.*.*.*", "a?" * 40, "(a|b)" * 40],
)
def test_patterns_that_may_match_for_ever_are_refused(pattern):
    assert isinstance(compiled(pattern), str)


@pytest.mark.parametrize(
    "pattern",
    [
        r".*\.(q|v)_proj",
        r"(.*\.)?layers\.(0|1[0-9])\.self_attn\.[qkv]_proj$",
        r"(?:.*?(?:vision|text).*?(?:attn|mlp).*?(?:q|k)_proj.*?)|(?:model\.[\d]{1,}\.x)",
        r"^(?!.*head).*[*+]?\(x\)",
    ],
)
def test_patterns_that_people_write_are_taken(pattern):
    assert not isinstance(compiled(pattern), str)


def test_patterns_have_a_limit_of_time_in_all(tmp_path, monkeypatch):
    read = adapter(tmp_path)
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"target_modules": ".*"}))
    monkeypatch.setattr("lowrank.interop._patterns._SECONDS", 0.0)
    with pytest.raises(ValueError, match="its patterns took more than 0 s to match"):
        read()
