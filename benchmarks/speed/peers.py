"""A LoRA training step on shapes of public models: lowrank, PEFT, qwix, nnx, by hand.

Command: python -m benchmarks run speed/peers
Rows: 2
Cost: 12 min on 1 core

One step (forward, backward, Adam) of rank-8 adapters on every dense layer of a
transformer with random weights: MiniLM-L6 on 16 x 64 tokens, SmolLM2-135M on 2 x 64,
and, on a GPU, two layers of Llama-3-8B on 4 x 512. All contenders start from the same
weights, factors and batch. lowrank lifts the unmodified model; the same model carries
`nnx.LoRA`, qwix's `LoraProvider`, and layers written by hand in plain JAX, on
`[tokens, in]` and as they are usually written; PEFT runs the model of transformers.
Full fine-tuning with Adam is the same model again. The first loss and the gradient in
every factor must agree (1e-4 relative in float32, 1e-1 in bfloat16) before anything is
timed. All are timed within each round, in random order, in fresh processes on a given
number of cores and threads; what counts is the median ratio, with its interval.

Hypotheses, written before any run:

- lowrank is not slower than any contender in JAX: its time over theirs is at most 1,
  or the interval reaches 1. On a CPU it is as fast as layers by hand on `[tokens, in]`,
  whose products it runs, and faster than the other three, which keep `x` at rank 3.
- lowrank is faster than PEFT, on a CPU and on a GPU.
- On layers of Llama-3-8B on a GPU the step is at least 1.4 times as fast as full
  fine-tuning with Adam (the ratio of the products alone is 1.5).

The peers are the extra `peers`; one that is missing is named and left out.
"""

import dataclasses
import os
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.speed import _peers_report
from benchmarks.timing import Comparison, combine, in_common, in_processes

MEASURE = "benchmarks.speed._peers_measure"
_COSTS = ("trace_s", "compile_s", "gflop", "temp_mb", "argument_mb", "peak_mb")


@dataclasses.dataclass(frozen=True)
class Config:
    """Options of the timings."""

    nets: tuple[str, ...] = ()
    """Networks; empty: minilm and smollm2, and on an accelerator llama8b too."""
    contenders: tuple[str, ...] = tuple(_peers_report.NAMES)
    """What is run; lowrank always is."""
    dtype: str = "float32"
    """Type of the products and of what is not trained: float32 or bfloat16."""
    rank: int = 8
    alpha: float = 16.0
    """The adapters' scale is alpha / rank."""
    threads: int = 1
    """Threads and cores of everything; an accelerator is fed by all there are."""
    rounds: int = 8
    """Rounds in each process; every contender runs once in each."""
    processes: int = 2
    """Fresh processes; the rounds of all of them count."""
    resident: tuple[str, ...] = ("lowrank", "peft")
    """Contenders whose growth is measured in a process of their own, on a CPU."""
    shrink: int = 1
    """Divides all sizes, for tests."""
    flags: str = ""
    """More flags for XLA."""
    seed: int = 0
    """Seed of weights, factors, tokens and of the order within the rounds."""

    def __post_init__(self) -> None:
        """Refuses unknown names.

        Raises:
            ValueError: If a network, a contender or the type is unknown.
        """
        known = {
            "nets": (self.nets, _peers_report.NETS),
            "contenders": (self.contenders, _peers_report.NAMES),
            "dtype": ([self.dtype], ("float32", "bfloat16")),
        }
        for option, (given, names) in known.items():
            if wrong := set(given) - set(names):
                raise ValueError(
                    f"speed/peers: unknown {option} {sorted(wrong)}. Known: "
                    f"{', '.join(names)}."
                )

    def smoke(self) -> "Config":
        """One layer, a sixteenth as wide, two rounds, some of the contenders."""
        return dataclasses.replace(
            self,
            nets=("minilm",),
            contenders=("lowrank", "flat", "nnx"),
            rank=2,
            rounds=2,
            processes=1,
            resident=("lowrank",),
            shrink=16,
            flags="--xla_backend_optimization_level=0",  # compiles in a quarter
        )

    def net(self, name: str) -> dict[str, Any]:
        """Arguments of `problem`."""
        return {
            "name": name,
            "rank": self.rank,
            "alpha": self.alpha,
            "dtype": self.dtype,
            "shrink": self.shrink,
        }


