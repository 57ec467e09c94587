"""What stands beside a chip: HaLoRA's setting, and merged adapters under faults.

Part `halora`: an MLP 784-512-10 that knows MNIST is frozen in crossbars under zero-mean
Gaussian noise, in tiles of 64 x 64; a digital LoRA of rank 8 with digital biases adapts
it to Fashion-MNIST. The LoRA is trained on the clean base, on chips drawn anew every
few steps, and on those with HaLoRA's penalty at three factors, of which 0.1 is the
paper's. Each is tested at a half, one and two times the noise of its training, and
without noise. The noise is relative to a tile's largest weight: the one of a grid
whose double costs the LoRA of the clean base nearest to 10 points on validation, and
the paper's 0.01 beside it.

Part `merged`: three tasks over the same base (Fashion-MNIST, MNIST turned by a quarter,
MNIST), each with a digital head of its own and an adapter of rank 16 on fc1: LoRA,
LoRI-D or LoRI-S, trained on the ideal base. They are merged by concatenation, at a
weight that validation chose. fc1 lies on chips with stuck cells, as many at low
resistance as at high. The merged adapter stays digital beside the chip or is written
into the weight; beside it either one further LoRA on fc1 is trained for each chip, on
all tasks, or the heads are trained again.

Written down before the run, to be read off paired bootstrap intervals over training
seeds and chips.

B1: at twice the noise, training on resampled chips is better than training on the clean
base. B2: there HaLoRA's penalty at the paper's factor gains over resampling alone. Both
at the noise that was chosen; the paper's own is shown beside.

B3: under faults a merged adapter is better beside the chip than in the weight on it,
for each method. B4: LoRI-S loses less by merging than LoRA, off the chip and on it
(there against each adapter alone on the chip). B5: one healing adapter brings back at
least 90 % of what the chip took from the merged adapter, for every task and method. B6:
it is no worse than training all heads again, by a margin of a point, though it has two
thirds of their numbers.

After a pilot of one seed the grid of noises got 0.12, where the 10 points lie, in the
place of 0.02, and adapters for merging twice the steps. The pilot also showed healing
above the merged adapter without a chip: training on all tasks undoes what the merge
cost, and B5 cannot tell that from healing. So the same training on chips without faults
was added, and B7: the healing adapter ends no worse than there, by a margin of a point,
for each method. Nothing else was changed.

Command: python -m benchmarks run rram_beside
Paper: HaLoRA (arXiv:2502.19747), as later notes cite it, trains at noise 0.01, drawn
anew every 400 steps, with factor 0.1, and tests at 0.005, 0.01 and 0.02, on language
models: nothing to compare with digit by digit. No published number is known for merged
adapters under faults.
Cost: 12 min on 1 core
Rows: 85
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables import _rram_beside_report as reporting
from benchmarks.tables._rram_beside_halora import Halora
from benchmarks.tables._rram_beside_merged import Merged


@dataclasses.dataclass(frozen=True)
class Config(plan.Options):
    """Options; each becomes a flag."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(self, **self.small())


def run(config: Config, session: Session) -> None:
    """Runs both parts; rows are kept."""
    base = plan.Base(config, session)
    if "halora" in config.parts:
        work = Halora(base)
        for point in config.points:
            work.rows(point)
    if "merged" in config.parts:
        merged = Merged(base)
        for method in config.methods:
            merged.rows(method)


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
