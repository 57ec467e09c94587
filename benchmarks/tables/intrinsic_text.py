"""How few numbers fine-tune a text encoder: DID, SAID, and LoRA's needed rank.

The last two layers of MiniLM and a linear head, 3.5 million weights in all, learn two
text tasks by training `d` numbers: of one random subspace (DID), and of one with a
trained scale for each layer and the head, which `d` counts (SAID). Both from the
pretrained layers and from layers drawn anew, above the same frozen layers. d90 is the
smallest `d` that reaches 90 % of a baseline: of training all weights from the same
start (local), and of training all pretrained weights (overall: one number for a task).
Beside it stands LoRA's needed rank by the same baseline, and by 90 % of the gain over
the head alone. In LoRA and in `head alone` the head trains whole; DID and SAID have it
within their `d` numbers. So rank and d90 count different things, and the table shows
how many numbers each trains.

Written down before the run. I1: by the local baseline, pretrained layers need fewer
dimensions than fresh ones, for both ways and both tasks. I2: SAID needs no more
dimensions than DID from pretrained layers. I3: DID's local d90 from pretrained layers
is below 0.1 % of all weights, on both tasks. I4: rank 1 reaches 90 % of full
fine-tuning from pretrained layers, on both tasks. I5: two classes need fewer dimensions
than six (DID, pretrained, local).

Command: python -m benchmarks run intrinsic_text
Paper: Aghajanyan et al. 2020, arXiv:2012.13255: d90 of whole encoders on MRPC and QQP.
    Its table is not repeated: what is at hand are quotations in other papers.
Cost: 45 min on 1 core (an estimate)
Rows: 400

The estimate is by CPU time of short runs: 4 s for each of 640 runs, trials of rates
among them, and 2 min of compiling; 0.75 h in all.

SAID's grid was moved after a first run, in which its validation losses were least at
the lowest rate. The hypotheses were not changed.
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.singles import Options, Singles
from benchmarks.study.texts import WEIGHTS
from benchmarks.tables import _intrinsic_text_report as reporting


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds: projection or factors, head, fresh layers, order of texts."""
    tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Which tasks."""
    weights: tuple[str, ...] = WEIGHTS
    """Which layers above the cut: pretrained, fresh."""
    ways: tuple[str, ...] = ("full", "head", "did", "said", "lora")
    """Which ways."""
    steps: int = 64
    """Steps of a run."""
    ds: tuple[int, ...] = (50, 100, 200, 400, 800, 1600, 3200)
    """Dimensions of DID and SAID."""
    ranks: tuple[int, ...] = (1, 2, 4, 16)
    """Ranks of LoRA."""
    full_rates: tuple[float, ...] = (3e-4, 8e-4, 2e-3)
    """Peak learning rates of all weights, or of a layer."""
    moves: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2)
    """How far a step of DID moves a weight: the peak learning rate is this times the
    root of D / d."""
    said_moves: tuple[float, ...] = (1.5e-3, 3e-3, 6e-3)
    """As many of SAID, whose scales take the same steps as `z`."""
    head_rates: tuple[float, ...] = (3e-2, 1e-1, 3e-1)
    """As many of the head alone."""
    block: int = 4096
    """Length of Fastfood's blocks, at least the largest dimension."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "tasks": ("trec",),
            "ds": (8, 32),
            "ranks": (1, 2),
            "moves": (1e-2, 5e-2),
            "said_moves": (2e-3, 1e-2),
            "head_rates": (3e-2, 1e-1),
            "block": 32,
        }
        return dataclasses.replace(self, **self.tiny() | {"seeds": (0,)} | own)


def run(config: Config, session: Session) -> None:
    """Trains every cell with every seed; rows are kept."""
    from benchmarks.tables._intrinsic_text_work import cells, suite_texts, trials

    texts = suite_texts(Singles(config, session, "tasks"), config.tasks)
    own = trials(config, session, texts)
    rows = [(*cell, seed) for cell in cells(config, texts) for seed in config.seeds]
    with session.progress(len(rows), "runs") as bar:
        for cell, rates, seed in rows:
            own.row(cell, rates, seed)
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
