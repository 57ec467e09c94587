"""Splits and shuffles that depend on content and a seed, on nothing else.

Every random choice is a hash: BLAKE2 of the seed and of a name, expanded by the
splitmix64 finaliser where many numbers are needed. So a split is the same on every
machine, for every NumPy, and whatever the order of the lines in a file.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from hashlib import blake2b

import numpy as np

FRACTIONS = (0.7, 0.1, 0.2)
"""Shares of train, valid and test."""

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_MIX = (
    (np.uint64(30), np.uint64(0xBF58476D1CE4E5B9)),
    (np.uint64(27), np.uint64(0x94D049BB133111EB)),
)


def digest(seed: int, *names: object) -> int:
    """64 bits from a seed and any number of names."""
    text = "\x1f".join((str(int(seed)), *map(str, names)))
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "big")


def random_bits(n: int, seed: int, *names: object) -> np.ndarray:
    """`n` numbers of 64 random bits, `[n]` uint64."""
    z = np.arange(1, n + 1, dtype=np.uint64) * _GOLDEN
    z += np.uint64(digest(seed, *names))
    for shift, factor in _MIX:
        z = (z ^ (z >> shift)) * factor
    return z ^ (z >> np.uint64(31))


def uniform(n: int, seed: int, *names: object) -> np.ndarray:
    """`n` numbers in [0, 1), `[n]` float64."""
    return (random_bits(n, seed, *names) >> np.uint64(11)) * 2.0**-53


def permutation(n: int, seed: int, *names: object) -> np.ndarray:
    """The numbers below `n` in random order, `[n]` int64."""
    return np.argsort(random_bits(n, seed, *names), kind="stable")


def join_groups(
    keys: Sequence[str], names: Sequence[str], pairs: Iterable[tuple[int, int]]
) -> list[str]:
    """The finest groups that hold together equal keys and the given pairs.

    Args:
        keys: One key per example.
        names: One name per example, of which the least names its group: a name that
            does not depend on the order of the examples.
        pairs: Positions of examples that belong together.

    Returns:
        The name of the group of every example.
    """
    parent = list(range(len(keys)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    first: dict[str, int] = {}
    for i, key in enumerate(keys):
        parent[root(i)] = root(first.setdefault(key, i))
    for i, j in pairs:
        parent[root(i)] = root(j)
    roots = [root(i) for i in range(len(parent))]
    least: dict[int, str] = {}
    for r, name in zip(roots, names, strict=True):
        least[r] = min(least.get(r, name), name)
    return [least[r] for r in roots]


def assign(
    labels: Sequence[str],
    groups: Sequence[str],
    seed: int,
    fractions: Sequence[float] = FRACTIONS,
) -> np.ndarray:
    """Deals whole groups to splits, so that every split has its share of each class.

    Groups come in the order of their hash; each goes to the split that lacks most of
    the group's classes, where what is lacking is counted as a share of the class. With
    groups of one example every split is within one example of its share of each class.

    Args:
        labels: One class name per example.
        groups: One group name per example.
        seed: A different seed, a different split.
        fractions: The shares, which sum to one.

    Returns:
        The number of the split for every example, `[n]` int64.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for i, group in enumerate(groups):
        members[group].append(i)
    total = Counter(labels)
    missing = [{c: share * n for c, n in total.items()} for share in fractions]
    out = np.empty(len(labels), np.int64)
    for group in sorted(members, key=lambda g: (digest(seed, "split", g), g)):
        count = Counter(labels[i] for i in members[group])
        need = [sum(n * m[c] / total[c] for c, n in count.items()) for m in missing]
        best = need.index(max(need))
        for c, n in count.items():
            missing[best][c] -= n
        out[members[group]] = best
    return out
