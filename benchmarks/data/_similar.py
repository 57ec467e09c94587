"""Which texts are so alike that one in the test split would be known from another."""

import math
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence

SHARE = 0.8
"""Texts that have this share of their words in common are alike."""


def normalise(text: str) -> str:
    """A text without what a copy changes: case, spaces, and which digits it has."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(re.sub(r"\d+", "0", text).split())


def alike(texts: Sequence[str], share: float = SHARE) -> Iterator[tuple[int, int]]:
    """All pairs of texts whose sets of words overlap in at least `share`.

    The overlap is Jaccard's: common words over words of either, after `normalise`,
    without punctuation. If two sets overlap so much, the first `n - ceil(share n) + 1`
    of the `n` words of each, rarest first, have a word in common; only such pairs are
    compared, which makes it fast.

    Args:
        texts: The texts.
        share: In (0, 1].

    Returns:
        Pairs of positions. A text without any word is like no other.

    Example:
        >>> list(alike(["Call me now", "call: me, now!", "Call them"]))
        [(1, 0)]

    References:
        Bayardo et al., Scaling up all pairs similarity search, WWW 2007.
    """
    words = [set(re.findall(r"[^\W_]+", normalise(text))) for text in texts]
    frequency = Counter(word for own in words for word in own)
    seen: dict[str, list[int]] = defaultdict(list)
    for i in sorted(range(len(words)), key=lambda i: len(words[i])):
        n = len(words[i])
        least = math.ceil(share * n - 1e-9)
        rarest = sorted(words[i], key=lambda w: (frequency[w], w))[: n - least + 1]
        for j in {j for w in rarest for j in seen[w] if len(words[j]) >= least}:
            common = len(words[i] & words[j])
            if common >= share * (n + len(words[j]) - common) - 1e-9:
                yield i, j
        for word in rarest:
            seen[word].append(i)
