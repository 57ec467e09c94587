"""Hash-based splits and shuffles, similar texts, the synthetic twins: no leaks."""

from collections import Counter
from itertools import combinations, permutations

import numpy as np
import pytest

from benchmarks.data import CATALOG, load
from benchmarks.data import synthetic as twins
from benchmarks.data._similar import alike, normalise
from benchmarks.data._splits import (
    assign,
    digest,
    join_groups,
    permutation,
    random_bits,
    uniform,
)
from benchmarks.data.catalog import WITH_SPLITS
from benchmarks.data.text import Row, _build

SETS = [name for name, entry in CATALOG.items() if entry.kind in WITH_SPLITS]
TEXTS = [name for name, entry in CATALOG.items() if entry.kind == "text"]


def check_no_leak(dataset):
    """No example, text, group or near copy is in two splits."""
    splits = dataset.splits.values()
    if dataset.train.groups is None:
        seen = [{image.tobytes() for image in split.x} for split in splits]
        assert not any(a & b for a, b in combinations(seen, 2))
        return
    for key in (lambda s: s.groups, lambda s: map(normalise, s.x)):
        seen = [set(key(split)) for split in splits]
        assert not any(a & b for a, b in combinations(seen, 2))
    texts = [text for split in splits for text in split.x]
    home = [name for name, split in dataset.splits.items() for _ in split.x]
    assert all(home[i] == home[j] for i, j in alike(texts))


@pytest.mark.parametrize("name", SETS)
def test_twin_has_no_leak_and_every_class_everywhere(name):
    dataset = load(name, synthetic=True)
    check_no_leak(dataset)
    assert dataset.synthetic
    for split, counts in dataset.counts().items():
        assert min(counts.values()) > 0, split
        assert len(dataset.splits[split].x) == sum(counts.values())


@pytest.mark.parametrize("name", SETS)
def test_twin_depends_on_the_seed_only(name):
    first, again, other = (load(name, synthetic=True, seed=s) for s in (0, 0, 1))
    assert np.array_equal(first.train.x, again.train.x)
    assert np.array_equal(first.test.y, again.test.y)
    assert len(first.train.x) != len(other.train.x) or not np.array_equal(
        first.train.x, other.train.x
    )


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_image_twin_is_learnt_by_nearest_class_mean(name):
    data = load(name, synthetic=True)
    means = np.stack([data.train.x[data.train.y == c].mean(0) for c in range(10)])
    distance = ((data.test.x[:, None] - means) ** 2).sum((2, 3))
    assert (distance.argmin(1) == data.test.y).mean() > 0.95


@pytest.mark.parametrize("name", TEXTS)
def test_text_twin_is_learnt_by_counting_words(name):
    data = load(name, synthetic=True)
    count = Counter(
        (word, y)
        for text, y in zip(data.train.x, data.train.y, strict=True)
        for word in set(text.lower().split())
    )
    total = Counter(word for (word, _), n in count.items() for _ in range(n))

    def guess(text):
        share = [
            sum((count[w, c] / total[w]) ** 4 for w in set(text.split()) if total[w])
            for c in range(len(data.classes))
        ]
        return int(np.argmax(share))

    right = [guess(t) == y for t, y in zip(data.test.x, data.test.y, strict=True)]
    assert np.mean(right) > 0.6


def test_synthetic_tokenizer_knows_the_words(tmp_path):
    from benchmarks.data.tokens import load_tokenizer

    path = twins.wordpiece_tokenizer_file(tmp_path / "new" / "tokenizer.json")
    tokenizer = load_tokenizer(path.parent)
    for name in TEXTS:
        text = load(name, synthetic=True).test.x[0]
        tokens = tokenizer.encode(text).tokens
        assert tokens == ["[CLS]", *text.lower().split(), "[SEP]"]
    assert tokenizer.token_to_id("[PAD]") == 0
    assert tokenizer.encode("zq!").tokens == ["[CLS]", "z", "##q", "!", "[SEP]"]


# -- hashes: fixed numbers, so that no machine and no version splits otherwise


def splitmix64(state, n):
    """The published generator, on Python's whole numbers."""
    mask = 2**64 - 1
    for _ in range(n):
        state = (state + 0x9E3779B97F4A7C15) & mask
        z = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & mask
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & mask
        yield z ^ (z >> 31)


def test_hashes_never_change():
    assert next(splitmix64(1234567, 1)) == 6457827717110365317
    assert digest(0, "a", 1) == 11280495912935422354
    assert digest(0, "ab") != digest(0, "a", "b")
    bits = random_bits(50, 5, "x").tolist()
    assert bits == list(splitmix64(digest(5, "x"), 50))
    assert permutation(6, 0, "x").tolist() == [0, 5, 3, 2, 4, 1]


def test_permutation_and_uniform():
    assert sorted(permutation(1000, 3, "x")) == list(range(1000))
    assert permutation(1000, 3, "x").tolist() != permutation(1000, 4, "x").tolist()
    u = uniform(100_000, 0, "u")
    # Five standard errors of the mean and the variance of the uniform law.
    assert abs(u.mean() - 1 / 2) < 5 * (1 / 12 / 1e5) ** 0.5
    assert abs(u.var() - 1 / 12) < 5 * (1 / 180 / 1e5) ** 0.5
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 5 / 1e5**0.5


