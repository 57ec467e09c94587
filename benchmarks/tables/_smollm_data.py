"""Examples of both corpora, and several of them packed into each row of tokens."""

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np

from benchmarks.data import austen, film_dialogue
from benchmarks.data._splits import permutation

CORPORA = {"austen": "Jane Austen", "dialogue": "film dialogue"}
NOVELS = {
    "train": ("emma", "mansfieldpark", "prideprejudice", "sensesensibility"),
    "valid": ("northangerabbey",),
    "test": ("persuasion",),
}
SHARES = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}
START, OPEN, CLOSE = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
NOBODY = -1  # the owner of padding


class Example(NamedTuple):
    """Tokens of one example.

    Attributes:
        ids: Its tokens.
        start: Where its completion begins: the tokens before it are given.
    """

    ids: Sequence[int]
    start: int


class Packed(NamedTuple):
    """Rows of tokens.

    Attributes:
        ids: `[rows, length]` int32, zeros at the end.
        owner: `[rows, length]` int32, the number of the example that each token belongs
            to, -1 where there is none: the model's `segment_ids`.
        weight: `[rows, length]` float32, 1 at tokens of completions.
    """

    ids: np.ndarray
    owner: np.ndarray
    weight: np.ndarray

    def rows(self, start: int, stop: int) -> "Packed":
        """Some of the rows."""
        return Packed(*(part[start:stop] for part in self))


def pack(examples: Iterable[Example], rows: int, length: int) -> Packed:
    """Put examples, in order, into the first row that has room.

    It ends at the first example that needs a further row, so that long and short ones
    are used as often as they come.

    Args:
        examples: Each no longer than `length`.
        rows: Rows to fill.
        length: Tokens of a row.

    Returns:
        `rows` rows, some tokens of which are padding.

    Raises:
        ValueError: If the examples do not fill the rows.
    """
    ids = np.zeros((rows, length), np.int32)
    owner = np.full((rows, length), NOBODY, np.int32)
    weight = np.zeros((rows, length), np.float32)
    used = np.zeros(rows, int)
    for number, example in enumerate(examples):
        size = len(example.ids)
        free = np.flatnonzero(used + size <= length)
        if not len(free):
            return Packed(ids, owner, weight)
        row = free[0]
        place = slice(used[row], used[row] + size)
        ids[row, place] = example.ids
        owner[row, place] = number
        weight[row, place] = np.arange(size) >= example.start
        used[row] += size
    raise ValueError(f"pack: too few examples for {rows} rows of {length}.")


class Corpora:
    """Examples of both corpora, in tokens."""

    def __init__(self, tokenizer: Any, longest: int, shortest: int, synthetic: bool):
        self.tokenizer = tokenizer
        self.longest, self.shortest, self.synthetic = longest, shortest, synthetic
        self.examples = cache(self._examples)

    def packed(
        self, corpus: str, split: str, rows: int, length: int, seed: int = 0
    ) -> Packed:
        """Rows of examples that a seed chooses."""
        found = self.examples(corpus, split)
        order = permutation(len(found), seed, corpus, split)
        return pack((found[i] for i in order), rows, length)

    def prompt(self, corpus: str, text: str) -> list[int]:
        """The tokens before a completion."""
        if corpus == "austen":
            return self._encode(START + text)
        return self._encode(f"{OPEN}user\n{text}{CLOSE}\n{OPEN}assistant\n")

    def end(self) -> int:
        """The token that ends a reply."""
        return self.tokenizer.token_to_id(CLOSE)

    def _examples(self, corpus: str, split: str) -> list[Example]:
        make = self._passages if corpus == "austen" else self._replies
        return make(split)

    def _passages(self, split: str) -> list[Example]:
        """Beginnings of paragraphs; the second half is the completion."""
        novels = austen(synthetic=self.synthetic)
        texts = [START + text for name in NOVELS[split] for text in novels[name]]
        cut = [ids[: self.longest] for ids in self._encode_all(texts)]
        return [
            Example(ids, 1 + len(ids) // 2) for ids in cut if len(ids) >= self.shortest
        ]

    def _replies(self, split: str) -> list[Example]:
        """Statements; the reply and the token that ends it are the completion."""
        pairs = film_dialogue(synthetic=self.synthetic)
        first, last = (round(share * len(pairs)) for share in SHARES[split])
        pairs = pairs[first:last]
        asked = self._encode_all(
            f"{OPEN}user\n{pair.statement}{CLOSE}\n{OPEN}assistant\n" for pair in pairs
        )
        said = self._encode_all(pair.reply + CLOSE for pair in pairs)
        found = [Example([*a, *b], len(a)) for a, b in zip(asked, said, strict=True)]
        return [own for own in found if len(own.ids) <= self.longest]

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _encode_all(self, texts: Iterable[str]) -> list[list[int]]:
        found = self.tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]
