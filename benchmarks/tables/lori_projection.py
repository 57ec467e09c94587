"""LoRI's random A: how it is drawn, and whether tasks share it.

The paper leaves open which random A to take. LoRI-D on four different tasks, with A
uniform (as the authors' code), Gaussian, orthogonal, or a subsampled Hadamard matrix,
all of one mean square size; drawn for each task, or once for all of them. Then the
four adapters of a seed are summed at one scale, chosen on validation data.

Written down before the run. H14: no draw differs from another, alone or merged. H15:
merged, one A for all tasks is worse than one for each.

Command: python -m benchmarks run lori_projection
Paper: LoRI, arXiv:2504.07448, draws A uniform and for each task; no number stands here.
Cost: 15 min on 2 cores
Rows: 144
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study import methods as ways
from benchmarks.study.merges import Merging
from benchmarks.study.rows import interference_row, merge_row, single_rows
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _lori_projection_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the adapters and of the order of batches."""
    methods: tuple[str, ...] = tuple(ways.PROJECTION)
    """Which ways to draw A."""
    scales: tuple[float, ...] = (0.25, 0.4, 0.6, 1.0, 1.6, 2.5)
    """Scales of the sum to choose from; 0.25 is the mean of four."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "methods": ("lori-d", "lori-d-hadamard", "lori-d-hadamard-shared"),
            "scales": (0.25, 1.0),
        }
        return dataclasses.replace(self, **self.tiny(), **own)


def run(config: Config, session: Session) -> None:
    """Trains, measures and merges the adapters of each way; rows are kept."""
    work = Singles(config, session, "tasks")
    merging = Merging(work)
    with session.progress(len(config.methods) * len(config.seeds), "seeds") as bar:
        for name in config.methods:
            for seed in config.seeds:
                single_rows(work, name, seed)
                interference_row(merging, name, seed)
                merge_row(merging, config.scales, "concat", name, seed)
                bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
