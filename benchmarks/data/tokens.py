"""Texts to arrays of token numbers."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np


class Tokens(NamedTuple):
    """Token numbers of `n` texts.

    Attributes:
        ids: `[n, longest]` int32, padded with zeros at the end.
        lengths: `[n]` int32; `ids[i, :lengths[i]]` is the text.
    """

    ids: np.ndarray
    lengths: np.ndarray

    def batch(self, index: np.ndarray, length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token numbers and mask of some texts, cut or padded to one length.

        Args:
            index: Which texts, of any shape: `[batch]` or `[tasks, batch]`.
            length: The length of all rows.

        Returns:
            `ids [*index.shape, length]` int32 and `mask` of that shape, True where
            there is a token.
        """
        ids = self.ids[index][..., :length]
        short = length - ids.shape[-1]
        if short > 0:
            ids = np.pad(ids, [(0, 0)] * (ids.ndim - 1) + [(0, short)])
        mask = np.arange(length) < self.lengths[index][..., None]
        return ids, mask


def load_tokenizer(path: str | os.PathLike[str]) -> Any:
    """The tokenizer of a file, or of a directory with a `tokenizer.json`.

    Padding and truncation that the file asks for are switched off.
    """
    from tokenizers import Tokenizer

    path = Path(path)
    tokenizer = Tokenizer.from_file(
        str(path / "tokenizer.json" if path.is_dir() else path)
    )
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(texts: Sequence[str], tokenizer: Any, max_length: int = 128) -> Tokens:
    """Token numbers of texts, special tokens included.

    Args:
        texts: The texts.
        tokenizer: As `load_tokenizer` gives it.
        max_length: Longer texts are cut; their last special token is kept.

    Returns:
        `Tokens`, as wide as the longest text.
    """
    tokenizer.enable_truncation(max_length)
    try:
        encoded = [e.ids for e in tokenizer.encode_batch(list(texts))]
    finally:
        tokenizer.no_truncation()
    lengths = np.array([len(row) for row in encoded], np.int32)
    ids = np.zeros((len(encoded), max(lengths, default=0)), np.int32)
    for row, numbers in zip(ids, encoded, strict=True):
        row[: len(numbers)] = numbers
    return Tokens(ids, lengths)
