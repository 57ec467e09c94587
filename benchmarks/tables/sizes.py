"""The bigger the model, the smaller the change? Small decoders, from novels to films.

Decoders of four sizes learn Jane Austen's novels, character by character, and are then
adapted to film dialogue: by training all weights, `d` numbers of a random subspace
(DID), or LoRA. A language model has no accuracy, so d90 is the smallest `d` that
reaches 90 % of what training all weights gains, in nats a character of held-out
dialogue over the start (local); and the smallest `d` that reaches the loss at which the
smallest decoder has 90 % of its own gain (overall: one loss for all decoders). The
needed rank is LoRA's, by the same two. One size starts from five checkpoints of its
pretraining and from random weights; for it the overall loss is that of its own last
checkpoint. The effective rank of the change is read along training, of pretraining and
of adaptation.

Written down before the run. S1: the local d90 falls from each size to the next larger
one, as a share of all weights. S2: it falls in absolute numbers too, from the smallest
to the largest. S3: LoRA's needed rank does not rise from the smallest to the largest.
S4: by the overall loss, d90 falls from random weights through all checkpoints to the
last. S5: the change that adaptation makes has, at its end, a lower effective rank than
the change that pretraining made, in every size. S6: the effective rank of adaptation's
change rises along training.

Command: python -m benchmarks run sizes
Paper: Aghajanyan et al. 2020, arXiv:2012.13255: d90 of MRPC falls with
    the number of parameters over published models, and along RoBERTa's pretraining.
Cost: 40 min on 1 core
Rows: 406

The grids of dimensions and of learning rates, and that LoRA's rates fall with its rank,
were set after pilots that read validation losses. The hypotheses were not changed.
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _sizes_report as reporting


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    parts: tuple[str, ...] = ("sizes", "checkpoints", "ranks")
    """Which parts."""
    ways: tuple[str, ...] = ("full", "did", "lora")
    """Which ways to adapt."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds: projection or factors, order of examples. Pretraining has one."""
    widths: tuple[int, ...] = (32, 48, 80, 128)
    """Widths of the decoders."""
    layers: tuple[int, ...] = (3, 4, 5, 6)
    """Layers of each."""
    middle: int = 48
    """Width of the decoder whose checkpoints are compared."""
    context: int = 64
    """Characters of an example."""
    pretraining: int = 1200
    """Steps of pretraining."""
    pretraining_batch: int = 32
    """Examples of a step of pretraining."""
    pretraining_rate: float = 3e-3
    """Its peak learning rate, the same for all sizes."""
    checkpoints: tuple[int, ...] = (60, 180, 420, 780, 1200)
    """Steps after which a checkpoint is kept."""
    steps: int = 80
    """Steps of adaptation."""
    batch: int = 16
    """Examples of a step of adaptation."""
    ds: tuple[int, ...] = (300, 1000, 3000, 10_000, 17_000, 30_000, 55_000, 100_000)
    """Dimensions of DID, where a decoder has more weights."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    """Ranks of LoRA."""
    moves: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    """How far a step of DID moves a weight: the peak learning rate is this times the
    root of D / d."""
    rates: tuple[float, ...] = (4e-3, 8e-3, 2e-2, 5e-2)
    """Peak learning rates of LoRA of rank 8; others by the root of 8 / rank."""
    full_rates: tuple[float, ...] = (5e-4, 1e-3, 3e-3, 8e-3)
    """As many of training all weights."""
    looks: tuple[int, ...] = (5, 10, 20, 40, 80)
    """Steps of adaptation after which the change is looked at."""
    valid: int = 128
    """Windows of held-out text that choices are made on."""
    test: int = 384
    """Windows that results are read off."""
    synthetic: bool = False
    """Use made-up texts: no download."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            seeds=(0,),
            widths=(8, 16),
            layers=(1, 1),
            middle=8,
            context=16,
            pretraining=4,
            pretraining_batch=4,
            checkpoints=(2, 4),
            steps=4,
            batch=4,
            ds=(20, 200),
            ranks=(1, 2),
            moves=(5e-3, 2e-2),
            rates=(1e-2, 3e-2),
            full_rates=(3e-3, 1e-2),
            looks=(2, 4),
            valid=8,
            test=8,
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Pretrains, adapts every cell with every seed, and reads ranks; rows are kept."""
    from benchmarks.tables._sizes_work import Work

    work = Work(config, session)
    rows = work.rows()
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            row()
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
