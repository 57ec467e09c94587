"""Tokens of one length, special ones kept."""

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from lowrank.models import encode, load_tokenizer

WORDS = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "a", "b", "c", "d"]


@pytest.fixture
def folder(tmp_path):
    """A tokenizer file that asks for padding and truncation to 128."""
    vocabulary = {word: i + 10 for i, word in enumerate(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", 12), ("[CLS]", 11))
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(128)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_padding_and_truncation_of_the_file_are_off(folder):
    tokenizer = load_tokenizer(folder)
    assert tokenizer.encode("a").ids == [11, 14, 12]
    assert len(tokenizer.encode("a " * 200).ids) == 202


def test_special_tokens_stay_at_every_length(folder):
    tokenizer = load_tokenizer(folder)
    ids, mask = encode(tokenizer, ["a b", "a b c d", "", "a z c"], 5)
    assert ids.dtype == mask.dtype == np.int32
    np.testing.assert_array_equal(
        ids,
        [
            [11, 14, 15, 12, 10],
            [11, 14, 15, 16, 12],
            [11, 12, 10, 10, 10],
            [11, 14, 13, 16, 12],
        ],
    )
    np.testing.assert_array_equal(mask, ids != 10)
    assert encode(tokenizer, ["a b"], 2)[0].tolist() == [[11, 12]]
    assert encode(tokenizer, [], 4)[0].shape == (0, 4)


def test_wrong_arguments_are_refused(folder):
    tokenizer = load_tokenizer(folder)
    with pytest.raises(TypeError, match=r"encode: wrong texts.*Pass \[text\]"):
        encode(tokenizer, "a b", 4)
    with pytest.raises(ValueError, match=r"wrong length: expected at least 2, got 1"):
        encode(tokenizer, ["a"], 1)
    tokenizer.enable_padding()
    with pytest.raises(ValueError, match=r"pads or truncates by itself"):
        encode(tokenizer, ["a"], 4)


def test_wrong_files_are_refused(folder, tmp_path):
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match=r"load_tokenizer: cannot read '.*json'"):
        load_tokenizer(folder)
    with pytest.raises(FileNotFoundError, match=r"no file at '.*tokenizer.json'"):
        load_tokenizer(tmp_path / "absent")
