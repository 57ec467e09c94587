"""Llama decoders, tokenizers and metadata from GGUF files."""

import os
import re
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.typing import DTypeLike
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from lowrank._files import shortened
from lowrank.models._checkpoint import Blueprint
from lowrank.models._config import check_depth, is_number
from lowrank.models._gguf import Gguf, read_gguf, read_tensor
from lowrank.models._layouts import LLAMA
from lowrank.models._llama import Llama
from lowrank.models._llama_config import LlamaConfig

# Ours to the file's.
NAMES = {
    "embed_tokens": "token_embd",
    "lm_head": "output",
    "model/norm": "output_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
# Fields of the config to the file's, after the name of the architecture.
SIZES = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "max_position_embeddings": "context_length",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
}
OPTIONAL = {
    "num_key_value_heads": "attention.head_count_kv",
    "head_dim": "attention.key_length",
    "rope_theta": "rope.freq_base",
}
_REAL = ("rms_norm_eps", "rope_theta")
CONTROL = 3  # the type of tokens that no text is split into
# Kinds of BPE by how they cut text before merging.
CUTS = {
    "smollm": [
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ],
}


def load_gguf(
    file: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    scan: bool = False,
) -> tuple[Llama, LlamaConfig]:
    """Read a Llama decoder from a GGUF file, completely or not at all.

    Numbers in F32, F16, BF16, Q8_0 (`d q`), Q4_0 (`d (q - 8)`) and Q4_1 (`d q + m`,
    `d` and `m` of each block of 32) are decoded to float32 and cast. The file has the
    channels of queries and keys interleaved, `0, d/2, 1, d/2 + 1, ...`, for another
    form of rotation; here they are put back in order.

    Args:
        file: Path of the file, whose architecture is `llama`.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `Llama`.
        scan: Stack the layers; see `Llama`.

    Returns:
        `(model, config)`; every parameter of the model comes from the file, and every
        tensor of the file goes into the model. Without a tensor `output.weight` the
        word embeddings are tied.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read, describes another model, or tensors are
            missing, unexpected or mis-shaped; all are listed.

    Example:
        >>> from lowrank.models import load_gguf
        >>> load_gguf("absent.gguf")
        Traceback (most recent call last):
        FileNotFoundError: load_gguf: no file at 'absent.gguf': ...

    Notes:
        The decoder is written here and not taken from the `gguf` package: four short
        formulas against a dependency that brings three others.

    References:
        The GGUF format, as published with ggml.
    """
    gguf = read_gguf("load_gguf", Path(file))
    config = _config(gguf)
    check_depth("load_gguf", file, config.num_hidden_layers, len(gguf.tensors))
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "scan": scan}
    blueprint = Blueprint(LLAMA, config, **options)
    names = {path: _tensor_name(path) for path in blueprint.leaves}
    _check(gguf, {names[path]: leaf.shape for path, leaf in blueprint.leaves.items()})
    leaves = {}
    for path, name in names.items():
        numbers = read_tensor(gguf, name)
        if path.endswith("q_proj/kernel"):
            numbers = _ordered(numbers, config.num_attention_heads)
        if path.endswith("k_proj/kernel"):
            numbers = _ordered(numbers, config.key_value_heads)
        numbers = numbers.T if path.endswith("/kernel") else numbers
        leaves[path] = jnp.asarray(numbers.astype(jnp.dtype(param_dtype)))
    return blueprint.fill(leaves), config


def gguf_metadata(file: str | os.PathLike[str]) -> dict[str, Any]:
    """What a GGUF file says of its model, tokenizer and origin.

    Args:
        file: Path of the file.

    Returns:
        The pairs as written, such as `"general.license"` and
        `"tokenizer.ggml.eos_token_id"`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read.

    Example:
        >>> from lowrank.models import gguf_metadata
        >>> gguf_metadata("absent.gguf")
        Traceback (most recent call last):
        FileNotFoundError: gguf_metadata: no file at 'absent.gguf': ...

    References:
        The GGUF format, as published with ggml.
    """
    return read_gguf("gguf_metadata", Path(file)).metadata


