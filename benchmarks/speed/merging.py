"""Merging adapters: lowrank, PEFT, and NumPy on formed weights.

Command: python -m benchmarks run speed/merging
Rows: 3
Cost: 25 min on 2 cores, nearly all of it the other contenders' dense decompositions

Merges 8 adapters of rank 16 over one kernel of 1024 x 1024, then of 2048 x 2048: each
merge of lowrank as one compiled call, PEFT's `add_weighted_adapter` on the same factors
where PEFT has the merge, and the merge on formed weights in NumPy where it is one that
decomposes them. Results are compared first. All contenders of a merge are timed within
each round, in random order, as often as the time allows; what counts is the median
ratio, with its interval over rounds.

One more row reads compiled programs: their temporary memory at three widths, against
the size of all factors together.

PEFT and PyTorch are in the extra `peers`; without them their columns say so.
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _merging_methods, _merging_report
from benchmarks.timing import in_processes

MEASURE = "benchmarks.speed._merging_measure"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    sizes: tuple[int, ...] = (1024, 2048)
    """Widths of the kernel."""
    widths: tuple[int, ...] = (512, 1024, 2048)
    """Widths at which memory is read."""
    adapters: int = 8
    rank: int = 16
    """Rank of each adapter, and of a truncated merge."""
    methods: tuple[str, ...] = tuple(_merging_methods.METHODS)
    """What is merged with."""
    seconds: float = 30.0
    """About how long the rounds of one merge may take."""
    least: int = 3
    """Rounds at least."""
    most: int = 50
    """Rounds at most."""
    seed: int = 0
    """Seed of the factors and of the order within the rounds."""

    def smoke(self) -> "Config":
        """A tiny kernel, two rounds, some of the merges."""
        return dataclasses.replace(
            self,
            sizes=(64,),
            widths=(64,),
            adapters=3,
            rank=4,
            methods=("svd", "concat", "ties", "dare", "ties, svd", "knots", "tsv"),
            least=2,
            most=2,
        )

    def problem(self, size: int) -> dict[str, int]:
        """Arguments of `problem`."""
        return {"size": size, "adapters": self.adapters, "rank": self.rank}


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    with session.progress(len(config.sizes) + 1, "rows") as bar:
        factored = [n for n in config.methods if n in _merging_methods.FACTORED]
        given: dict[str, Any] = {
            "widths": config.widths,
            "adapters": config.adapters,
            "rank": config.rank,
            "names": factored,
            "seed": config.seed,
        }
        _run_row(session, "memory", "memory", given)
        bar.update()
        for size in config.sizes:
            given = {
                "sizes": config.problem(size),
                "names": config.methods,
                "limits": {
                    "seconds": config.seconds,
                    "least": config.least,
                    "most": config.most,
                },
                "seed": config.seed,
            }
            _run_row(session, f"size-{size}", "measure", given)
            bar.update()


def _run_row(session: Session, row: str, function: str, given: dict[str, Any]) -> None:
    """Measures one row in a fresh process."""
    if session.row(row, **given) is not None:
        return
    session.log(f"measuring {row}")
    start = time.perf_counter()
    (found,) = in_processes(f"{MEASURE}:{function}", given, 1)
    seconds = time.perf_counter() - start
    session.save(row, found, config=given, seconds=seconds, seed=given["seed"])


def report(records: Records) -> list[Block]:
    """Goals met or not, then times at each width, then memory."""
    return _merging_report.blocks(records)
