"""Merging LoRA and LoRI: every merge, two suites of tasks, one scale from validation.

One adapter for each task is merged into one encoder; heads are never merged, each task
is scored with its own head, frozen. Two suites, never averaged together: four different
tasks (SMS spam, TREC questions, WordNet glosses, movie reviews), and sentiment in four
domains. The scale of the merged change is chosen on validation data from one grid for
each merge, method and suite; the weights of the authors' scripts are rows of their own;
one LoRA trained on all tasks at once is the ceiling. Reads the adapters that
`lori_mask` trained, and trains what it lacks.

Written down before the run. H8: merged by the sum, LoRI-D and LoRI-S keep more of
their gain than LoRA does. H9: LoRI-S merges better than LoRI-D. H10: PEFT's linear
merge is worse than the exact sum. H11: TIES, DARE and their kin do not beat the sum.
H12: subspace merges (TSV, Iso, Core Space) beat the sum. H13: nothing reaches the
jointly trained adapter.

Command: python -m benchmarks run lori_merging
Paper: LoRI, arXiv:2504.07448, has other models and tasks: no number of it stands here.
Cost: 40 min on 2 cores
Rows: 490
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.merges import Merging, merges
from benchmarks.study.rows import interference_row, joint_row, merge_row, single_rows
from benchmarks.study.singles import Options, Singles
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _lori_merging_report as reporting

ADAPTERS = ("lora", "lori-d", "lori-s")
SUMS = ("concat", "linear")  # LoRI's own merges: on every seed


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    suites: tuple[str, ...] = tuple(SUITES)
    """Which suites to run."""
    adapters: tuple[str, ...] = ADAPTERS
    """Which adapters to merge."""
    merges: tuple[str, ...] = tuple(merges(1))
    """Which merges to run."""
    merge_seeds: int = 3
    """How many of the seeds merges other than the sums run for."""
    scales: tuple[float, ...] = (0.25, 0.4, 0.6, 1.0, 1.6, 2.5)
    """Scales of the merged change to choose from; 0.25 is the mean of four."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "suites": ("tasks",),
            "adapters": ("lora", "lori-s"),
            "merges": ("concat", "linear", "ties"),
            "scales": (0.25, 1.0),
        }
        return dataclasses.replace(self, **self.tiny(), **own)


def run(config: Config, session: Session) -> None:
    """Scores single adapters, the joint one, and every merge; rows are kept."""
    for suite in config.suites:
        work = Singles(config, session, suite)
        merging = Merging(work)
        for name in config.adapters:
            for seed in config.seeds:
                single_rows(work, name, seed)
                interference_row(merging, name, seed)
        for seed in config.seeds:
            joint_row(work, seed)
        rows = [
            (merge, name, seed)
            for merge in config.merges
            for name in config.adapters
            for seed in config.seeds[: None if merge in SUMS else config.merge_seeds]
        ]
        with session.progress(len(rows), f"merges, {suite}") as bar:
            for row in rows:
                merge_row(merging, config.scales, *row)
                bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
