"""The hypotheses of the LoRI tables, written down before the runs, as comparisons."""

from collections.abc import Mapping, Sequence

from benchmarks.study.merges import merges
from benchmarks.study.methods import DENSITIES, HEADLINE, METHODS, SWEEP
from benchmarks.study.singles import Options
from benchmarks.tables import _lori_merging_scores as scores
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_merging_scores import ADAPTERS, LINEAR, SUM, Board
from benchmarks.tables._lori_words import SHORT, Claim, Hypothesis, Rights

SPARSE = "lori-s"
NAMES = {name: own.title for name, own in {**HEADLINE, **SWEEP}.items()}
# Densities in order; LoRI-D is LoRI-S that keeps all, and LoRI-S itself keeps .1.
BY_DENSITY = dict(
    sorted(
        {
            1.0: "lori-d",
            METHODS[SPARSE].density: SPARSE,
            **{density: f"density-{density:g}" for density in DENSITIES},
        }.items(),
        reverse=True,
    )
)
OTHER_MASKS = ("random-leaf", "random", "gradient", "other-task")
MERGES = {name: own.title for name, own in merges(Options().rank).items()}
TRIMMED = ("magnitude", "ties", "dare", "dare-ties", "della", "breadcrumbs")
SUBSPACES = ("tsv", "iso", "iso-cts", "core")
Cells = Mapping[str, Rights | None]


def of_masks(cells: Cells, swept: Cells) -> list[Hypothesis]:
    """H1 to H7, in the words of `lori_mask`, with their comparisons.

    Args:
        cells: The methods, on all tasks.
        swept: The densities, on the tasks of the sweep.
    """

    def claim(one: str, two: str, test: words.Test, cells: Cells = cells) -> Claim:
        turned = one == SPARSE  # as the table has it, so that no two of them disagree
        pair = (two, one) if turned else (one, two)
        found = words.difference(*(cells.get(name) for name in pair))
        found = words.negative(found) if turned else found
        short = [NAMES[name].split(":")[0] for name in (one, two)]
        return Claim(f"{short[0]} minus {short[1]}", found, test)

    flat = [name for density, name in BY_DENSITY.items() if 0.1 < density <= 0.9]
    masks = (SPARSE, *OTHER_MASKS)
    found = {
        "LoRI-S and LoRI-D are within 1 point of LoRA on the mean of the tasks": [
            claim(name, "lora", words.within) for name in (SPARSE, "lori-d")
        ],
        "LoRI's mask beats a random one of the same counts": [
            claim(SPARSE, "random-leaf", words.above)
        ],
        "the smallest |B| is the worst mask": [
            claim("smallest", name, words.below) for name in masks
        ],
        "a drawn-anew A costs nothing": [claim("redrawn", SPARSE, words.no_cost)],
        "another task's mask is worse than the task's own": [
            claim("other-task", SPARSE, words.below)
        ],
        "accuracy is flat from density .9 to .1 and falls at .01": [
            *(claim(name, SPARSE, words.within, swept) for name in flat),
            claim("density-0.01", SPARSE, words.below, swept),
        ],
        "LoRA at twice the steps beats LoRI-S, whose two stages cost as much": [
            claim("lora-twice", SPARSE, words.above)
        ],
    }
    return [
        Hypothesis(f"H{i + 1}", text, claims)
        for i, (text, claims) in enumerate(found.items())
    ]


def of_merging(board: Board) -> list[Hypothesis]:
    """H8 to H13 of one suite, in the words of `lori_merging`."""

    def over_sum(names: Sequence[str], test: words.Test) -> list[Claim]:
        return [
            Claim(f"{MERGES[merge]} of {SHORT[own]}", board.over_sum[merge, own], test)
            for merge in names
            for own in ADAPTERS
        ]

    def kept(name: str) -> Claim:
        gap = scores.share_gap(board, (SUM, name), (SUM, "lora"))
        label = f"{SHORT[name]} minus LoRA, in per cent of the gain,"
        return Claim(label, gap, words.above)

    sums = [board.merged[SUM, name] for name in ("lori-s", "lori-d")]
    found = {
        "merged by the sum, LoRI-D and LoRI-S keep more of their gain than LoRA does": [
            kept("lori-d"),
            kept("lori-s"),
        ],
        "LoRI-S merges better than LoRI-D": [
            Claim("sum of LoRI-S minus LoRI-D", words.difference(*sums), words.above)
        ],
        "PEFT's linear merge is worse than the exact sum": over_sum(
            [LINEAR], words.below
        ),
        "TIES, DARE and their kin do not beat the sum": over_sum(
            TRIMMED, words.no_gain
        ),
        "subspace merges (TSV, Iso, Core Space) beat the sum": over_sum(
            SUBSPACES, words.above
        ),
        "nothing reaches the jointly trained adapter": [
            Claim(f"{MERGES[merge]} of {SHORT[name]}", gap, words.short_of)
            for (merge, name), gap in board.over_joint.items()
        ],
    }
    return [
        Hypothesis(f"H{i + 8}", text, claims)
        for i, (text, claims) in enumerate(found.items())
    ]
