"""When does a very low rank fail? Ranks 1 to 64 against all weights, beside d90.

Four problems: TREC's six classes, WordNet definitions in 45 classes, random labels that
are learnt by heart, and a small decoder that goes from novels to film dialogue. On
each, LoRA of ranks 1 to 64, `d` numbers of a random subspace (DID), all weights, and
the head alone (the decoder: nothing). A rank fails that gives less than 90 % of what
training all weights gains over the head alone; for random labels, whose head is frozen
(it would learn them alone), and for the decoder, over the start.

Then what to train with the same steps, examples and rates, on the four tasks of the
LoRI study: all weights, LoRA of rank 1 and 8, biases alone, the last layer, the head
alone; for the decoder its scales of norms stand for biases, as it has none. After the
first runs, without a hypothesis: LoRA that trains as many numbers as the last layer.

Written down before the run. F1: on TREC rank 1 does not fail. F2: on 45 classes rank 1
fails and rank 64 does not. F3: on random labels rank 1 fails. F4: on the decoder rank 1
fails. F5: the problem of the lowest needed rank has the lowest d90 by its gain, and
that of the highest the highest. F6: over four tasks LoRA of rank 8 is within a point of
all weights. F7: over four tasks neither biases alone nor the last layer is better than
LoRA of rank 8, but for a point.

Command: python -m benchmarks run low_rank_fails
Paper: none; it asks where LoRA's low ranks (arXiv:2106.09685, table 6) end.
Cost: 30 min on 1 core
Rows: 332

The grids of dimensions and of learning rates, and that LoRA's rates fall with its rank,
were set after pilots that read validation losses (with random labels, losses of the
training texts). After a first run of everything those of the last layer and of the
decoder's parts were moved, whose losses were least at the highest rate, and heads got
a rate of their own, the best of the head alone: at one rate for both LoRA of rank 8
had fallen to chance on reviews. With that LoRA's grid on texts moved down by a step.
The hypotheses were not changed.
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.singles import Options
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _low_rank_fails_report as reporting
from benchmarks.tables._low_rank_fails_shares import PROBLEMS


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag."""

    problems: tuple[str, ...] = tuple(PROBLEMS)
    """Which problems are run through all ranks and dimensions."""
    ways: tuple[str, ...] = ("full", "head", "bias", "last", "lora", "did", "wide")
    """Which ways."""
    tasks: tuple[str, ...] = tuple(SUITES["tasks"])
    """Tasks on which ways are compared."""
    few_seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the ranks and dimensions; `seeds` are those of the other rows."""
    ranks: tuple[int, ...] = (1, 2, 4, 8, 16, 64)
    """Ranks of LoRA; all rates are those of rank 8, times the root of 8 / rank."""
    ds: tuple[int, ...] = (300, 1000, 3000, 10_000, 30_000)
    """Dimensions of DID on texts."""
    decoder_ds: tuple[int, ...] = (1000, 3000, 10_000, 30_000)
    """Dimensions of DID for the decoder."""
    compared: tuple[int, ...] = (1, 8)
    """Ranks that are compared with other ways."""
    wide: int = 128
    """A rank that trains as many numbers as the last layer, compared too."""
    rates: tuple[float, ...] = (7e-4, 2e-3, 6e-3)
    """Peak learning rates of LoRA of rank 8 on texts."""
    full_rates: tuple[float, ...] = (3e-4, 8e-4, 2e-3)
    """Peak learning rates of all weights."""
    moves: tuple[float, ...] = (6e-3, 1.2e-2, 2.4e-2)
    """How far a step of DID moves a weight."""
    last_rates: tuple[float, ...] = (8e-4, 2e-3, 5e-3)
    """Rates of the last layer; with random labels it takes those of all weights."""
    head_rates: tuple[float, ...] = (1e-2, 3e-2, 1e-1)
    """Peak learning rates of the head alone; the best is that of every other head."""
    bias_rates: tuple[float, ...] = (3e-3, 1e-2, 3e-2)
    """Peak learning rates of biases."""
    block: int = 32_768
    """Length of Fastfood's blocks, at least the largest dimension."""
    files_train: int = 2048
    """Training texts of the 45 classes."""
    random_texts: int = 512
    """Texts with random labels."""
    random_length: int = 12
    """Tokens of such a text."""
    random_steps: int = 160
    """Steps with random labels."""
    random_rates: tuple[float, ...] = (7e-4, 2e-3, 6e-3)
    """LoRA's rates with random labels, whose gradients are larger, of rank 8."""
    context: int = 64
    """Characters of the decoder's examples."""
    width: int = 48
    """Width of the decoder."""
    depth: int = 4
    """Its layers."""
    pretraining: int = 1200
    """Its steps of pretraining."""
    decoder_steps: int = 80
    """Its steps of adaptation."""
    decoder_rates: tuple[float, ...] = (4e-3, 8e-3, 2e-2, 5e-2)
    """Rates of its LoRA, of rank 8."""
    decoder_full_rates: tuple[float, ...] = (5e-4, 1e-3, 3e-3, 8e-3)
    """Rates of all its weights."""
    decoder_part_rates: tuple[float, ...] = (3e-3, 8e-3, 2e-2, 5e-2)
    """Rates of its last layer, or of its scales of norms."""
    decoder_moves: tuple[float, ...] = (3e-3, 6e-3, 1.2e-2, 2.4e-2)
    """How far a step of DID moves a weight of the decoder."""
    windows: int = 256
    """Windows of held-out dialogue."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "problems": ("random", "dialogue"),
            "tasks": ("trec",),
            "seeds": (0,),
            "few_seeds": (0,),
            "ranks": (1, 2),
            "compared": (1,),
            "wide": 4,
            "ds": (30,),
            "decoder_ds": (30,),
            "decoder_moves": (5e-3, 2e-2),
            "moves": (1e-2, 5e-2),
            "last_rates": (2e-3, 5e-3),
            "head_rates": (3e-2, 1e-1),
            "bias_rates": (3e-3, 1e-2),
            "block": 64,
            "files_train": 64,
            "random_texts": 32,
            "random_steps": 4,
            "random_rates": (2e-3, 6e-3),
            "context": 16,
            "width": 8,
            "depth": 1,
            "pretraining": 4,
            "decoder_steps": 4,
            "decoder_rates": (1e-2, 3e-2),
            "decoder_full_rates": (3e-3, 1e-2),
            "decoder_part_rates": (3e-3, 1e-2),
            "windows": 8,
        }
        return dataclasses.replace(self, **self.tiny() | own)


def run(config: Config, session: Session) -> None:
    """Runs every cell with every seed; rows are kept."""
    from benchmarks.tables._low_rank_fails_work import Work

    rows = Work(config, session).rows()
    with session.progress(len(rows), "runs") as bar:
        for row in rows:
            row()
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
