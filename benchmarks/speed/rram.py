"""Training and evaluation through a chip: lowrank, JAX by hand, and PyTorch libraries.

Command: python -m benchmarks run speed/rram
Rows: 5
Cost: 25 min on 1 core

One training step (forward, backward, Adam) and the evaluation of many sampled chips,
for an MLP 784-512-10 and LeNet-5: lowrank's crossbar, the same chip model written by
hand in JAX, plain JAX and PyTorch, aihwkit-lightning and aihwkit. Logits are compared
first: lowrank and the chip by hand must agree, and a peer whose noise is not that of
the set is named and not timed. All contenders are timed within each round, in random
order, in fresh processes on a given number of cores and threads; what counts is the
median ratio, with its interval over rounds and processes.

One more row counts how often sweeps of a stuck rate and of a spread are traced.

PyTorch and aihwkit-lightning are in the extra `peers`; aihwkit is built from source
(see `docs/speed.md`). Without them their rows say so.
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _rram_report
from benchmarks.speed._rram_nets import NOISE
from benchmarks.timing import Comparison, combine, in_common, in_processes

MEASURE = "benchmarks.speed._rram_measure"


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    networks: tuple[str, ...] = ("mlp", "lenet")
    batch: int = 128
    """Images of a training step."""
    rows: int = 1000
    """Images of the evaluation of one chip."""
    tile: int = 512
    """Rows of a tile."""
    threads: int = 1
    """Threads and cores of everything."""
    rounds: int = 30
    """Rounds of training steps in each process."""
    processes: int = 3
    """Fresh processes of the training steps."""
    chips: int = 100
    """Chips of one call of lowrank and of JAX by hand."""
    batched: int = 20
    """Chips that vmap holds at once on a CPU; on an accelerator it holds all."""
    peer_chips: int = 5
    """Chips of one call of a peer; times are by chip."""
    chip_rounds: int = 5
    """Rounds of evaluations."""
    values: int = 5
    """Values of each sweep whose traces are counted."""
    shrink: int = 1
    """Divides the hidden width of the MLP, for tests."""
    contenders: tuple[str, ...] | None = None
    """What is timed; everything by default."""
    flags: str = ""
    """More flags for XLA."""
    seed: int = 0
    """Seed of weights, images, chips and of the order within the rounds."""

    def smoke(self) -> "Config":
        """The narrow MLP, two rounds, some of the contenders."""
        return dataclasses.replace(
            self,
            networks=("mlp",),
            batch=8,
            rows=16,
            rounds=2,
            processes=1,
            chips=2,
            batched=2,
            peer_chips=1,
            chip_rounds=1,
            values=2,
            tile=32,
            shrink=16,
            flags="--xla_backend_optimization_level=0",  # compiles in a quarter
            contenders=(
                "clean",
                "by hand, chip",
                "lowrank, chip",
                "lowrank, noise and converters",
                "lowrank, map",
                "lightning, noise and converters",
            ),
        )

    def sizes(self, network: str) -> dict[str, Any]:
        """Arguments of `problem`."""
        return {
            "name": network,
            "batch": self.batch,
            "rows": self.rows,
            "tile": self.tile,
            "shrink": self.shrink,
        }


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    shared: dict[str, Any] = {
        "threads": config.threads,
        "seed": config.seed,
        "flags": config.flags,
    }
    with session.progress(2 * len(config.networks) + 1, "rows") as bar:
        sizes = config.sizes(config.networks[0])
        _run_row(session, "traces", {"sizes": sizes, "values": config.values, **shared})
        bar.update()
        for network in config.networks:
            sizes = config.sizes(network)
            given = {"sizes": sizes, "names": config.contenders, **shared}
            steps = given | {"rounds": config.rounds}
            _run_row(session, f"step-{network}", steps, config.processes)
            bar.update()
            counts = {
                "own": config.chips,
                "vmap": config.batched,
                "peers": config.peer_chips,
            }
            many = given | {"rounds": config.chip_rounds, "counts": counts}
            _run_row(session, f"chips-{network}", many)
            bar.update()


def _run_row(
    session: Session, row: str, given: dict[str, Any], processes: int = 1
) -> None:
    """Measures one row in fresh processes."""
    key = given | {"processes": processes, "noise": NOISE._asdict()}
    if session.row(row, **key) is not None:
        return
    session.log(f"measuring {row}")
    start = time.perf_counter()
    function = row.partition("-")[0]
    parts = in_processes(f"{MEASURE}:{function}", given, processes)
    found = {n: v for n, v in parts[0].items() if n != "times"}
    if "times" in parts[0]:
        found["absent"] = {n: why for p in parts for n, why in p["absent"].items()}
        found["contenders"] = _ratios(combine(in_common(parts)))
    session.save(
        row,
        found,
        config=key,
        seconds=time.perf_counter() - start,
        seed=given["seed"],
    )


def _ratios(times: Comparison) -> dict[str, dict[str, Any]]:
    """Medians, and the ratio to every contender of lowrank that peers are held to."""
    found: dict[str, dict[str, Any]] = {}
    for name in times.names:
        found[name] = {
            "ms": times.median_ms(name),
            "cpu_ms": times.median_cpu_ms(name),
            "ratio": times.ratio(name),
        }
    for name, base in _rram_report.pairs(times.names).items():
        own = dataclasses.replace(times, baseline=name)
        found[name]["own"] = {b: own.ratio(b) for b in base}
    return found


def report(records: Records) -> list[Block]:
    """Goals met or not, then steps and chips of each network."""
    return _rram_report.blocks(records)
