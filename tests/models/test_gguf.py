"""GGUF files that the tests write: numbers, names, order of channels, refusals."""

import struct

import jax
import numpy as np
import pytest

from lowrank.models import (
    LlamaConfig,
    encode,
    functional,
    gguf_metadata,
    load_chat_template,
    load_gguf,
    load_gguf_tokenizer,
    render_chat,
    stack_layers,
)
from lowrank.models._gguf import read_gguf, read_tensor
from tests.models import gguf_file

METADATA = {
    "general.architecture": "llama",
    "llama.embedding_length": 8,
    "llama.feed_forward_length": 6,
    "llama.block_count": 2,
    "llama.attention.head_count": 2,
    "llama.attention.head_count_kv": 1,
    "llama.context_length": 16,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.rope.freq_base": 100000.0,
}
TOKENS = ["<|end|>", "a", "b", "1", "2", "ab", "Ġ", "Ġab"]
TOKENIZER = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.add_bos_token": False,
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [3, 1, 1, 1, 1, 1, 1, 1],
    "tokenizer.ggml.merges": ["a b", "Ġ ab"],
    "tokenizer.chat_template": "{{ messages[0].content }}<|end|>",
}
SHAPES = {
    "token_embd": (5, 8),
    "output_norm": (8,),
    **{
        f"blk.{i}.{name}": shape
        for i in range(2)
        for name, shape in {
            "attn_norm": (8,),
            "ffn_norm": (8,),
            "attn_q": (8, 8),
            "attn_k": (4, 8),
            "attn_v": (4, 8),
            "attn_output": (8, 8),
            "ffn_gate": (6, 8),
            "ffn_up": (6, 8),
            "ffn_down": (8, 6),
        }.items()
    },
}


def numbers():
    """A value for every tensor, all different."""
    out, at = {}, 0
    for name, shape in SHAPES.items():
        size = int(np.prod(shape))
        out[f"{name}.weight"] = np.arange(at, at + size, dtype=np.float32).reshape(
            shape
        )
        at += size
    return out


@pytest.fixture
def write(tmp_path):
    """Writes a file with these changes to metadata and tensors; None removes."""

    def write(metadata=(), tensors=(), **kwargs):
        stored = {n: gguf_file.plain(x) for n, x in numbers().items()}
        both = [
            {**METADATA, **TOKENIZER, **dict(metadata)},
            {**stored, **dict(tensors)},
        ]
        both = [{k: v for k, v in d.items() if v is not None} for d in both]
        return gguf_file.write(tmp_path / "tiny.gguf", *both, **kwargs)

    return write


def test_every_tensor_has_its_place(write):
    file = write()
    model, config = load_gguf(file)
    assert config == LlamaConfig(
        vocab_size=5,
        hidden_size=8,
        intermediate_size=6,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16,
        rms_norm_eps=1e-5,
        rope_theta=100000.0,
        tie_word_embeddings=True,
    )
    given, params = numbers(), functional(model)[1]
    layer = params["model"]["layers"]["1"]
    same = np.testing.assert_array_equal
    same(params["model"]["embed_tokens"]["embedding"], given["token_embd.weight"])
    same(params["model"]["norm"]["scale"], given["output_norm.weight"])
    same(layer["input_layernorm"]["scale"], given["blk.1.attn_norm.weight"])
    same(layer["post_attention_layernorm"]["scale"], given["blk.1.ffn_norm.weight"])
    for own, name in {"v": "v", "o": "output"}.items():
        kernel = layer["self_attn"][f"{own}_proj"]["kernel"]
        same(kernel, given[f"blk.1.attn_{name}.weight"].T)
    for name in ("gate", "up", "down"):
        same(
            layer["mlp"][f"{name}_proj"]["kernel"], given[f"blk.1.ffn_{name}.weight"].T
        )
    # Rows 0, 2, 1, 3 of a head of four are its channels 0, 1, 2, 3.
    rows = [0, 2, 1, 3]
    q = given["blk.1.attn_q.weight"][[*rows, *(4 + r for r in rows)]]
    same(layer["self_attn"]["q_proj"]["kernel"], q.T)
    same(layer["self_attn"]["k_proj"]["kernel"], given["blk.1.attn_k.weight"][rows].T)
    stacked, _ = load_gguf(file, scan=True)
    jax.tree.map(same, functional(stacked)[1], stack_layers(params))


def test_an_output_of_its_own_is_read(write):
    head = np.ones((5, 8), np.float32)
    model, config = load_gguf(write(tensors={"output.weight": gguf_file.plain(head)}))
    assert not config.tie_word_embeddings
    np.testing.assert_array_equal(model.lm_head.kernel.get_value(), head.T)


