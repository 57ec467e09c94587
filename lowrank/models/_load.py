"""Models from local checkpoints."""

import os
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax.typing import DTypeLike

from lowrank import _files
from lowrank.models import _layouts
from lowrank.models._bert import Bert
from lowrank.models._bert_config import BertConfig
from lowrank.models._checkpoint import CONFIG, read_model
from lowrank.models._gpt2 import GPT2, GPT2Config
from lowrank.models._llama import Llama
from lowrank.models._llama_config import LlamaConfig
from lowrank.models._roberta import Roberta, RobertaConfig
from lowrank.models._vit import ViT, ViTConfig

Folder = str | os.PathLike[str]


def load(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    skip: str | None = None,
) -> tuple[Any, Any]:
    """Read a model from a local checkpoint; its `config.json` says which.

    The entry `model_type` names the kind: `bert`, `gpt2`, `llama`, `qwen2`, `roberta`
    or `vit`. A weight `W: [out, in]` of the file becomes the kernel `W^T: [in, out]`,
    a convolution `[out, in, height, width]` becomes `[height, width, in, out]`, and
    all else is taken as it is, as are GPT-2's kernels. Reads `model.safetensors`, or
    the shards that `model.safetensors.index.json` names.

    Args:
        directory: Folder with `config.json` and the weights. Nothing is downloaded.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters; the file's values are cast to it.
        remat: See the model.
        skip: Regular expression, searched in the file's keys as written; those it
            matches are left out, as `"^lm_head[.]"` for a head.

    Returns:
        `(model, config)`; every parameter of the model comes from the file, and every
        tensor of the file that is no known buffer goes into the model or is skipped.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, the config describes a model that is not
            known, or keys are missing, unexpected, mis-shaped or not floating; all are
            listed.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from lowrank.models import GPT2, GPT2Config, load, save
        >>> config = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1,
        ...     n_head=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, GPT2(config, rngs=nnx.Rngs(0)))
        ...     model, loaded = load(folder)
        >>> type(model).__name__, loaded == config
        ('GPT2', True)

    References:
        The safetensors format.
    """
    file = Path(directory) / CONFIG
    kind = _files.read_json("load", file).get("model_type")
    found = {name: x for x in _layouts.LAYOUTS for name in x.supported["model_type"]}
    if not isinstance(kind, str) or kind not in found:
        raise ValueError(
            f"load: no such model at '{file}': expected a model_type out of "
            f"{sorted(found)}, got {_files.shortened(repr(kind))}. Pass the folder of "
            "such a checkpoint."
        )
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    return read_model("load", directory, found[kind], skip=skip, **options)


def load_bert(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    skip: str | None = None,
) -> tuple[Bert, BertConfig]:
    """Read a BERT encoder from a local checkpoint, completely or not at all.

    See `load`. A prefix `bert.` is dropped from the keys, `gamma` and `beta` of old
    layer norms are read as `weight` and `bias`, and the buffer
    `embeddings.position_ids` (the numbers 0, 1, 2, ..., no parameter) is dropped.

    Args:
        directory: Folder with `config.json` and the weights.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `Bert`.
        skip: Regular expression of keys to leave out, as `"^cls[.]"` for a language
            model's head.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, or config or keys do not fit.

    Example:
        >>> import tempfile
        >>> from flax import nnx
        >>> from lowrank.models import Bert, BertConfig, load_bert, save_bert
        >>> config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=6)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_bert(folder, Bert(config, rngs=nnx.Rngs(0)))
        ...     model, loaded = load_bert(folder)
        >>> loaded == config
        True

    References:
        Devlin et al., BERT, 2019, arXiv:1810.04805; the safetensors format.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    return read_model("load_bert", directory, _layouts.BERT, skip=skip, **options)


def load_roberta(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    skip: str | None = None,
) -> tuple[Roberta, RobertaConfig]:
    """Read a RoBERTa encoder from a local checkpoint, completely or not at all.

    See `load`. A prefix `roberta.` is dropped from the keys, and the buffer
    `embeddings.position_ids`. A pooler is expected of the architecture `RobertaModel`
    alone: where `config.json` names another, the model has none.

    Args:
        directory: Folder with `config.json` and the weights.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `Bert`.
        skip: Regular expression of keys to leave out, as `"^lm_head[.]"` for a language
            model's head.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, or config or keys do not fit.

    Example:
        >>> import tempfile
        >>> from lowrank.models import load_roberta
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_roberta(folder)
        Traceback (most recent call last):
        FileNotFoundError: load_roberta: no file at '...config.json': ...

    References:
        Liu et al., RoBERTa, 2019, arXiv:1907.11692; the safetensors format.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    return read_model("load_roberta", directory, _layouts.ROBERTA, skip=skip, **options)


