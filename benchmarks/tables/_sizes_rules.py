"""Rules that tables of sizes share: rates by rank, and verdicts on needed sizes."""

import math
from collections.abc import Sequence

from benchmarks.study.needed import fewer, verdict
from lowrank.subspace import IntrinsicDimension

RANK = 8  # whose learning rates stand in a table's options
Found = IntrinsicDimension | None


def lora_rates(rates: Sequence[float], rank: int) -> tuple[float, ...]:
    """LoRA's learning rates at a rank, from those of rank 8: times `sqrt(8 / rank)`.

    The scale of the adapter is the same for all ranks, so that a step of Adam moves
    the weights further the more columns there are, and the best rate falls with them.

    Example:
        >>> lora_rates((1e-3, 4e-3), 32)
        (0.0005, 0.002)
    """
    return tuple(rate * (RANK / rank) ** 0.5 for rate in rates)


def reached(found: IntrinsicDimension) -> bool:
    """Whether some tested size, or a line between two, reaches the threshold."""
    return math.isfinite(found.interpolated)


def capped(found: Found, weights: int | None) -> Found:
    """A local dimension and its interval, at most the number of all weights.

    Where all weights gain nothing there is no share to reach, and nothing to cap.
    """
    if found is None or weights is None:
        return None
    if found.threshold <= 0:
        return found
    return IntrinsicDimension(
        min(found.tested, weights), min(found.interpolated, weights),
        min(found.low, weights), min(found.high, weights), found.threshold,
    )  # fmt: skip


def falls(found: Sequence[Found]) -> list[int | None]:
    """For each pair of neighbours whether the later one is smaller."""
    if len(found) < 2:
        return [None]
    return [_smaller(*pair) for pair in zip(found[1:], found, strict=False)]


def _smaller(later: Found, earlier: Found) -> int | None:
    """`fewer`; undecided where one of the two has no share to reach."""
    if any(own is not None and own.threshold <= 0 for own in (later, earlier)):
        return 0
    return fewer(later, earlier)


def falls_where_reached(found: Sequence[Found]) -> tuple[str | None, int]:
    """The verdict on neighbours, and how many pairs reach it in neither: left out."""
    marks: list[int | None] = []
    skipped = 0
    for later, earlier in zip(found[1:], found, strict=False):
        if _neither(later, earlier):
            skipped += 1
        else:
            marks.append(fewer(later, earlier))
    if skipped and not marks:
        return "undecided: not reached", skipped
    return verdict(marks or [None]), skipped


def no_more(pairs: Sequence[tuple[Found, Found]]) -> str | None:
    """The verdict on first sizes that need be no larger than second ones.

    Supported where every first interval lies below its second, contradicted where one
    lies above; intervals that meet do not contradict, and are no support. A pair of
    which neither is reached decides nothing.
    """
    marks = [0 if _neither(*pair) else fewer(*pair) for pair in pairs]
    found = verdict(marks or [None])
    if found != "not supported":
        return found
    if any(_neither(*pair) for pair in pairs):
        return "undecided: not reached"
    return "not contradicted"


def _neither(one: Found, two: Found) -> bool:
    """Whether both were run and neither is reached."""
    known = [own for own in (one, two) if own is not None]
    return len(known) == 2 and not any(map(reached, known))