def test_quantized_numbers_are_their_formulas(write):
    codes = np.stack([np.arange(32) % 16, (5 * np.arange(32) + 3) % 16])
    wide = codes * 17 - 128
    d, m = np.array([0.5, -0.25]), np.array([1.5, -3.0])
    halves = np.linspace(-2, 2, 64).astype(np.float16)
    bits = (np.linspace(-2, 2, 64).astype(np.float32).view(np.uint32) >> 16).astype(
        "<u2"
    )
    expected = {
        "Q4_0": (
            gguf_file.packed(gguf_file.Q4_0, (2, 32), codes, d),
            d[:, None] * (codes - 8),
        ),
        "Q4_1": (
            gguf_file.packed(gguf_file.Q4_1, (2, 32), codes, d, m),
            d[:, None] * codes + m[:, None],
        ),
        "Q8_0": (gguf_file.packed(gguf_file.Q8_0, (2, 32), wide, d), d[:, None] * wide),
        "F16": ((gguf_file.F16, (2, 32), halves.tobytes()), halves.reshape(2, 32)),
        "BF16": (
            (gguf_file.BF16, (2, 32), bits.tobytes()),
            (bits.astype(np.uint32) << 16).view(np.float32).reshape(2, 32),
        ),
    }
    file = write(tensors={name: stored for name, (stored, _) in expected.items()})
    gguf = read_gguf("test", file)
    for name, (_, values) in expected.items():
        got = read_tensor(gguf, name)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, values, err_msg=name)


def test_text_and_chat(write):
    file = write()
    tokenizer = load_gguf_tokenizer(file)
    assert tokenizer.encode("ab ab12").ids == [5, 7, 3, 4]
    template = load_chat_template(file)
    text = render_chat(template, [{"role": "user", "content": "ab"}])
    ids, mask = encode(tokenizer, [text], 3)
    assert (ids.tolist(), mask.tolist()) == ([[5, 0, 0]], [[1, 1, 0]])
    assert tokenizer.decode([5, 7, 3]) == "ab ab1"
    assert gguf_metadata(file)["tokenizer.ggml.tokens"] == TOKENS


def test_another_kind_of_tokenizer_is_refused(write):
    changes = {
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.add_bos_token": True,
        "tokenizer.ggml.merges": None,
        "tokenizer.chat_template": None,
    }
    file = write(changes)
    with pytest.raises(
        ValueError,
        match=r"load_gguf_tokenizer.*'tokenizer.ggml.pre': expected 'smollm', got "
        r"'llama-bpe'; .*add_bos_token': expected False, got True; .*merges': expected",
    ):
        load_gguf_tokenizer(file)
    with pytest.raises(ValueError, match=r"load_chat_template: no template in '.*gguf"):
        load_chat_template(file)


def test_all_tensors_that_do_not_fit_are_listed(write):
    wrong = {
        "output_norm.weight": None,
        "blk.0.attn_k.weight": gguf_file.plain(np.ones((8, 4))),
        "rope_freqs.weight": gguf_file.plain(np.ones(2)),
    }
    with pytest.raises(
        ValueError,
        match=r"mis-shaped 'blk.0.attn_k.weight': expected \(4, 8\), got \(8, 4\); "
        r"missing 'output_norm.weight'; unexpected 'rope_freqs.weight'. Nothing was",
    ):
        load_gguf(write(tensors=wrong))


def test_another_kind_of_model_is_refused(write):
    changes = {
        "general.architecture": "qwen2",
        "llama.block_count": None,
        "llama.rope.scaling.type": "yarn",
    }
    with pytest.raises(
        ValueError,
        match=r"'general.architecture': expected 'llama', got 'qwen2'; "
        r"'llama.rope.scaling.type': expected 'none', got 'yarn'; 'llama.block_count'",
    ):
        load_gguf(write(changes))


def test_files_that_cannot_be_read_are_refused(write):
    file = write(version=1)
    with pytest.raises(
        ValueError, match=r"cannot read '.*version 2 or 3, got: b'GGUF'"
    ):
        gguf_metadata(file)
    whole = write().read_bytes()
    for keep in (0, 3, 20, 300):
        file.write_bytes(whole[:keep])
        with pytest.raises(ValueError, match=r"load_gguf: cannot read .*cut short"):
            load_gguf(file)
    file.write_bytes(whole[:-40])
    with pytest.raises(ValueError, match=r"ends before its data at 'blk.1.ffn_down"):
        load_gguf(file)
    with pytest.raises(ValueError, match=r"cannot decode '.*at 'odd': format 12: exp"):
        load_gguf(write(tensors={"odd": (12, (1,), struct.pack("<f", 1))}))
    with pytest.raises(FileNotFoundError, match=r"load_gguf: no file at 'absent'"):
        load_gguf("absent")
