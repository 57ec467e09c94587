"""The verdicts on the hypotheses of the table of sizes."""

from collections.abc import Sequence

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.study.needed import shown, verdict
from benchmarks.tables import _sizes_rules as rules
from benchmarks.tables._sizes_curves import (
    Found,
    effective,
    lasts,
    level,
    local,
    of_middle,
    overall,
    percents,
    scaled,
    weights,
)


def hypotheses(records: Records) -> Table:
    """S1 to S6."""
    names, middle = lasts(records), of_middle(records)
    totals = [weights(records, name) for name in names]
    dims = [local(records, "did", name) for name in names]
    shares = [scaled(*pair) for pair in zip(dims, totals, strict=True)]
    most = [rules.capped(*pair) for pair in zip(dims, totals, strict=True)]
    parts = [scaled(*pair) for pair in zip(most, totals, strict=True)]
    ranks = [local(records, "lora", name) for name in names]
    loss = level(records, middle[-1]) if middle else None
    along = [overall(records, "did", name, loss) for name in middle]
    fourth, skipped = rules.falls_where_reached(along)
    rises = [(ranks[-1], ranks[0])] if len(ranks) > 1 else []
    rows = [
        ["S1: as a share of all weights, d90 falls from each size to the next",
         verdict(rules.falls(parts)), percents(shares)],
        ["S2: d90 falls from the smallest decoder to the largest",
         verdict(rules.falls(_ends(most))), _list(_ends(dims))],
        ["S3: LoRA's needed rank does not rise from the smallest to the largest",
         rules.no_more(rises), _list(_ends(ranks))],
        ["S4: by one loss, d90 falls along pretraining", fourth,
         _with_skipped(_list(along), skipped)],
        ["S5: adaptation's change has a lower effective rank than pretraining's",
         *_fifth(records)],
        ["S6: the effective rank of adaptation's change rises along training",
         *_sixth(records)],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="The hypotheses written down before the run.",
        notes=[
            "S1 to S4 by 95 % bootstrap intervals over seeds, which lie apart "
            "(supported), the other way round (contradicted) or meet (not supported; "
            "S3: not contradicted). S1 and S2 take a d90, or an end of its interval, "
            "that no tested d reaches as all weights of the decoder, which reach it. "
            "S3 is undecided where neither of its ranks is reached; S4 leaves out "
            "pairs of neighbours of which neither is, and counts them. S5 and S6 by "
            "means over kernels and seeds."
        ],
        align="lll",
    )


def _ends(found: Sequence[Found]) -> list[Found]:
    return [found[0], found[-1]] if len(found) > 1 else []


def _with_skipped(numbers: str | None, skipped: int) -> str | None:
    if not skipped:
        return numbers
    return f"{numbers}; pairs left out, as neither is reached: {skipped}"


def _list(found: Sequence[Found]) -> str | None:
    known = [str(shown(own)) for own in found if own is not None]
    return "; ".join(known) or None


def _fifth(records: Records) -> tuple[str | None, str | None]:
    marks, words = [], []
    for name in lasts(records):
        one, two = (
            effective(records, "ranks", name),
            effective(records, "pretraining ranks", name),
        )
        if one is None or two is None:
            continue
        marks.append(1 if one[-1] < two[-1] else -1)
        words.append(f"{one[-1]:.2f} and {two[-1]:.2f}")
    return verdict(marks or [None]), "; ".join(words) or None


def _sixth(records: Records) -> tuple[str | None, str | None]:
    marks, words = [], []
    for name in lasts(records):
        own = effective(records, "ranks", name)
        if own is None:
            continue
        marks.append(1 if all(np.diff(own) > 0) else -1)
        words.append(" ".join(f"{x:.2f}" for x in own))
    return verdict(marks or [None]), "; ".join(words) or None
