"""Pretrained weights: directories of safetensors, a GGUF file, tensors of PyTorch."""

import os
from pathlib import Path

import numpy as np

from benchmarks.data._fetch import Notice, fetch
from benchmarks.data._sources import (
    EFFICIENTNET_LITE0,
    MINILM,
    MINILM_SRE,
    SMOLLM2,
    Artifact,
)
from benchmarks.data._torch_file import read_torch


def minilm_dir(
    *, local_dir: str | os.PathLike[str] | None = None, notice: Notice | None = None
) -> Path:
    """all-MiniLM-L6-v2: BERT with 6 layers of width 384, vocabulary 30,522.

    Two packages carry the same bytes; the second is tried where the first fails.

    Args:
        local_dir: A directory that holds the three files.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        A directory with `model.safetensors` (kernels are `[out, in]`), `config.json`
        and `tokenizer.json`. That tokenizer pads and cuts to 128 pieces unless told
        otherwise: `tokens.load_tokenizer` tells it.

    Raises:
        DataError: If the files cannot be had or are not the expected ones.

    References:
        Wang et al., MiniLM, 2020, arXiv:2002.10957; Reimers and Gurevych,
        Sentence-BERT, 2019, arXiv:1908.10084.
    """
    return _directory(MINILM, local_dir, notice)


def minilm_sre_dir(
    *, local_dir: str | os.PathLike[str] | None = None, notice: Notice | None = None
) -> Path:
    """A full fine-tune of exactly the weights of `minilm_dir`, on operations texts.

    The difference of the two is a real weight update that was made without low rank.

    Args:
        local_dir: A directory that holds the three files.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        A directory as `minilm_dir` gives, with the same names and shapes but for
        `embeddings.position_ids`, which is absent.

    Raises:
        DataError: If the files cannot be had or are not the expected ones.
    """
    return _directory(MINILM_SRE, local_dir, notice)


def smollm2_file(
    *, local_dir: str | os.PathLike[str] | None = None, notice: Notice | None = None
) -> Path:
    """SmolLM2-135M-Instruct, quantized: Llama, 30 layers of width 576, 4-bit numbers.

    Args:
        local_dir: A directory that holds the file.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        A GGUF file with weights, tokenizer and chat template. The products are Q4_1
        and the tied word embeddings Q8_0: not the published 16-bit weights.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        Ben Allal et al., SmolLM2, 2025, arXiv:2502.02737.
    """
    (path,) = fetch(SMOLLM2, local_dir=local_dir, notice=notice).values()
    return path


def efficientnet_lite0(
    *, local_dir: str | os.PathLike[str] | None = None, notice: Notice | None = None
) -> dict[str, np.ndarray]:
    """EfficientNet-Lite0, trained on ImageNet-1k: 4.65 million parameters.

    The file is a PyTorch pickle, pinned by its hash; it is read by an unpickler that
    knows tensors and nothing else, without PyTorch.

    Args:
        local_dir: A directory that holds the file.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Arrays by the keys of the PyTorch port, which
        `lowrank.models.efficientnet_from_torch` takes. Images are to be float32 RGB
        `[batch, height, width, 3]`, each channel less its mean `(0.485, 0.456, 0.406)`
        and divided by `(0.229, 0.224, 0.225)`.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        Tan and Le, EfficientNet, 2019, arXiv:1905.11946.
    """
    (path,) = fetch(EFFICIENTNET_LITE0, local_dir=local_dir, notice=notice).values()
    return read_torch(path)


def _directory(
    artifact: Artifact,
    local_dir: str | os.PathLike[str] | None,
    notice: Notice | None,
) -> Path:
    paths = fetch(artifact, local_dir=local_dir, notice=notice)
    return paths["model.safetensors"].parent
