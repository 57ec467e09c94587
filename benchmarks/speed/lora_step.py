"""One training step with adapters: lowrank, layers by hand, and other libraries.

Command: python -m benchmarks run speed/lora_step
Rows: 6
Cost: 8 min on 2 cores

Times a jitted value-and-gradient step, of some contenders also with its Adam update, of
a transformer (6 layers, width 384, 1,024 tokens) and of single layers `tanh(x W)` of
width 512, 1024 and 2048, all with adapters of rank 8. Every contender runs the same
mathematics from the same numbers; losses and gradients are compared before anything is
timed. All are timed within each round, in random order, in three fresh processes; what
counts is the median ratio, with its interval.

Two more rows read compiled programs and time nothing: memory under scan and remat, and
eight adapters under `vmap`.

The other libraries are the extra `peers`; one that is not installed is named in the
report and left out.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _lora_report
from benchmarks.speed._networks import Sizes
from benchmarks.timing import Comparison, combine, in_processes

MEASURE = "benchmarks.speed._measure"
_COSTS = ("trace_s", "compile_s", "gflop", "temp_mb", "output_mb")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    rounds: int = 10
    """Rounds in each process; every contender runs once in each."""
    processes: int = 3
    """Fresh processes; the rounds of all of them count."""
    layers: tuple[int, ...] = (512, 1024, 2048)
    """Widths of the single layers."""
    contenders: tuple[str, ...] = tuple(_lora_report.NAMES)
    """What is run."""
    adam: tuple[str, ...] = ("lowrank", "flat", "full")
    """Contenders whose step is also timed with its Adam update."""
    tasks: int = 8
    """Adapters under `vmap`."""
    blocks: int = 6
    """Layers of the transformer."""
    width: int = 384
    hidden: int = 1536
    heads: int = 6
    batch: int = 8
    """Sequences."""
    length: int = 128
    """Tokens in a sequence."""
    rank: int = 8
    seed: int = 0
    """Seed of the order within the rounds."""

    def smoke(self) -> "Config":
        """Tiny sizes, two rounds, one process."""
        return dataclasses.replace(
            self,
            rounds=2,
            processes=1,
            layers=(32,),
            contenders=("lowrank", "flat", "nnx", "materialised"),
            adam=("lowrank",),
            blocks=1,
            width=16,
            hidden=48,
            heads=2,
            batch=2,
            length=12,
            rank=2,
        )

    def transformer(self) -> dict[str, int]:
        """Arguments of `Sizes`."""
        sizes = Sizes(
            layers=self.blocks,
            width=self.width,
            hidden=self.hidden,
            heads=self.heads,
            batch=self.batch,
            length=self.length,
            rank=self.rank,
        )
        return dataclasses.asdict(sizes)

    def layer(self, size: int) -> dict[str, int]:
        """Arguments of `layer_network`."""
        rest = {"batch": self.batch, "length": self.length, "rank": self.rank}
        return {"size": size, **rest}


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    layers = {f"layer-{size}": config.layer(size) for size in config.layers}
    with session.progress(len(layers) + 3, "rows") as bar:
        _run_timed(config, session, layers)
        bar.update(len(layers))
        _run_timed(config, session, {"transformer": config.transformer()})
        bar.update()
        given = {"sizes": config.transformer(), "names": config.contenders}
        _run_read(session, "scan-remat", "under_scan", given)
        bar.update()
        networks = {
            "layer": config.layer(config.layers[0]),
            "transformer": config.transformer(),
        }
        given = {"networks": networks, "tasks": config.tasks}
        _run_read(session, "many-adapters", "many_adapters", given)
        bar.update()


def _run_timed(
    config: Config, session: Session, networks: Mapping[str, Mapping[str, int]]
) -> None:
    """Times networks that share their processes."""
    given = {
        row: {
            "network": dict(sizes),
            "contenders": config.contenders,
            "adam": config.adam,
            "rounds": config.rounds,
            "processes": config.processes,
            "seed": config.seed,
        }
        for row, sizes in networks.items()
    }
    rows = [row for row in networks if session.row(row, **given[row]) is None]
    if not rows:
        return
    session.log(f"timing {', '.join(rows)} in {config.processes} fresh process(es)")
    start = time.perf_counter()
    parts = in_processes(
        f"{MEASURE}:measure",
        {
            "networks": [networks[row] for row in rows],
            "names": config.contenders,
            "adam": config.adam,
            "rounds": config.rounds,
            "seed": config.seed,
        },
        config.processes,
    )
    seconds = (time.perf_counter() - start) / len(rows)
    for i, row in enumerate(rows):
        own = [part[i] for part in parts]
        times = combine([part["times"] for part in own])
        session.save(
            row,
            summary(own, times),
            config=given[row],
            series={name: wall.ravel() for name, wall in times.wall_ms.items()},
            seconds=seconds,
            seed=config.seed,
        )


def summary(parts: Sequence[Mapping[str, Any]], times: Comparison) -> dict[str, Any]:
    """Puts together what several processes measured of one network.

    Args:
        parts: What `_measure.measure` returned for it, from each process.
        times: Their times.

    Returns:
        By contender: times, ratios to `lowrank` and to `flat`, the median of each cost,
        and the largest difference of its results; the reasons of those left out.
    """
    found: dict[str, dict[str, Any]] = {}
    for name in times.names:
        found[name] = {
            "median_ms": times.median_ms(name),
            "median_cpu_ms": times.median_cpu_ms(name),
        }
        for other in {"lowrank", "flat", "full"} & set(times.names):
            against = dataclasses.replace(times, baseline=other)
            found[name][f"ratio_{other}"] = against.ratio(name)
    for name in parts[0]["costs"]:
        costs = [part["costs"][name] for part in parts]
        found[name] |= {cost: _median([c[cost] for c in costs]) for cost in _COSTS}
        differences = [part["agreement"][name] for part in parts]
        found[name]["difference"] = max(max(own.values()) for own in differences)
    return {
        "contenders": found,
        "absent": parts[0]["absent"],
        "peers": parts[0]["peers"],
    }


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def _run_read(
    session: Session, row: str, function: str, given: Mapping[str, Any]
) -> None:
    """Reads compiled programs in one fresh process."""
    if session.row(row, **given) is not None:
        return
    session.log(f"compiling {row}")
    start = time.perf_counter()
    (found,) = in_processes(f"{MEASURE}:{function}", given, 1)
    seconds = time.perf_counter() - start
    session.save(row, found, config=given, seconds=seconds, seed=0)


def report(records: Records) -> list[Block]:
    """Goals met or not, then times and costs of every contender."""
    return _lora_report.blocks(records)
