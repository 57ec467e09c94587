"""Small made-up twins of the real data: same form, learnable, no files, no network.

Every loader returns its twin for `synthetic=True`; the rows of a text twin pass
through the same cleaning and splitting as real ones. Images show the pattern of their
class under noise; texts hold invented words that only their class uses, among common
ones. `wordpiece_tokenizer_file` writes a tokenizer that knows all these words.
"""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.data._classes import FILES, SENTIMENT, SPAM, TOPICS, TREC_FINE
from benchmarks.data._dataset import Dataset, Row, Split
from benchmarks.data._splits import digest, permutation, uniform

ORIGIN = ("none: made up", "made up, in the form of the real data")
"""Licence and source of every twin."""
IMAGES = {"train": 400, "valid": 100, "test": 200}
"""Images in each split of a twin."""
TEXTS = 600
"""Texts of a twin before cleaning, or 12 per class if that is more."""

_COMMON = (
    "the a an of to in and is was it this that with for on at by from as one two some "
    "very quite not never often here there now then who what when where why how said "
    "made went came day time people thing place"
).split()
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789"
_MARKS = ".,:;!?'\"()-"
_TASKS = (
    "trec",
    "sms_spam",
    "sentiment_movie",
    "sentiment_amazon",
    "sentiment_tweets",
    "sentiment_nyt",
    "wordnet_topics",
    "wordnet_files",
)
_GROUPED = ("sentiment_amazon", "sentiment_nyt")


def images(name: str, classes: tuple[str, ...], seed: int = 0) -> Dataset:
    """Images `[n, 28, 28]` of uint8, each class one pattern, split by `IMAGES`.

    The patterns depend on `name` only: another seed gives other noise.

    Args:
        name: The data set that this is a twin of.
        classes: Names of the classes; examples are spread over them evenly.
        seed: Chooses the noise and the order.

    Returns:
        The twin.

    Example:
        >>> images("mnist", tuple("0123456789")).train.x.shape
        (400, 28, 28)
    """
    pattern = uniform(len(classes) * 49, 0, "pattern", name)
    pattern = pattern.reshape(-1, 7, 7).repeat(4, axis=1).repeat(4, axis=2)
    splits = []
    for part, n in IMAGES.items():
        y = permutation(n, seed, name, part).astype(np.int32) % len(classes)
        noise = uniform(n * 784, seed, "noise", name, part).reshape(n, 28, 28)
        x = (255 * (0.6 * pattern[y] + 0.4 * noise)).astype(np.uint8)
        splits.append(Split(x, y))
    licence, source = ORIGIN
    train, valid, test = splits
    return Dataset(name, train, valid, test, classes, licence, source, synthetic=True)


def keywords(task: str, label: str) -> list[str]:
    """The invented words of a class: four, of which domains of sentiment share two.

    A fine class of questions shares two words with its coarse class.
    """
    shared = task.split("_")[0], label.partition(":")[0]
    return [_invent(*shared, i) for i in (0, 1)] + [
        _invent("own", task, label, i) for i in (0, 1)
    ]


def rows(task: str, labels: Sequence[str], seed: int = 0) -> list[Row]:
    """Made-up texts, as a file would have them.

    One in fifteen is followed by a copy of it, with other case and spaces. The
    domains that have documents get four texts in each.

    Args:
        task: Name of the data set that this is a twin of.
        labels: Classes; texts are spread over them evenly.
        seed: Chooses the words.
    """
    out = []
    for i in range(max(TEXTS, 12 * len(labels))):
        label = labels[i % len(labels)]
        group = f"{i // 4}" if task in _GROUPED else ""
        text = _sentence(keywords(task, label), seed, task, i)
        out.append(Row(text, label, group))
        if i % 15 == 0:
            out.append(Row(text.upper().replace(" ", "  "), label, group))
    return out


def sentence(task: str, *names: object) -> str:
    """One made-up sentence, with the words of a task's first class; `names` choose."""
    label = TREC_FINE[0] if task == "trec" else SPAM[0]
    return _sentence(keywords(task, label), 0, *names)


def vocabulary() -> list[str]:
    """Word pieces that spell every synthetic text, special tokens first."""
    labels = {
        "trec": TREC_FINE,
        "sms_spam": SPAM,
        "wordnet_topics": TOPICS,
        "wordnet_files": FILES,
    }
    words = list(_COMMON)
    for task in _TASKS:
        for label in labels.get(task, SENTIMENT):
            words += keywords(task, label)
    pieces = [*_LETTERS, *(f"##{c}" for c in _LETTERS), *_MARKS]
    return list(dict.fromkeys([*_SPECIAL, *pieces, *words]))


def wordpiece_tokenizer_file(path: str | os.PathLike[str]) -> Path:
    """Writes a `tokenizer.json` in BERT's form that knows the synthetic texts.

    Lower case, `[CLS] text [SEP]`, padding token 0; words not in the vocabulary are
    spelled letter by letter.

    Args:
        path: The file to write; its directory is made if need be.

    Returns:
        The path.
    """
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

    ids = {piece: i for i, piece in enumerate(vocabulary())}
    tokenizer = Tokenizer(models.WordPiece(ids, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(t, ids[t]) for t in ("[CLS]", "[SEP]")],
    )
    tokenizer.add_special_tokens(list(_SPECIAL))
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(path))
    return path


def _invent(*names: object) -> str:
    """A word of three syllables that depends on the names."""
    number = digest(0, "word", *names)
    word = ""
    for _ in range(3):
        number, consonant = divmod(number, 16)
        number, vowel = divmod(number, 5)
        word += "bdfgklmnprstvwxz"[consonant] + "aeiou"[vowel]
    return word


def _sentence(keys: Sequence[str], seed: int, *names: object) -> str:
    """Five to thirty common words with two to four keywords among them."""
    draw = uniform(40, seed, "sentence", *names)
    words: list[str] = [
        _COMMON[int(u * len(_COMMON))] for u in draw[: 5 + int(draw[36] * 26)]
    ]
    for u, v in draw[[37, 38, 39, 35, 34, 33, 32, 31]].reshape(4, 2)[
        : 2 + int(draw[36] * 2.99)
    ]:
        words.insert(int(v * len(words)), keys[int(u * len(keys))])
    return " ".join(words)
