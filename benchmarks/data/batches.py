"""Batches of few distinct shapes, so that a jitted step is compiled few times."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from benchmarks.data._splits import permutation

EDGES = (16, 32, 64, 128)
"""Lengths to which texts are padded, by default."""


class Batch(NamedTuple):
    """Which examples make a batch.

    Attributes:
        index: `[batch]` int64; the last batch repeats an example where it is not full.
        weight: `[batch]` float32, 1 for an example, 0 for such a repetition: averages
            weighted by it count every example once.
        length: The length to pad texts to; 0 where there is none.
    """

    index: np.ndarray
    weight: np.ndarray
    length: int = 0


class TaskBatch(NamedTuple):
    """A batch for each of several tasks.

    Attributes:
        length: The length to pad all texts to.
        index: `[tasks, batch]` int64: examples, numbered within each task.
    """

    length: int
    index: np.ndarray


def fixed_batches(
    n: int, batch_size: int, *, seed: int | None = None
) -> Iterator[Batch]:
    """All `n` examples once, in batches of one size.

    Args:
        n: Number of examples.
        batch_size: Size of every batch, the last one included.
        seed: Shuffles; None keeps the order (for evaluation). Give each epoch its own.

    Returns:
        `ceil(n / batch_size)` batches.

    Example:
        >>> [b.index.tolist() for b in fixed_batches(3, 2)]
        [[0, 1], [2, 2]]
    """
    _positive("fixed_batches", batch_size=batch_size)
    order = np.arange(n) if seed is None else permutation(n, seed, "fixed")
    yield from _chunks(order, batch_size, 0)


def length_buckets(
    token_lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    *,
    edges: Sequence[int] = EDGES,
    seed: int | None = None,
) -> Iterator[Batch]:
    """All examples once, each batch from texts of about one length.

    A text is padded to the least edge that is not below its length; longer than the
    last edge, it is to be cut to it. There are at most `len(edges)` shapes.

    Args:
        token_lengths: Tokens in each text.
        batch_size: Size of every batch; the last of each length may hold repetitions
            of weight zero.
        edges: The lengths, ascending.
        seed: Shuffles texts and batches; None goes from short to long, in order.

    Returns:
        Batches with `length` set.

    Example:
        >>> [(b.length, b.index.tolist()) for b in length_buckets(
        ...     [3, 9, 2], 2, edges=(4, 16))]
        [(4, [0, 2]), (16, [1, 1])]
    """
    _positive("length_buckets", batch_size=batch_size)
    bucket = _bucket("length_buckets", token_lengths, edges)
    batches = []
    for i, edge in enumerate(edges):
        index = np.flatnonzero(bucket == i)
        if seed is not None:
            index = index[permutation(len(index), seed, "bucket", i)]
        batches += _chunks(index, batch_size, int(edge))
    if seed is not None:
        batches = [batches[i] for i in permutation(len(batches), seed, "order")]
    yield from batches


def multi_task_batches(
    lengths_per_task: Sequence[Sequence[int] | np.ndarray],
    batch_size: int,
    steps: int,
    *,
    edges: Sequence[int] = EDGES,
    seed: int = 0,
) -> Iterator[TaskBatch]:
    """Batches for several tasks at once, of one shape `[tasks, batch, length]` a step.

    Every task uses each of its own examples equally often over the run (to within
    one): a task with few examples goes round them more often, one with more than
    `steps * batch_size` uses a random selection once. No text is cut that fits the
    last edge. The tasks share one sequence of lengths, with as many steps of each
    length as the task with the longest texts needs; the other tasks put shorter texts
    into what they do not need, so that padding is the price, and not a distorted
    sample.

    Args:
        lengths_per_task: For each task, the tokens in each of its texts.
        batch_size: Examples of each task in a step.
        steps: Number of steps.
        edges: The lengths, ascending; longer texts are to be cut to the last.
        seed: Chooses the order of examples and of lengths.

    Returns:
        `steps` batches, in random order of length.

    Raises:
        ValueError: If a task has no examples, a size is below 1, or the edges do not
            ascend.

    Example:
        >>> for b in multi_task_batches([[3, 9], [2]], 2, 1, edges=(4, 16)):
        ...     print(b.length, sorted(b.index[0].tolist()), b.index[1].tolist())
        16 [0, 1] [0, 0]
    """
    who = "multi_task_batches"
    _positive(who, batch_size=batch_size, steps=steps)
    empty = [t for t, lengths in enumerate(lengths_per_task) if len(lengths) == 0]
    if empty or not lengths_per_task:
        raise ValueError(f"{who}: tasks {empty} have no examples. Leave them out.")
    buckets = [_bucket(who, lengths, edges) for lengths in lengths_per_task]
    draws = [
        _rounds(len(bucket), steps * batch_size, seed, t)
        for t, bucket in enumerate(buckets)
    ]
    sequence = _sequence([b[d] for b, d in zip(buckets, draws, strict=True)], steps)
    sequence = sequence[permutation(steps, seed, "steps")]
    slots = np.repeat(sequence, batch_size)
    index = np.stack(
        [
            _fill(slots, bucket, draw, seed, t)
            for t, (bucket, draw) in enumerate(zip(buckets, draws, strict=True))
        ]
    ).reshape(len(draws), steps, batch_size)
    for step, bucket in enumerate(sequence):
        yield TaskBatch(int(edges[bucket]), index[:, step])


def _rounds(n: int, count: int, seed: int, task: int) -> np.ndarray:
    """`count` of `n` examples: whole shuffled rounds, then a part of one."""
    rounds = -(-count // n)
    parts = [permutation(n, seed, "round", task, r) for r in range(rounds)]
    return np.concatenate(parts)[:count]


def _sequence(drawn: Sequence[np.ndarray], steps: int) -> np.ndarray:
    """Ascending buckets `[steps]` such that every task's draws fit, longest first.

    Sorted by bucket, the draws of each task are cut into batches; a step must be as
    long as the longest text that any task has in its batch.
    """
    ranked = np.stack([np.sort(d).reshape(steps, -1)[:, -1] for d in drawn])
    return ranked.max(axis=0)


def _fill(
    slots: np.ndarray, bucket: np.ndarray, draw: np.ndarray, seed: int, task: int
) -> np.ndarray:
    """Puts a task's draws into the slots: long ones where there is room for them.

    Draws and slots are matched in the order of their buckets, ties at random: first
    among draws, so that equal ones mix, then among the slots of one length, so that
    the long texts of a task that has few are spread over all long steps.
    """
    order = np.argsort(bucket[draw], kind="stable")
    shuffled = permutation(len(slots), seed, "slots", task)
    place = shuffled[np.argsort(slots[shuffled], kind="stable")]
    out = np.empty(len(slots), np.int64)
    out[place] = draw[order]
    return out


def _chunks(order: np.ndarray, batch_size: int, length: int) -> list[Batch]:
    """Batches of one size; the last is filled with its last example at weight 0."""
    out = []
    for start in range(0, len(order), batch_size):
        index = order[start : start + batch_size]
        weight = (np.arange(batch_size) < len(index)).astype(np.float32)
        index = np.pad(index, (0, batch_size - len(index)), mode="edge")
        out.append(Batch(index, weight, length))
    return out


def _bucket(
    who: str, lengths: Sequence[int] | np.ndarray, edges: Sequence[int]
) -> np.ndarray:
    """For every text the number of its edge."""
    if not len(edges) or edges[0] < 1 or (np.diff(edges) <= 0).any():
        raise ValueError(
            f"{who}: edges {tuple(edges)} are wrong: expected ascending whole numbers, "
            "at least one, from 1."
        )
    return np.minimum(np.searchsorted(edges, lengths), len(edges) - 1)


def _positive(who: str, **sizes: int) -> None:
    wrong = [f"{name}={value}" for name, value in sizes.items() if value < 1]
    if wrong:
        raise ValueError(f"{who}: {', '.join(wrong)}: expected at least 1.")