def run(config: Config, session: Session) -> None:
    """Measures what has no record yet."""
    # A process that takes a whole GPU leaves none to the next, or to PyTorch.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    (where,) = in_processes(f"{MEASURE}:backend", {}, 1)
    nets = config.nets or _peers_report.by_default(where)
    with session.progress(len(nets), "rows") as bar:
        for name in nets:
            _run_row(config, session, name, where)
            bar.update()


def _run_row(config: Config, session: Session, name: str, where: str) -> None:
    row = f"{name}-{where}-{config.dtype}"
    shared = {
        "net": config.net(name),
        "threads": config.threads if where == "cpu" else _cores(),
        "seed": config.seed,
        "flags": config.flags,
    }
    names = list(dict.fromkeys(("lowrank", *config.contenders)))
    timed = shared | {"names": names, "rounds": config.rounds}
    alone = [n for n in config.resident if n in names and where == "cpu"]
    key = timed | {
        "processes": config.processes,
        "resident": alone,
        "backend": where,
    }
    if session.row(row, **key) is not None:
        return
    session.log(f"timing {row} in {config.processes} fresh process(es)")
    start = time.perf_counter()
    parts = in_processes(f"{MEASURE}:measure", timed, config.processes)
    metrics = summary(parts)
    for own in alone:
        args = shared | {"name": own}
        (grown,) = in_processes(f"{MEASURE}:resident", args, 1)
        if own in metrics["contenders"]:
            metrics["contenders"][own]["resident_mb"] = grown
    times = combine(in_common(parts))
    session.save(
        row,
        metrics,
        config=key,
        series={n: wall.ravel() for n, wall in times.wall_ms.items()},
        seconds=time.perf_counter() - start,
        seed=config.seed,
    )


def summary(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Puts together what several processes measured of one network.

    Args:
        parts: What `_peers_measure.measure` returned in each.

    Returns:
        By contender: medians, tokens per second, its time over lowrank's and the other
        way round, by wall and by processor time, the median of each cost, and the
        largest difference from layers by hand; what else the processes told.
    """
    times = combine(in_common(parts))
    busy = dataclasses.replace(times, wall_ms=times.cpu_ms)
    tokens, found = parts[0]["tokens"], {}
    for name in times.names:
        about = [part["about"][name] for part in parts]
        ms = times.median_ms(name)
        found[name] = {
            "ms": ms,
            "cpu_ms": times.median_cpu_ms(name),
            "tokens_s": tokens / ms * 1e3,
            "ratio": times.ratio(name),
            "cpu_ratio": busy.ratio(name),
            "own": _own(times, name),
            **{c: _median([a[c] for a in about]) for c in _COSTS if c in about[0]},
            **{c: about[0][c] for c in ("loss", "gradient_norm")},
            "difference": max(
                a[f"{which}_difference"]
                for a in about
                for which in ("loss", "gradient")
            ),
        }
    told = ("peers", "tokens", "cores", "backend")
    absent = {name: why for part in parts for name, why in part["absent"].items()}
    return {"contenders": found, "absent": absent} | {n: parts[0][n] for n in told}


def _cores() -> int:
    """How many cores there are for this process and its children."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def _own(times: Comparison, name: str) -> Any:
    """The time of lowrank over a contender's."""
    return dataclasses.replace(times, baseline=name).ratio("lowrank")


def _median(values: Sequence[float]) -> float:
    ordered = sorted(values)
    return (ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]) / 2


def report(records: Records) -> list[Block]:
    """Goals met or not, then times and costs of every contender."""
    return _peers_report.blocks(records)
