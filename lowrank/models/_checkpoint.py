"""BERT checkpoints in local directories: `config.json` and safetensors files."""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike

from lowrank import _files
from lowrank._files import FLOATS, Stored
from lowrank.models._bert import Bert
from lowrank.models._bert_config import BertConfig
from lowrank.models._functional import flatten, functional, nest, to_path

CONFIG = "config.json"
# A buffer 0, 1, 2, ... that older writers store: it is no parameter.
BUFFERS = ("embeddings.position_ids",)
# What the forward pass here computes; a checkpoint that says otherwise is refused.
SUPPORTED = {
    "model_type": ("bert",),
    "hidden_act": ("gelu", "gelu_python"),
    "position_embedding_type": ("absolute",),
    "is_decoder": (False,),
    "add_cross_attention": (False,),
}


def load_bert(
    directory: str | os.PathLike[str],
    *,
    dtype: DTypeLike = jnp.float32,
    param_dtype: DTypeLike = jnp.float32,
    remat: bool = False,
    skip: str | None = None,
) -> tuple[Bert, BertConfig]:
    """Read a BERT encoder from a local checkpoint, completely or not at all.

    A weight `W: [out, in]` of the file becomes the kernel `W^T: [in, out]`; all else is
    taken as it is. Reads `model.safetensors`, or the shards that
    `model.safetensors.index.json` names. A prefix `bert.` is dropped from the keys,
    `gamma` and `beta` of old layer norms are read as `weight` and `bias`, and the
    buffer `embeddings.position_ids` (the numbers 0, 1, 2, ..., no parameter) is
    dropped.

    Args:
        directory: Folder with `config.json` and the weights. Nothing is downloaded.
        dtype: Compute dtype of the model.
        param_dtype: Dtype of the parameters; the file's values are cast to it.
        remat: See `Bert`.
        skip: Regular expression, searched in the file's keys as written; those it
            matches are left out, as `"^cls[.]"` for a language model's head.

    Returns:
        `(model, config)`; every parameter of the model comes from the file.

    Raises:
        FileNotFoundError: If the config, the weights or a shard are absent.
        ValueError: If a file cannot be read, the config describes another model, or
            keys are missing, unexpected, mis-shaped or not floating; all are listed.

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
    folder = Path(directory)
    config = _read_config(folder / CONFIG)
    graphdef, abstract = nnx.split(
        nnx.eval_shape(
            lambda: Bert(
                config,
                dtype=dtype,
                param_dtype=param_dtype,
                remat=remat,
                rngs=nnx.Rngs(0),
            )
        ),
        nnx.Param,
    )
    places = {to_path(p): (p, v.shape) for p, v in nnx.to_flat_state(abstract)}
    shapes = {
        file_key(path): shape[::-1] if _is_kernel(path) else shape
        for path, (_, shape) in places.items()
    }
    stored = _rename(_files.list_tensors("load_bert", folder), skip)
    _check(folder, shapes, stored)
    tensors = _files.read_tensors(stored)
    leaves = {}
    for path, (parts, _) in places.items():
        tensor = tensors.pop(file_key(path)).astype(jnp.dtype(param_dtype))
        leaves[parts] = jnp.asarray(tensor.T if _is_kernel(path) else tensor)
    return nnx.merge(graphdef, nnx.State(nest(leaves))), config


def save_bert(
    directory: str | os.PathLike[str],
    model: Bert,
    params: Mapping[str, Any] | None = None,
) -> None:
    """Write a BERT encoder as a checkpoint that `load_bert` and others can read.

    Writes `model.safetensors` (kernels transposed back to `[out, in]`) and then
    `config.json`, each to a temporary file first and renamed when complete.

    Args:
        directory: Folder to write to; made if absent, files of these names replaced.
        model: The encoder.
        params: Tree to write in place of the model's own parameters, such as the
            materialized tree of a fine-tuned model; its structure and shapes are those
            that `functional(model)` returns.

    Raises:
        TypeError: If a leaf of `params` is no array, such as an operator that has not
            been materialized; all are listed.
        ValueError: If paths or shapes of `params` differ from the model's; all are
            listed.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from lowrank.models import Bert, BertConfig, save_bert
        >>> config = BertConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1,
        ...     num_attention_heads=2, intermediate_size=16, max_position_embeddings=6)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_bert(folder, Bert(config, rngs=nnx.Rngs(0)))
        ...     sorted(os.listdir(folder))
        ['config.json', 'model.safetensors']

    References:
        The safetensors format.
    """
    own = flatten(functional(model)[1])
    leaves = own if params is None else flatten(params)
    _check_leaves(own, leaves)
    folder = Path(directory)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {path: np.asarray(leaf) for path, leaf in leaves.items()}
    _files.write_tensors(
        folder / _files.WEIGHTS,
        {file_key(p): a.T if _is_kernel(p) else a for p, a in arrays.items()},
    )
    config = {key: allowed[0] for key, allowed in SUPPORTED.items()}
    config |= {"architectures": ["BertModel"], **dataclasses.asdict(model.config)}
    _files.write_json(folder / CONFIG, config)


def file_key(path: str) -> str:
    """Give the checkpoint's key of a parameter: `a/b/kernel` is `a.b.weight`."""
    *parents, last = path.split("/")
    return ".".join([*parents, "bias" if last == "bias" else "weight"])


