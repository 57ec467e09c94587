"""The hypotheses on what stands beside a chip, and what they are read off."""

from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Table
from benchmarks.stats import Difference
from benchmarks.study.scores import gap
from benchmarks.tables import _lori_words as words
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._lori_words import Claim, Hypothesis
from benchmarks.tables._rram_beside_chips import HEALING, PLACES
from benchmarks.tables._rram_beside_halora import way_name

PAPER_FACTOR = 0.1
ENOUGH = 0.9  # share of the chip's loss that healing should bring back
TWICE = "2"
KINDS = {name: "healing" if name.startswith(HEALING) else "places" for name in PLACES}


class Scores(NamedTuple):
    """Accuracies `[seeds, chips]`; one column where there is no chip."""

    seeds: tuple[int, ...]
    values: np.ndarray

    def at(self, seeds: list[int]) -> np.ndarray:
        """Those of some seeds."""
        return self.values[[self.seeds.index(seed) for seed in seeds]]


def noise(records: Records, point: str, way: str, time: str) -> Scores | None:
    """Of a way, at a multiple of the training's noise."""
    own = records.where(kind="halora", point=point, way=way)
    return _scores({r.seed: r.series[time] for r in own if time in r.series})


def place(records: Records, method: str, name: str, task: str = "") -> Scores | None:
    """Of a merge at a place: on a task, or the mean over tasks."""
    own = records.where(kind=KINDS[name], method=method)
    wanted = [f"{name}/{one}" for one in ([task] if task else plan.TASKS)]
    rows = {
        r.seed: np.mean([r.series[one] for one in wanted], axis=0)
        for r in own
        if all(one in r.series for one in wanted)
    }
    return _scores(rows)


def _scores(rows: dict[int, Any]) -> Scores | None:
    seeds = tuple(sorted(rows))
    if not seeds:
        return None
    return Scores(seeds, np.stack([np.asarray(rows[s], float) for s in seeds]))


def contrast(*parts: tuple[float, Scores | None]) -> Difference | None:
    """The interval of a weighted sum of scores on common seeds and chips, in points."""
    known = [(weight, own) for weight, own in parts if own is not None]
    if len(known) < len(parts):
        return None
    common = sorted(set.intersection(*(set(own.seeds) for _, own in known)))
    if not common:
        return None
    total = sum((w * own.at(common) for w, own in known), np.zeros((len(common), 1)))
    return gap(total, np.zeros_like(total))


def expected(records: Records) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def at_twice(one: str, two: str) -> Difference | None:
        pair = [noise(records, "chosen", way, TWICE) for way in (one, two)]
        return contrast((1, pair[0]), (-1, pair[1]))

    def minus(method: str, one: str, two: str) -> Difference | None:
        pair = [place(records, method, name) for name in (one, two)]
        return contrast((1, pair[0]), (-1, pair[1]))

    def merging(single: str, merged: str) -> Difference | None:
        own = {
            (method, name): place(records, method, name)
            for method in ("lora", "lori-s")
            for name in (single, merged)
        }
        return contrast(
            (1, own["lora", single]),
            (-1, own["lora", merged]),
            (-1, own["lori-s", single]),
            (1, own["lori-s", merged]),
        )

    def healed(method: str, task: str) -> Difference | None:
        own = [place(records, method, n, task) for n in ("healed", "digital", "merged")]
        return contrast((1, own[0]), (ENOUGH - 1, own[1]), (-ENOUGH, own[2]))

    titles, above = plan.METHODS, words.above
    factor = way_name(PAPER_FACTOR)
    return [
        Hypothesis(
            "B1",
            "at twice the noise resampled chips are better than the clean base",
            [Claim("resampled minus clean", at_twice("resampled", "clean"), above)],
        ),
        Hypothesis(
            "B2",
            "HaLoRA's penalty at the paper's factor gains over resampling alone",
            [
                Claim(
                    f"penalty {PAPER_FACTOR:g} minus none",
                    at_twice(factor, "resampled"),
                    above,
                )
            ],
        ),
        Hypothesis(
            "B3",
            "under faults digital is better than in the weight on the chip",
            [
                Claim(f"{titles[m]}:", minus(m, "digital", "on-chip"), above)
                for m in titles
            ],
        ),
        Hypothesis(
            "B4",
            "LoRI-S loses less by merging than LoRA, off the chip and on it",
            [
                Claim("off the chip", merging("single", "merged"), above),
                Claim("on it", merging("single-chip", "on-chip"), above),
            ],
        ),
        Hypothesis(
            "B5",
            f"one adapter brings back {100 * ENOUGH:g} % of the chip's loss on every "
            "task",
            [
                Claim(f"{title}, {task}", healed(method, name), above)
                for method, title in titles.items()
                for name, task in plan.TASKS.items()
            ],
        ),
        Hypothesis(
            "B6",
            "it is no worse than training all heads again",
            [
                Claim(f"{titles[m]}:", minus(m, "healed", "heads"), words.no_cost)
                for m in titles
            ],
        ),
        Hypothesis(
            "B7",
            "it ends no worse than the same training on chips without faults",
            [
                Claim(
                    f"{titles[m]}:", minus(m, "healed", "healed-clean"), words.no_cost
                )
                for m in titles
            ],
        ),
    ]


def hypotheses(records: Records) -> Table:
    """The verdicts."""
    found = expected(records)
    return Table(
        ("hypothesis", "verdict", "numbers"),
        [[f"{h.name}: {h.text}", h.verdict(), h.figures()] for h in found],
        caption="The hypotheses written down before the run.",
        align="lll",
        notes=[
            "Differences in points of accuracy, paired, with 95 % bootstrap intervals "
            "over training seeds and chips (seeds alone where there is no chip), not "
            "corrected for their number; B3, B4, B6 and B7 are means over tasks. B4: "
            "how much more LoRA loses. B5: how far healing is above the accuracy at "
            f"which {100 * ENOUGH:g} % of the loss is back. Supported: every interval "
            "that the hypothesis speaks of bears it out. Contradicted: at least one "
            "speaks against it. Not supported: neither. B6 and B7 are read with a "
            "margin of "
            f"{words.MARGIN:g} point. B7 was added after the pilot."
        ],
    )
