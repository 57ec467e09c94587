"""Training in a random subspace: steps of each projection, and how Fastfood grows.

Command: python -m benchmarks run speed/subspace
Rows: 2
Cost: 4 min on 1 core

One training step (forward, backward, Adam) of a net of a million weights,
784-900-300-80 at batch 128: of all weights, and of `z` alone through each projection.
Beside lowrank's Fastfood stands the same product with `log2 L` passes of butterflies
over memory, as it is written elsewhere; both must move the weights alike before
anything is timed. The dense projection runs at d = 100, since at the others' d its
matrix would fill 4 GB.

The other row times `P z` and `P^T g` alone at powers of two from D = 65,536 to 16.8
million, where padding takes no part: what grows as D log D takes little more than a
constant time for each entry.

All contenders are timed within each round, in random order, in fresh processes on one
core and one thread; what counts is the median ratio, with its interval.
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _subspace_report
from benchmarks.timing import combine, in_processes

MEASURE = "benchmarks.speed._subspace_measure"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    widths: tuple[int, ...] = (784, 900, 300, 80)
    """Widths of the net."""
    batch: int = 128
    d: int = 1000
    """Dimensions of all projections but the dense one."""
    dense_d: int = 100
    """Dimensions of the dense one."""
    rounds: int = 30
    """Rounds in each process."""
    processes: int = 3
    """Fresh processes; the rounds of all of them count."""
    bits: tuple[int, ...] = (16, 17, 18, 19, 20, 21, 22, 23, 24)
    """log2 of the sizes at which the product alone is timed."""
    seed: int = 0
    """Seed of weights, projections and of the order within the rounds."""

    def smoke(self) -> "Config":
        """A tiny net, two rounds, one process."""
        return dataclasses.replace(
            self,
            widths=(20, 16, 10),
            batch=4,
            d=8,
            dense_d=4,
            rounds=2,
            processes=1,
            bits=(8, 9),
        )


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    shared = {"d": config.d, "rounds": config.rounds, "seed": config.seed}
    net = {"widths": config.widths, "batch": config.batch, "dense_d": config.dense_d}
    with session.progress(2, "rows") as bar:
        _run_row(session, "step", shared | net, config.processes)
        bar.update()
        _run_row(session, "growth", shared | {"bits": config.bits}, config.processes)
        bar.update()


def _run_row(session: Session, row: str, given: dict[str, Any], processes: int) -> None:
    """Measures one row in fresh processes."""
    key = given | {"processes": processes}
    if session.row(row, **key) is not None:
        return
    session.log(f"measuring {row} in {processes} fresh process(es)")
    start = time.perf_counter()
    parts = in_processes(f"{MEASURE}:{row}", given, processes)
    metrics = {name: value for name, value in parts[0].items() if name != "times"}
    metrics["contenders"] = combine([part["times"] for part in parts]).metrics()
    seconds = time.perf_counter() - start
    session.save(row, metrics, config=key, seconds=seconds, seed=given["seed"])


def report(records: Records) -> list[Block]:
    """Goals met or not, then steps, then growth."""
    return _subspace_report.blocks(records)