def load_llama(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    scan: bool = False,
    skip: str | None = None,
) -> tuple[Llama, LlamaConfig]:
    """Read a Llama, SmolLM2 or Qwen2 decoder, completely or not at all.

    See `load`. Of rotary embeddings the plain, the linearly stretched and Llama 3's
    are known, as `rope_scaling` or as `rope_parameters`; sliding windows, biases in the
    feed-forward blocks and quantized weights are refused. Stored rotary frequencies
    (`rotary_emb.inv_freq`, no parameters) are dropped.

    Args:
        directory: Folder with `config.json` and the weights.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `Llama`.
        scan: Stack the layers; see `Llama`.
        skip: Regular expression of keys to leave out, as `"^lm_head[.]"` where a file
            repeats tied embeddings.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, or config or keys do not fit.

    Example:
        >>> import tempfile
        >>> from lowrank.models import load_llama
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_llama(folder)
        Traceback (most recent call last):
        FileNotFoundError: load_llama: no file at '...config.json': ...

    References:
        Touvron et al., LLaMA, 2023, arXiv:2302.13971; the safetensors format.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "scan": scan}
    return read_model("load_llama", directory, _layouts.LLAMA, skip=skip, **options)


def load_gpt2(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    scan: bool = False,
    skip: str | None = None,
) -> tuple[GPT2, GPT2Config]:
    """Read a GPT-2 decoder from a local checkpoint, completely or not at all.

    See `load`. Kernels are taken as they are: the files hold them `[in, out]`. A prefix
    `transformer.` is dropped from the keys, and the buffers `attn.bias` and
    `attn.masked_bias` (the causal mask, no parameters).

    Args:
        directory: Folder with `config.json` and the weights.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `GPT2`.
        scan: Stack the layers; see `GPT2`.
        skip: Regular expression of keys to leave out, as `"^lm_head[.]"` where a file
            repeats the tied embeddings.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, or config or keys do not fit.

    Example:
        >>> import tempfile
        >>> from lowrank.models import load_gpt2
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_gpt2(folder)
        Traceback (most recent call last):
        FileNotFoundError: load_gpt2: no file at '...config.json': ...

    References:
        Radford et al., Language Models are Unsupervised Multitask Learners, 2019; the
        safetensors format.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat, "scan": scan}
    return read_model("load_gpt2", directory, _layouts.GPT_2, skip=skip, **options)


def load_vit(
    directory: Folder,
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    skip: str | None = None,
) -> tuple[ViT, ViTConfig]:
    """Read a vision transformer from a local checkpoint, completely or not at all.

    See `load`. A prefix `vit.` is dropped from the keys. A classifier is expected of
    the architecture `ViTForImageClassification` alone, with as many outputs as
    `config.json` has labels.

    Args:
        directory: Folder with `config.json` and the weights.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters.
        remat: See `ViT`.
        skip: Regular expression of keys to leave out, as `"^pooler[.]"`.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, or config or keys do not fit.

    Example:
        >>> import tempfile
        >>> from lowrank.models import load_vit
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     load_vit(folder)
        Traceback (most recent call last):
        FileNotFoundError: load_vit: no file at '...config.json': ...

    References:
        Dosovitskiy et al., An Image is Worth 16x16 Words, 2020, arXiv:2010.11929; the
        safetensors format.
    """
    options = {"dtype": dtype, "param_dtype": param_dtype, "remat": remat}
    return read_model("load_vit", directory, _layouts.VIT, skip=skip, **options)