def _is_kernel(path: str) -> bool:
    """Tell whether the file holds the transpose."""
    return path.endswith("/kernel")


def _rename(stored: Iterable[Stored], skip: str | None) -> dict[str, Stored]:
    """Bring the file's keys to one spelling; drop buffers and what `skip` matches."""
    kept = [s for s in stored if skip is None or not re.search(skip, s.key)]
    renamed = [(_spell(entry.key), entry) for entry in kept]
    counts = Counter(key for key, _ in renamed)
    twice = [repr(e.key) for key, e in renamed if counts[key] > 1]
    if twice:
        raise ValueError(
            f"load_bert: tensors stored twice at {', '.join(sorted(twice))}: expected "
            "each once, with or without 'bert.'. Pass skip=... to leave some out."
        )
    return {key: entry for key, entry in renamed if key not in BUFFERS}


def _spell(key: str) -> str:
    """Drop the prefix, and the old names of a layer norm's parameters."""
    key = key.removeprefix("bert.")
    key = re.sub(r"LayerNorm\.gamma$", "LayerNorm.weight", key)
    return re.sub(r"LayerNorm\.beta$", "LayerNorm.bias", key)


def _check(
    folder: Path, shapes: Mapping[str, tuple[int, ...]], stored: Mapping[str, Stored]
) -> None:
    """Refuse missing, unexpected, mis-shaped and non-float tensors, all at once."""
    both = sorted(shapes.keys() & stored.keys())
    groups = {
        "missing": [repr(key) for key in sorted(shapes.keys() - stored.keys())],
        "unexpected": [
            repr(stored[key].key) for key in sorted(stored.keys() - shapes.keys())
        ],
        "mis-shaped": [
            f"{key!r}: expected {shapes[key]}, got {stored[key].shape}"
            for key in both
            if stored[key].shape != shapes[key]
        ],
        "not floating": [
            f"{key!r}: got {stored[key].dtype}"
            for key in both
            if stored[key].dtype not in FLOATS
        ],
    }
    if any(groups.values()):
        listed = "; ".join(f"{what} {', '.join(k)}" for what, k in groups.items() if k)
        raise ValueError(
            f"load_bert: the weights in '{folder}' do not fit its {CONFIG}: {listed}. "
            "Nothing was loaded. Correct the config, or pass skip=... for unexpected "
            "keys that you mean to leave out."
        )


def _check_leaves(own: Mapping[str, Any], leaves: Mapping[str, Any]) -> None:
    """Refuse a tree that is not the model's parameters, as plain arrays."""
    strange = [
        f"'{path}': got {type(leaf).__name__}"
        for path, leaf in leaves.items()
        if not isinstance(leaf, jax.Array | np.ndarray)
    ]
    if strange:
        raise TypeError(
            f"save_bert: leaves that are no arrays at {'; '.join(strange)}. Expected "
            "arrays: call lowrank.materialize first."
        )
    wrong = [f"missing '{path}'" for path in own if path not in leaves]
    wrong += [f"unexpected '{path}'" for path in leaves if path not in own]
    wrong += [
        f"mis-shaped '{path}': expected {own[path].shape}, got {leaf.shape}"
        for path, leaf in leaves.items()
        if path in own and own[path].shape != leaf.shape
    ]
    if wrong:
        raise ValueError(
            f"save_bert: params do not fit the model: {'; '.join(wrong)}. Pass a tree "
            "like that of functional(model)."
        )


def _read_config(file: Path) -> BertConfig:
    """Read the sizes, and refuse a config of another kind of model."""
    raw = _files.read_json("load_bert", file)
    names = {field.name: field.type for field in dataclasses.fields(BertConfig)}
    # The widths must be stated; the last two are the same in every BERT.
    optional = ("layer_norm_eps", "initializer_range")
    wrong = [
        f"'{name}': expected a number, got nothing"
        for name in names
        if name not in raw and name not in optional
    ]
    for name, kind in names.items():
        kinds = (int,) if kind is int else (int, float)
        if name in raw and type(raw[name]) not in kinds:
            wrong.append(f"'{name}': expected a number, got {raw[name]!r}")
    wrong += [
        f"'{name}': expected {allowed[0]!r}, got {raw[name]!r}"
        for name, allowed in SUPPORTED.items()
        if name in raw and raw[name] not in allowed
    ]
    if wrong:
        raise ValueError(
            f"load_bert: '{file}' is no config of a BERT encoder: {'; '.join(wrong)}. "
            "Pass the folder of a BERT checkpoint."
        )
    return BertConfig(**{name: raw[name] for name in names if name in raw})
