"""Many adapters at once: training, mixed batches, and what LoRA promises to deploy.

Command: python -m benchmarks run speed/many
Rows: 6
Cost: 4 min on 2 cores

A step of 8 and of 32 adapters over one base (residual layers `x + tanh(x W)`), each
with data and an Adam of its own: all in one program under `vmap` or in its loop, one
program called for each in turn as `fit` would run it alone, and PEFT's trainings one
after another; also of 16 adapters with small batches, where a GPU has room to spare. A
batch of 32 examples, each with one of 32 adapters: routed, with one adapter for all,
group after group, and PEFT's `adapter_names`; and the gradient of such a batch. Results
are compared before anything is timed, gradients with those of one adapter at a time;
all contenders are timed within each round, in random order.

One more row holds what LoRA promises: bytes of 1, 10 and 100 tasks, the time to swap a
task, the latency of merged weights, and the memory of a training step with `A` frozen,
with `A` trained, and of full fine-tuning.

It runs where JAX runs: on a GPU, where float32 is computed in full, its rows are others
than those of a CPU, and so are its goals.

PEFT and PyTorch are in the extra `peers`; without them their columns say so.
"""

import dataclasses
import os
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
    small: int = 16
    """Number of adapters that are trained at once with small batches."""
    small_examples: int = 2
    """Examples of each of these."""
    width: int = 512
    """Width of the network in training."""
    wide: int = 1024
    """Width of the network with mixed batches."""
    deployed: int = 2048
    """Width of the network in deployment."""
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
            small=2,
            small_examples=1,
            width=16,
            wide=16,
            deployed=16,
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
    small = config.sizes(adapters=config.small, examples=config.small_examples)
    deployed = {"width": config.deployed, "adapters": config.trained[0]}
    return found | {
        f"training-{config.small}-small": ("training", small),
        "mixed": ("mixed", wide),
        "mixed-training": ("mixed_training", wide),
        "deployment": ("deployment", wide | deployed),
    }


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    # A process that takes a whole GPU leaves none to the next, or to PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    (where,) = in_processes(f"{MEASURE}:backend", {}, 1)
    todo = rows(config)
    with session.progress(len(todo), "rows") as bar:
        for name, (function, sizes) in todo.items():
            row = name if where == "cpu" else f"{name}-{where}"
            given = {
                "backend": where,
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
