"""Text to padded token ids, with the special tokens kept."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer


def load_tokenizer(directory: str | os.PathLike[str]) -> Tokenizer:
    """Read `tokenizer.json` with its own padding and truncation switched off.

    Args:
        directory: Folder that holds `tokenizer.json`.

    Returns:
        A tokenizer that neither pads nor truncates, whatever the file asks for;
        `encode` does both.

    Raises:
        FileNotFoundError: If there is no `tokenizer.json`.
        ValueError: If the file is no tokenizer.

    Example:
        >>> import tempfile
        >>> from tokenizers import Tokenizer, models
        >>> from lowrank.models import load_tokenizer
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     tiny = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
        ...     tiny.enable_padding(length=128)
        ...     tiny.save(f"{folder}/tokenizer.json")
        ...     tokenizer = load_tokenizer(folder)
        >>> tokenizer.padding is None
        True

    References:
        The `tokenizers` library: `Tokenizer.from_file`.
    """
    file = Path(directory) / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"load_tokenizer: no file at '{file}': expected a tokenizer.json. "
            "Pass the folder of a checkpoint that ships one."
        )
    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare Exception
        raise ValueError(
            f"load_tokenizer: cannot read '{file}': expected a tokenizer, got "
            f"{error}. Fetch the file again."
        ) from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def encode(
    tokenizer: Tokenizer, texts: Sequence[str], length: int
) -> tuple[np.ndarray, np.ndarray]:
    """Turn texts into ids of one length: `[CLS] tokens [SEP] [PAD] ...`.

    Truncation takes tokens of the text, so the special tokens always stay.

    Args:
        tokenizer: One that neither pads nor truncates (see `load_tokenizer`).
        texts: The texts, `n` of them.
        length: Tokens per text, special ones counted, at least their number.

    Returns:
        `(ids, mask)`, both int32 `[n, length]`; the mask is 1 at tokens and 0 at
        padding. Padding is `[PAD]`, or 0 if the vocabulary has none.

    Raises:
        TypeError: If `texts` is a single string.
        ValueError: If `length` has no room for the special tokens, or the tokenizer
            pads or truncates by itself.

    Example:
        >>> from tokenizers import Tokenizer, models, pre_tokenizers
        >>> from lowrank.models import encode
        >>> tokenizer = Tokenizer(models.WordLevel({"a": 1, "b": 2}, unk_token="a"))
        >>> tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        >>> ids, mask = encode(tokenizer, ["a b", "b b b b b"], 3)
        >>> ids.tolist(), mask.tolist()
        ([[1, 2, 0], [2, 2, 2]], [[1, 1, 0], [1, 1, 1]])

    References:
        The `tokenizers` library: `Encoding.truncate`, `Tokenizer.post_process`.
    """
    if isinstance(texts, str):
        raise TypeError(
            "encode: wrong texts: expected a sequence of strings, got one string. "
            "Pass [text]."
        )
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        raise ValueError(
            "encode: the tokenizer pads or truncates by itself: expected neither. "
            "Call no_padding() and no_truncation(), or use load_tokenizer."
        )
    special = tokenizer.num_special_tokens_to_add(False)
    if length < max(special, 1):
        raise ValueError(
            f"encode: wrong length: expected at least {max(special, 1)}, got "
            f"{length}. Leave room for the special tokens."
        )
    ids = np.full((len(texts), length), tokenizer.token_to_id("[PAD]") or 0, np.int32)
    mask = np.zeros((len(texts), length), np.int32)
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    for row, encoding in enumerate(encodings):
        encoding.truncate(length - special)
        tokens = tokenizer.post_process(encoding, None, True).ids
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
    return ids, mask