def test_single_examples_are_dealt_exactly():
    labels = ["a"] * 100 + ["b"] * 20
    part = assign(labels, [f"g{i}" for i in range(120)], 0)
    for label, wanted in (("a", [70, 10, 20]), ("b", [14, 2, 4])):
        chosen = part[[x == label for x in labels]]
        assert np.bincount(chosen, minlength=3).tolist() == wanted


def test_assignment_ignores_the_order_of_examples():
    labels, groups = list("aabbab" * 5), [f"g{i // 2}" for i in range(30)]
    part = dict(zip(groups, assign(labels, groups, 7), strict=True))
    back = assign(labels[::-1], groups[::-1], 7)
    assert dict(zip(groups[::-1], back, strict=True)) == part
    assert dict(zip(groups, assign(labels, groups, 8), strict=True)) != part


def test_groups_stay_whole_and_shares_hold():
    labels = [("a", "b")[i % 3 == 0] for i in range(600)]
    groups = [f"g{(i * i) % 97}" for i in range(600)]
    part = assign(labels, groups, 1)
    assert len(set(zip(groups, part, strict=True))) == len(set(groups))
    largest = max(Counter(groups).values())
    for split, share in enumerate((0.7, 0.1, 0.2)):
        assert abs((part == split).sum() - share * 600) <= largest


def test_join_groups_follows_chains_in_any_order():
    keys = ["x", "y", "x", "z", "w"]
    names = ["n0", "n1", "n2", "n3", "n4"]
    joined = join_groups(keys, names, [(1, 2)])
    assert joined == ["n0", "n0", "n0", "n3", "n4"]
    for order in permutations(range(5)):
        at = {old: new for new, old in enumerate(order)}
        again = join_groups(
            [keys[i] for i in order], [names[i] for i in order], [(at[1], at[2])]
        )
        assert [again[at[i]] for i in range(5)] == joined


def test_alike_finds_what_comparing_all_pairs_finds():
    draw = (uniform(60 * 12, 0, "words") * 14).astype(int).reshape(60, 12)
    texts = [" ".join(f"w{chr(97 + k)}" for k in row[: 3 + i % 9]) for i, row in enumerate(draw)]  # fmt: skip  # noqa: E501
    words = [set(text.split()) for text in texts]
    for share in (0.5, 0.8, 1.0):
        found = {frozenset(pair) for pair in alike(texts, share)}
        assert found == {
            frozenset((i, j))
            for i, j in combinations(range(60), 2)
            if len(words[i] & words[j]) >= share * len(words[i] | words[j])
        }
        assert share == 1.0 or found


def test_normalise_and_wordless_texts():
    assert normalise("  Call\t0800 123\u00a0NOW ") == "call 0 0 now"
    assert list(alike([":)", ":(", "!!"])) == []


# -- the cleaning of rows


def build(rows, classes=("a", "b"), **options):
    return _build("n", rows, classes, "l", "s", 0, False, **options)


def test_repeats_and_contradictions_are_dropped_and_counted():
    rows = [
        Row("one text", "a"),
        Row("one text", "a"),  # repeated
        Row("One  Text", "b"),  # near, outvoted
        Row("two 17", "a"),
        Row("TWO 4", "b"),  # a tie: both go
        Row("three", "b"),
    ]
    data = build(rows)
    kept = sorted(text for split in data.splits.values() for text in split.x)
    assert kept == ["one text", "three"]
    assert list(data.dropped.values()) == [1, 2, 1]
    assert sum(data.counts()[s]["a"] for s in data.splits) == 1
    assert "dropped: 1 repeated" in data.describe()


def test_documents_and_near_copies_stay_together():
    words = "red green blue cyan pink grey gold teal".split()
    rows = [
        Row(f"{a} {b} {c}", "a", f"{a}{b}")
        for a, b, c in permutations(words, 3)
    ]  # fmt: skip
    data = build(rows, ("a",))
    check_no_leak(data)
    texts = [Row(" ".join(words) + "!" * i, "a") for i in range(20)]
    sizes = [len(split) for split in build(texts, ("a",)).splits.values()]
    assert sorted(sizes) == [0, 0, 20]


def test_order_of_lines_does_not_matter():
    rows = [Row(f"text {chr(97 + i % 26)} {'x' * i}", "ab"[i % 2]) for i in range(80)]
    assert build(rows).test.x == build(rows[::-1]).test.x


def test_take_keeps_texts_labels_and_groups_aligned():
    train = load("trec", synthetic=True).train
    for index in ([3, 1], slice(2, 6), np.array([5])):
        rows = np.arange(len(train))[index]
        some = train.take(index)
        assert some.x == [train.x[i] for i in rows]
        assert some.y.tolist() == train.y[rows].tolist()
        assert list(some.groups) == [train.groups[i] for i in rows]
    assert load("mnist", synthetic=True).train.take([7, 2]).x.shape == (2, 28, 28)
