"""Models to local checkpoints."""

import os
from collections.abc import Mapping
from typing import Any

from lowrank.models import _layouts
from lowrank.models._bert import Bert
from lowrank.models._checkpoint import Layout, write_model

Folder = str | os.PathLike[str]


def save(
    directory: Folder, model: Any, params: Mapping[str, Any] | None = None
) -> None:
    """Write a model as a checkpoint that `load` and others can read.

    Writes `model.safetensors` (kernels turned back to the file's order, stacked layers
    taken apart) and then `config.json`, each to a temporary file first and renamed when
    complete.

    Args:
        directory: Folder to write to; made if absent, files of these names replaced.
        model: A `Bert`, `GPT2`, `Llama`, `Roberta` or `ViT`.
        params: Tree to write in place of the model's own parameters, such as the
            materialized tree of a fine-tuned model; its structure and shapes are those
            that `functional(model)` returns.

    Raises:
        TypeError: If the model is of another class, or a leaf of `params` is no array,
            such as an operator that has not been materialized; all are listed.
        ValueError: If paths or shapes of `params` differ from the model's; all are
            listed.

    Example:
        >>> import os, tempfile
        >>> from flax import nnx
        >>> from lowrank.models import GPT2, GPT2Config, save
        >>> config = GPT2Config(vocab_size=3, n_positions=2, n_embd=2, n_layer=1,
        ...     n_head=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(folder, GPT2(config, rngs=nnx.Rngs(0)))
        ...     sorted(os.listdir(folder))
        ['config.json', 'model.safetensors']

    References:
        The safetensors format.
    """
    write_model("save", directory, model, params, _layout_of(model))


def save_bert(
    directory: Folder, model: Bert, params: Mapping[str, Any] | None = None
) -> None:
    """Write a BERT encoder as a checkpoint that `load_bert` and others can read.

    See `save`.

    Args:
        directory: Folder to write to; made if absent, files of these names replaced.
        model: The encoder.
        params: Tree to write in place of the model's own parameters.

    Raises:
        TypeError: If a leaf of `params` is no array; all are listed.
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
    write_model("save_bert", directory, model, params, _layouts.BERT)


def _layout_of(model: Any) -> Layout:
    """The layout of exactly this class."""
    for layout in _layouts.LAYOUTS:
        if type(model) is layout.model:
            return layout
    names = ", ".join(layout.model.__name__ for layout in _layouts.LAYOUTS)
    raise TypeError(
        f"save: cannot write a {type(model).__name__}: expected one of {names}. Write "
        "other models with their own tools."
    )
