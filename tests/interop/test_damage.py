"""Damaged and hostile files: a clear error, or the same as before; never anything else.

Every file that is read from outside is cut and changed byte by byte from a fixed seed.
"""

import json
import random
import resource
import struct
import time

import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

import lowrank as lrk
from lowrank import _files, models
from lowrank.interop import load_peft, load_state, save_state
from lowrank.interop._adapter import Factors, open_adapter, write_adapter
from lowrank.interop._patterns import compiled
from lowrank.models._checkpoint import read_config
from lowrank.models._layouts import LLAMA, ROBERTA, VIT
from tests.models import gguf_file, golden, test_gguf

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


def gguf(folder):
    file = folder / "x.gguf"
    metadata = {**test_gguf.METADATA, **test_gguf.TOKENIZER, "llama.block_count": 1}
    tensors = {n: x for n, x in test_gguf.numbers().items() if "blk.1." not in n}
    stored = {name: gguf_file.plain(x) for name, x in tensors.items()}
    gguf_file.write(file, metadata, stored)
    return lambda: (models.load_gguf(file), models.load_gguf_tokenizer(file))


def model(folder):
    golden.write(folder, "llama")
    return lambda: models.load(folder)


def config(name):
    def make(folder):
        file = folder / "config.json"
        file.write_text(json.dumps(golden.config(name)))
        layout = {"llama": LLAMA, "vit": VIT, "roberta": ROBERTA}[name]
        return lambda: read_config("read", file, layout)

    return make


def tokenizer(folder):
    made = Tokenizer(WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    made.save(str(folder / "tokenizer.json"))
    return lambda: models.load_tokenizer(folder)


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
    "gguf": gguf,
    "llama config": config("llama"),
    "model": model,
    "tokenizer": tokenizer,
    "roberta config": config("roberta"),
    "vit config": config("vit"),
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


ODD = (None, 0, -1, 1e999, 2**70, "x", [1], {"x": 1}, True, 0.5, 2**40, {})


@pytest.mark.parametrize("name", ["llama", "roberta", "vit"])
def test_odd_values_of_a_model_config_are_told_by_name(name, tmp_path):
    read = config(name)(tmp_path)
    file = tmp_path / "config.json"
    whole = json.loads(file.read_text())
    for entry in {**whole, "rope_theta": 0, "rope_scaling": 0, "id2label": 0}:
        for odd in ODD:
            file.write_text(json.dumps({**whole, entry: odd}))
            message = message_of(read)
            assert message is None or 20 < len(message) < 2_000, (entry, odd)
            assert message is None or f"'{entry}'" in message, (entry, odd, message)


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"rope_scaling": "x"}, "'rope_scaling': expected an object, got 'x'"),
        ({"rope_scaling": 3}, "'rope_scaling': expected an object, got 3"),
        ({"rope_theta": None}, "'rope_theta': expected a number, got None"),
        ({"rope_theta": "x"}, "'rope_theta': expected a number, got 'x'"),
        ({"rope_scaling": {"type": []}}, "'rope_type': expected one of"),
        (
            {"rope_scaling": {"type": "linear", "factor": "x"}},
            "'factor': expected a number, got 'x'",
        ),
    ],
)
def test_odd_rotary_embeddings_are_told_by_name(entries, part, tmp_path):
    read = config("llama")(tmp_path)
    whole = {**golden.config("llama"), "rope_parameters": None, **entries}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert part in (message_of(read) or "")


def test_more_layers_than_tensors_are_refused_before_any_is_made(tmp_path):
    read = model(tmp_path)
    whole = {**golden.config("llama"), "num_hidden_layers": 2**24}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    assert "tells of 16777216 layers, but there are" in (message_of(read) or "")


def u64(*numbers):
    return struct.pack(f"<{len(numbers)}Q", *numbers)


def entry(name, kind, rest):
    return gguf_file.text(name) + struct.pack("<I", kind) + rest


@pytest.mark.parametrize(
    ("pairs", "part"),
    [
        ([entry("general.alignment", 4, struct.pack("<I", 0))], "alignment' of 0"),
        ([entry("general.alignment", 8, gguf_file.text("x"))], "alignment' of 'x'"),
        ([entry("general.alignment", 10, u64(2**40))], "alignment' of 1099511"),
        ([entry("x", 9, (struct.pack("<I", 9) + u64(1)) * 5000)], "nested deeper"),
        ([entry("x", 9, struct.pack("<I", 8) + u64(2**60))], "items, where"),
        ([entry("x", 99, b"")], "unknown type 99"),
    ],
)
def test_hostile_metadata_of_gguf_are_refused(pairs, part, tmp_path):
    file = tmp_path / "x.gguf"
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, len(pairs))
    file.write_bytes(head + b"".join(pairs) + b"\0" * 64)
    assert part in (message_of(lambda: models.gguf_metadata(file)) or "")


@pytest.mark.parametrize(
    ("shape", "kind", "part"),
    [
        ((2**33, 2**31), 0, "ends before its data at 'x'"),
        ((2**63, 2, 1), 0, "ends before its data at 'x'"),
        ((1,) * 5, 0, "5 axes, where 4 are the most"),
        ((2, 33), 8, "expected rows of whole blocks"),
    ],
)
def test_hostile_shapes_of_gguf_are_refused(shape, kind, part, tmp_path):
    file = tmp_path / "x.gguf"
    gguf_file.write(file, {}, {"x": (kind, shape, b"\0" * 64)})
    assert part in (message_of(lambda: models.gguf_metadata(file)) or "")


@pytest.mark.parametrize(
    ("entries", "part"),
    [
        ({"llama.block_count": 2**31}, "expected at most"),
        ({"llama.block_count": 2**20}, "tells of 1048576 layers"),
        ({"llama.block_count": 1.5}, "block_count': expected a number, got 1.5"),
        ({"llama.rope.freq_base": "x"}, "freq_base': expected a number, got x"),
        ({"llama.rope.freq_base": 0.0}, "'rope_theta': expected more than 0"),
    ],
)
def test_hostile_sizes_of_gguf_are_refused(entries, part, tmp_path):
    gguf(tmp_path)
    file = tmp_path / "x.gguf"
    metadata = {**test_gguf.METADATA, **entries}
    gguf_file.write(file, metadata, {"x": gguf_file.plain(np.ones(2))})
    assert part in (message_of(lambda: models.load_gguf(file)) or "")


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

    for odd in ("(?i)x", "(?i)", "x)|(y"):
        for name in ("rank_pattern", "alpha_pattern"):
            file.write_text(json.dumps(whole | {name: {odd: 2}}))
            assert f"'{name}': '{odd}': no regular expre" in (message_of(read) or "")

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
