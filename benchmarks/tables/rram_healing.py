"""How many numbers heal a broken chip? Accuracy recovered against digital parameters.

A net is programmed into chips whose stuck cells are known, and each chip is healed on
its own: by a truncated SVD of the known error, by a sparse patch, by a new head, by
biases, in a random subspace, by LoRI, LoRA, ITT, or by retraining all weights through
the map. 784-512-10 on 100 chips and LeNet-5 on 20, on full MNIST, at fault rates that
were chosen on validation data so that the deployed net loses 10 to 30 points.

Written down before the run.

H1: independent faults make the error E nearly full rank, so that the SVD needs a rank
close to the width, and trained adapters far less: the effective rank of E is above half
of the shorter side, and the rank that brings back 90 % of the loss is at least 4 times
larger for the SVD than for LoRA. Its three parts are judged one by one: H1a, the
effective rank; H1b, a rank close to the width, for which no number was written down
(at least half of the width is a lenient reading, set after the run); H1c, the 4 times.

H2: the intrinsic dimension of healing (the smallest d of the random subspace that
brings back 90 %) predicts the rank that LoRA needs for it, better than the effective
rank of E or its norm: one factor is fitted on the fault points of the MLP, and the
error of the logarithm is measured on held-out rates, a clustered map, and LeNet-5. It
is undecided unless a rank is known for each of these three. In the first run LoRA of
rank 1 was more than enough on the clustered map and on LeNet-5; half the rates of both
were added after it.

H3: a frozen random A costs 2 to 4 times the rank. H1c, H2 and H3 are undecided where
a rank rests on a rate at an end of its grid. In the first run, of three rates each,
that was so for LoRI-D; the grids were widened to six for every way after it.

Command: python -m benchmarks run rram_healing
Paper: none has this comparison; no published number stands here.
Cost: 6 h on 1 core, in parts that run side by side
Rows: 388
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _rram_healing_extras as extras
from benchmarks.tables import _rram_healing_plan as plan
from benchmarks.tables import _rram_healing_report as reporting
from benchmarks.tables._rram_healing_work import Work


@dataclasses.dataclass(frozen=True)
class Config(plan.Options):
    """Options; each becomes a flag."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(self, **self.small())


def run(config: Config, session: Session) -> None:
    """Heals all chips of each point; rows are kept."""
    for name in config.nets:
        work = Work(config, session, name)
        own = [point for point in plan.POINTS[name] if point in config.points]
        every = config.chosen(name)
        if "main" in config.parts:
            for point in own:
                work.rows("main", point, every)
        if "clean" in config.parts:
            work.rows("clean", "clean", every)
        if "dimension" in config.parts and "equal" in own:
            compared = config.chosen(name, only=plan.dimension_ways(name))
            for point in plan.HELD_OUT[name]:
                work.rows("dimension", point, compared)
        if name == "mlp" and "equal" in own:
            _beside(config, work)


def _beside(config: Config, work: Work) -> None:
    """What is run for the MLP at one point only."""
    if "labels" in config.parts:
        few = config.chosen(work.name, only=plan.ONE_SIZE)
        for count in config.labels:
            work.rows("labels", "equal", few, count)
    if "resampled" in config.parts:
        extras.resampled_rows(work, "equal")


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