def load_gguf_tokenizer(file: str | os.PathLike[str]) -> Tokenizer:
    """Build the byte-level BPE tokenizer that a GGUF file holds.

    Text is cut into single digits and words, and pairs are merged in the file's order.
    Control tokens such as `<|im_start|>` are recognised in text.

    Args:
        file: Path of the file, whose tokenizer is of the kind `smollm`.

    Returns:
        A tokenizer that neither pads, truncates nor adds tokens; see `encode`.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be read or holds another kind of tokenizer.

    Example:
        >>> from lowrank.models import load_gguf_tokenizer
        >>> load_gguf_tokenizer("absent.gguf")
        Traceback (most recent call last):
        FileNotFoundError: load_gguf_tokenizer: no file at 'absent.gguf': ...

    References:
        Sennrich et al., Neural Machine Translation of Rare Words with Subword Units,
        2015, arXiv:1508.07909; the GGUF format, as published with ggml.
    """
    found = read_gguf("load_gguf_tokenizer", Path(file)).metadata
    wanted = {"model": ("gpt2",), "pre": tuple(CUTS), "add_bos_token": (False, None)}
    wrong = [
        f"'tokenizer.ggml.{name}': expected {allowed[0]!r}, got {got!r}"
        for name, allowed in wanted.items()
        if (got := found.get(f"tokenizer.ggml.{name}")) not in allowed
    ]
    fields = ("tokens", "token_type", "merges")
    keys = [f"tokenizer.ggml.{name}" for name in fields]
    wrong += [
        f"'{key}': expected a list, got nothing" for key in keys if key not in found
    ]
    if wrong:
        raise ValueError(
            f"load_gguf_tokenizer: another kind of tokenizer in '{file}' at "
            f"{'; '.join(wrong)}. Use the tokenizer.json of the model."
        )
    try:
        return _tokenizer(found["tokenizer.ggml.pre"], *(found[key] for key in keys))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"load_gguf_tokenizer: cannot read '{file}': expected tokens, as many "
            f"types and merges of two tokens, got {shortened(str(error))}. It is "
            "damaged: fetch it again."
        ) from error


def _tokenizer(cut: str, tokens: list, types: list, merges: list) -> Tokenizer:
    """The tokenizer of these pieces."""
    pairs = [tuple(merge.split(" ")) for merge in merges]
    vocabulary = {token: i for i, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(CUTS[cut])
    tokenizer.decoder = decoders.ByteLevel()
    control = [t for t, kind in zip(tokens, types, strict=True) if kind == CONTROL]
    tokenizer.add_special_tokens(control)
    return tokenizer


def _config(gguf: Gguf) -> LlamaConfig:
    """The sizes that the metadata state; refuse another kind of model."""
    found = gguf.metadata
    wrong = [
        f"'{name}': expected {allowed!r}, got {shortened(repr(found[name]))}"
        for name, allowed in (
            ("general.architecture", "llama"),
            ("llama.rope.scaling.type", "none"),
        )
        if name in found and found[name] != allowed
    ]
    wrong += [
        f"'llama.{key}': expected a number, got "
        f"{shortened(str(found.get(f'llama.{key}', 'nothing')))}"
        for field, key in {**SIZES, **OPTIONAL}.items()
        if (field in SIZES or f"llama.{key}" in found)
        and not _fits(field, found.get(f"llama.{key}"))
    ]
    if wrong:
        raise ValueError(
            f"load_gguf: '{gguf.file}' is no Llama decoder: {'; '.join(wrong)}. Pass a "
            "file of that architecture."
        )
    stated = {
        field: _plain(found[f"llama.{key}"])
        for field, key in {**SIZES, **OPTIONAL}.items()
        if f"llama.{key}" in found
    }
    words = gguf.tensors.get("token_embd.weight")
    return LlamaConfig(
        **stated,
        vocab_size=words.shape[0] if words and words.shape else 1,
        tie_word_embeddings="output.weight" not in gguf.tensors,
    )


def _fits(field: str, value: Any) -> bool:
    """Whether a value can be that of a field: all are whole but two."""
    return is_number(value) and (field in _REAL or isinstance(value, int))


def _plain(number: Any) -> Any:
    """A float32 of the file as the decimal that it was written from."""
    return float(str(np.float32(number))) if isinstance(number, float) else number


def _tensor_name(path: str) -> str:
    """The file's name of a parameter."""
    *parents, last = path.split("/")
    name = NAMES.get("/".join(parents)) or NAMES[parents[-1]]
    layer = re.match(r"model/layers/(\d+)/", path)
    prefix = f"blk.{layer[1]}." if layer else ""
    return f"{prefix}{name}.{'bias' if last == 'bias' else 'weight'}"


def _check(gguf: Gguf, shapes: dict[str, tuple[int, ...]]) -> None:
    """Refuse missing, unexpected and mis-shaped tensors, all at once."""
    stored = gguf.tensors
    wrong = [f"missing '{name}'" for name in shapes if name not in stored]
    wrong += [f"unexpected '{name}'" for name in stored if name not in shapes]
    for name in shapes.keys() & stored.keys():
        kernel = len(shapes[name]) == 2 and name != "token_embd.weight"
        expected = shapes[name][::-1] if kernel else shapes[name]
        if stored[name].shape != expected:
            wrong.append(
                f"mis-shaped '{name}': expected {expected}, got {stored[name].shape}"
            )
    if wrong:
        raise ValueError(
            f"load_gguf: the tensors of '{gguf.file}' do not fit its metadata: "
            f"{'; '.join(sorted(wrong))}. Nothing was loaded. Pass a complete file."
        )


def _ordered(kernel: np.ndarray, heads: int) -> np.ndarray:
    """Rows `0, d/2, 1, d/2 + 1, ...` of each head back to `0, 1, ...`."""
    rows, columns = kernel.shape
    pairs = kernel.reshape(heads, rows // heads // 2, 2, columns)
    return pairs.swapaxes(1, 2).reshape(rows, columns)
