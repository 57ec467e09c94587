"""A real language model, fine-tuned: SmolLM2-135M on novels and on film dialogue.

SmolLM2-135M-Instruct is decoded from its published 4-bit file to float32 and frozen.
LoRA, LoRI-D and LoRI-S on all linear maps of its 30 layers learn Jane Austen (the
second half of a passage from the first; four novels to train on, Northanger Abbey for
choices, Persuasion for the results) or film dialogue (the reply to a statement, in the
model's own chat form; the file's first 80 %, next 10 %, last 10 %). Several examples
are packed into each row of tokens, with positions and attention of their own, and
completions alone are counted in the loss. Full fine-tuning of all weights runs once,
on dialogue. LoRI-S is the library's `lori_two_stage` around the LoRI-D run of the same
seed. Each way has three learning rates on the first seed, chosen on validation loss.
The rows `memory-*` hold the base in float32, bfloat16, int8 and NF4, and `qlora` trains
LoRA over NF4 at LoRA's rate.

Written down before the run, in nats per token of held-out completions. S1: each adapter
lowers the loss on its own corpus. S2: LoRI-D is at most 0.05 above LoRA. S3: LoRI-S
gains at least half of what LoRA gains. S4: LoRI-S raises the loss on the other corpus
by less than LoRA does. S5: int8 costs less than 0.01, NF4 less than 0.1. S6: LoRA over
NF4 gains at least four fifths of what LoRA gains over float32. S7: a step of LoRA, with
all that it is given, takes less than half the memory of a step of full fine-tuning.

Command: python -m benchmarks run smollm_finetune
Paper: none is repeated; QLoRA, arXiv:2305.14314, and LoRI, arXiv:2504.07448, train
    models of billions of weights, and no number of theirs stands here.
Cost: 50 min on one core
Rows: 38
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _smollm_report as reporting
from benchmarks.tables._smollm_bases import BASES
from benchmarks.tables._smollm_data import CORPORA
from benchmarks.tables._smollm_memory import memory
from benchmarks.tables._smollm_work import METHODS, Work

RATES = {
    "lora": (1e-3, 3e-3, 1e-2),
    "lori-d": (1e-3, 3e-3, 1e-2),
    "lori-s": (3e-3, 1e-2, 3e-2),
    "full": (3e-5, 1e-4, 3e-4),
}


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of adapters and of the choice of training examples."""
    corpora: tuple[str, ...] = tuple(CORPORA)
    """What to train on."""
    methods: tuple[str, ...] = METHODS
    """Adapters."""
    full: tuple[str, ...] = ("dialogue",)
    """Corpora on which all weights are trained too, on the first seed."""
    bases: tuple[str, ...] = tuple(BASES)
    """How the frozen base is held, for the rows on memory."""
    qlora: tuple[str, ...] = ("dialogue",)
    """Corpora on which LoRA is trained over NF4, on the first seed."""
    rates: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=lambda: dict(RATES)
    )
    """Learning rates to choose from: as many for each way."""
    steps: int = 32
    """Steps of each training."""
    rows: int = 2
    """Rows of tokens in a batch."""
    length: int = 128
    """Tokens of a row."""
    shortest: int = 24
    """Tokens of the shortest passage of prose."""
    longest: int = 60
    """Tokens at which prose is cut and above which dialogue is left out."""
    rank: int = 8
    """Rank of every adapter."""
    alpha: float = 16.0
    """Adapters are scaled by alpha / rank."""
    density: float = 0.1
    """Share of B's entries that LoRI-S keeps."""
    valid: int = 8
    """Validation rows of a corpus."""
    test: int = 20
    """Test rows of a corpus."""
    words: int = 24
    """Tokens that are written after each prompt."""
    heat: float = 0.7
    """Temperature of the second sample of each prompt."""
    synthetic: bool = False
    """Use a tiny random model and made-up texts."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            seeds=(0,),
            corpora=("dialogue",),
            methods=("lora", "lori-s"),
            bases=("float32", "nf4"),
            rates={name: own[1:2] for name, own in RATES.items()},
            steps=2,
            longest=96,
            rank=2,
            valid=2,
            test=2,
            words=2,
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Trains and measures; finished rows are kept."""
    work = Work(config, session)
    todo = [("base", "", 0), ("check", "", 0)]
    todo += [
        (method, corpus, seed)
        for corpus in config.corpora
        for method in config.methods
        for seed in config.seeds
    ]
    todo += [("full", corpus, config.seeds[0]) for corpus in config.full]
    todo += [(f"memory-{base}", "", 0) for base in config.bases]
    todo += [("qlora", corpus, config.seeds[0]) for corpus in config.qlora]
    with session.progress(len(todo), "rows") as bar:
        for row in todo:
            _row(work, *row)
            bar.update()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(work: Work, way: str, corpus: str, seed: int) -> None:
    """One row."""
    given = work.given(way, corpus, seed)
    row = f"{way}-{corpus}-s{seed}" if corpus else way
    if way == "check" and work.config.synthetic:
        return
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    found: dict[str, Any]
    if way == "base":
        found = work.base()
    elif way == "check":
        found = work.check()
    elif way.startswith("memory-"):
        found = memory(work, way.removeprefix("memory-"))
    else:
        found = work.row(way, corpus, seed)
    series = {"loss": found.pop("losses")} if "losses" in found else None
    seconds = time.perf_counter() - begin
    work.session.save(
        row, found, config=given, series=series, seconds=seconds, seed=seed
    )
