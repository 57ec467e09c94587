"""Batches: every example its due, few shapes, tokens cut and padded."""

import doctest
from collections import Counter

import numpy as np
import pytest

from benchmarks.data import _similar, batches, catalog, synthetic
from benchmarks.data._splits import uniform
from benchmarks.data.batches import (
    fixed_batches,
    length_buckets,
    multi_task_batches,
)
from benchmarks.data.tokens import Tokens, encode, load_tokenizer

EDGES = (4, 8, 16)


def lengths(n, low, high, name):
    return (low + uniform(n, 0, name) * (high - low)).astype(int)


@pytest.mark.parametrize("module", [batches, catalog, synthetic, _similar])
def test_examples_in_docstrings(module):
    result = doctest.testmod(module)
    assert result.attempted
    assert not result.failed


@pytest.mark.parametrize("seed", [None, 3])
@pytest.mark.parametrize("n", [0, 1, 8, 11])
def test_fixed_batches_weigh_every_example_once(n, seed):
    found = list(fixed_batches(n, 4, seed=seed))
    assert [b.index.shape for b in found] == [(4,)] * -(-n // 4)
    used = Counter(
        int(i) for b in found for i, w in zip(b.index, b.weight, strict=True) if w
    )
    assert used == Counter(range(n))
    if seed is None and n:
        assert np.concatenate([b.index for b in found])[:n].tolist() == list(range(n))


def test_fixed_batches_shuffle_by_seed():
    def order(seed):
        return [b.index.tolist() for b in fixed_batches(64, 8, seed=seed)]

    assert order(1) == order(1)
    assert order(1) != order(2)
    assert order(1) != order(None)


@pytest.mark.parametrize("seed", [None, 5])
def test_length_buckets_pad_least_and_weigh_every_text_once(seed):
    token_lengths = lengths(200, 1, 20, "buckets")
    used = Counter()
    for batch in length_buckets(token_lengths, 16, edges=EDGES, seed=seed):
        assert batch.index.shape == batch.weight.shape == (16,)
        for i, weight in zip(batch.index, batch.weight, strict=True):
            wanted = next((e for e in EDGES if e >= token_lengths[i]), EDGES[-1])
            assert batch.length == wanted
            used[int(i)] += int(weight)
    assert used == Counter(range(200))


def test_length_buckets_mix_the_lengths_when_shuffled():
    token_lengths = lengths(400, 1, 17, "mix")
    order = [b.length for b in length_buckets(token_lengths, 8, edges=EDGES, seed=0)]
    assert order != sorted(order)
    plain = [b.length for b in length_buckets(token_lengths, 8, edges=EDGES)]
    assert plain == sorted(order)


def test_multi_task_uses_every_example_of_a_task_equally_often():
    tasks = [lengths(70, 1, 5, "a"), lengths(11, 3, 30, "b"), lengths(900, 1, 17, "c")]
    steps, size = 40, 8
    found = list(multi_task_batches(tasks, size, steps, edges=EDGES, seed=2))
    assert len(found) == steps
    for t, own in enumerate(tasks):
        used = np.bincount(
            np.concatenate([b.index[t] for b in found]), minlength=len(own)
        )
        assert used.max() - used.min() <= 1
        assert used.sum() == steps * size
        for batch in found:
            assert batch.index.shape == (3, size)
            fits = own[batch.index[t]] <= batch.length
            assert fits.all() or batch.length == EDGES[-1]
    order = [b.length for b in found]
    assert order != sorted(order)


def test_multi_task_takes_no_longer_steps_than_one_task_needs():
    short, long = np.full(50, 3), np.array([3] * 30 + [12] * 10)
    found = list(multi_task_batches([short, long], 4, 40, edges=EDGES, seed=0))
    # 160 draws of the second task, a quarter of them long: 40 of them, 10 steps of 4.
    assert Counter(b.length for b in found) == {16: 10, 4: 30}
    alone = list(multi_task_batches([short], 4, 40, edges=EDGES, seed=0))
    assert Counter(b.length for b in alone) == {4: 40}


def test_multi_task_spreads_the_few_long_texts_over_the_long_steps():
    many, few = np.full(64, 12), np.array([3] * 60 + [12] * 4)
    found = list(multi_task_batches([many, few], 8, 8, edges=EDGES, seed=0))
    assert max((few[b.index[1]] == 12).sum() for b in found) < 4


def test_multi_task_depends_on_the_seed():
    tasks = [lengths(30, 1, 17, "a"), lengths(30, 1, 17, "b")]

    def run(seed):
        found = multi_task_batches(tasks, 4, 6, edges=EDGES, seed=seed)
        return [(b.length, b.index.tolist()) for b in found]

    assert run(0) == run(0)
    assert run(0) != run(1)
    same = next(multi_task_batches([tasks[0]] * 2, 8, 6, edges=EDGES)).index
    assert same[0].tolist() != same[1].tolist()  # tasks draw apart


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fixed_batches(3, 0), "fixed_batches: batch_size=0: expected at least"),
        (lambda: length_buckets([1], 2, edges=(8, 4)), r"edges \(8, 4\) are wrong"),
        (lambda: length_buckets([1], 2, edges=()), r"edges \(\) are wrong"),
        (lambda: multi_task_batches([[1], []], 2, 1), r"tasks \[1\] have no examples"),
        (lambda: multi_task_batches([[1]], 0, 0), "batch_size=0, steps=0: expected"),
    ],
)
def test_messages(call, message):
    with pytest.raises(ValueError, match=message):
        list(call())


# -- tokens


def test_encode_cuts_pads_and_forgets_the_file_settings(tmp_path):
    path = synthetic.wordpiece_tokenizer_file(tmp_path / "tokenizer.json")
    tokenizer = load_tokenizer(path)
    tokenizer.enable_padding(length=128)
    tokenizer.enable_truncation(3)
    tokenizer.save(str(path))
    tokenizer = load_tokenizer(path)
    tokens = encode(["the day", "one two three people here now"], tokenizer, 6)
    assert tokens.lengths.tolist() == [4, 6]
    assert tokens.ids.shape == (2, 6)
    assert tokens.ids.dtype == np.int32
    assert tokens.ids[0, 4:].tolist() == [0, 0]
    assert tokenizer.id_to_token(int(tokens.ids[1, 5])) == "[SEP]"
    assert len(tokenizer.encode("the " * 50).ids) == 52  # no limit is left behind


def test_batch_of_tokens_has_the_length_asked_for():
    tokens = Tokens(np.array([[5, 6, 0], [7, 8, 9]], np.int32), np.array([2, 3]))
    ids, mask = tokens.batch(np.array([[0], [1]]), 2)
    assert ids.tolist() == [[[5, 6]], [[7, 8]]]
    assert mask.all()
    ids, mask = tokens.batch(np.array([0, 1]), 4)
    assert ids.tolist() == [[5, 6, 0, 0], [7, 8, 9, 0]]
    assert mask.tolist() == [[True, True, False, False], [True, True, True, False]]
