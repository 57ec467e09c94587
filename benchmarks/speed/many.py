"""Many adapters at once: training, mixed batches, and what LoRA promises to deploy.

Command: python -m benchmarks run speed/many
Rows: 5
Cost: minutes on 2 cores

A step of 8 and of 32 adapters over one base (residual layers `x + tanh(x W)`), each
with data and an Adam of its own: all in one program under `vmap` or in its loop, one
program called for each in turn, and PEFT's trainings one after another. A batch of 32
examples, each with one of 32 adapters: routed, with one adapter for all, group after
group, and PEFT's `adapter_names`; and the gradient of such a batch. Results are
compared before anything is timed; all contenders are timed within each round, in random
order.

One more row holds what LoRA promises: bytes of 1, 10 and 100 tasks, the time to swap a
task, the latency of merged weights, and the memory of a training step with `A` frozen,
with `A` trained, and of full fine-tuning.

PEFT and PyTorch are in the extra `peers`; without them their columns say so.
"""

import dataclasses
import time
from collections.abc import Mapping
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _many_report
from benchmarks.timing import combine, in_processes

MEASURE = "benchmarks.speed._many_measure"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    rounds: int = 10
    """Rounds in each process; every contender runs once in each."""
    processes: int = 3
    """Fresh processes; the rounds of all of them count."""
    trained: tuple[int, ...] = (8, 32)
    """Numbers of adapters that are trained at once."""
    width: int = 512
    """Width of the network in training."""
    wide: int = 1024
    """Width of the network with mixed batches, and in deployment."""
    layers: int = 4
    rank: int = 8
    adapters: int = 32
    """Adapters of a mixed batch, which has as many examples."""
    examples: int = 8
    """Examples of each adapter in training."""
    length: int = 16
    """Tokens in an example."""
    seed: int = 0
    """Seed of all numbers, and of the order within the rounds."""

    def smoke(self) -> "Config":
        """Tiny sizes, two rounds, one process."""
        return dataclasses.replace(
            self,
            rounds=2,
            processes=1,
            trained=(2,),
            width=16,
            wide=16,
            layers=2,
            rank=2,
            adapters=3,
            examples=2,
            length=3,
        )

    def sizes(self, **changes: int) -> dict[str, int]:
        """Arguments of `Sizes`."""
        own = ("width", "layers", "rank", "adapters", "examples", "length")
        return {name: getattr(self, name) for name in own} | changes


def rows(config: Config) -> dict[str, tuple[str, dict[str, int]]]:
    """The function and the sizes of each row."""
    wide = config.sizes(width=config.wide, examples=config.adapters)
    found = {
        f"training-{n}": ("training", config.sizes(adapters=n)) for n in config.trained
    }
    return found | {
        "mixed": ("mixed", wide),
        "mixed-training": ("mixed_training", wide),
        "deployment": ("deployment", wide | {"adapters": config.trained[0]}),
    }


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    todo = rows(config)
    with session.progress(len(todo), "rows") as bar:
        for row, (function, sizes) in todo.items():
            given = {
                "sizes": sizes,
                "rounds": config.rounds,
                "processes": config.processes,
                "seed": config.seed,
            }
            if session.row(row, **given) is None:
                _measure(session, row, function, given)
            bar.update()


def _measure(
    session: Session, row: str, function: str, given: Mapping[str, Any]
) -> None:
    session.log(f"timing {row} in {given['processes']} fresh process(es)")
    start = time.perf_counter()
    args = {name: given[name] for name in ("sizes", "rounds", "seed")}
    parts = in_processes(f"{MEASURE}:{function}", args, given["processes"])
    series = {}
    metrics: dict[str, Any] = {
        n: x for n, x in parts[0].items() if n not in ("times", "latency", "swap")
    }
    for name in ("times", "latency", "swap"):
        if name in parts[0]:
            times = combine([part[name] for part in parts])
            metrics[name] = times.metrics()
            series |= {f"{name} {n}": ms.ravel() for n, ms in times.wall_ms.items()}
    metrics["agreement"] = {
        n: max(part["agreement"].get(n, 0.0) for part in parts)
        for n in parts[0]["agreement"]
    }
    seconds = time.perf_counter() - start
    session.save(
        row, metrics, config=given, series=series, seconds=seconds, seed=given["seed"]
    )


def report(records: Records) -> list[Block]:
    """Goals met or not, then times, bytes and memory."""
    return _many_report.blocks(records)
