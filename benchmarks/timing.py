"""Timings side by side: every callable in every round, in random order, as ratios.

A shared machine drifts by tens of per cent within minutes, which separate timings of
two programs take for a difference. Here each round times all callables within
moments of each other, and a result is the median over rounds of their ratio.
"""

import dataclasses
import gc
import importlib
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.stats import Interval, generator, median_interval


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Times of several callables, taken round by round, in one or more processes.

    Attributes:
        baseline: Name of the callable that the others are divided by.
        wall_ms: Wall times by name, `[processes, rounds]`, in milliseconds.
        cpu_ms: Processor times of the whole process by name, likewise; above the wall
            time where several threads work.
    """

    baseline: str
    wall_ms: dict[str, np.ndarray]
    cpu_ms: dict[str, np.ndarray]

    @property
    def names(self) -> list[str]:
        """Names of the callables, in the order given."""
        return list(self.wall_ms)

    def median_ms(self, name: str) -> float:
        """Returns the median wall time."""
        return float(np.median(self.wall_ms[name]))

    def median_cpu_ms(self, name: str) -> float:
        """Returns the median processor time."""
        return float(np.median(self.cpu_ms[name]))

    def ratios(self, name: str) -> np.ndarray:
        """Returns time over the baseline's time, round by round."""
        return self.wall_ms[name] / self.wall_ms[self.baseline]

    def ratio(self, name: str, *, level: float = 0.95) -> Interval:
        """Returns the median ratio and its bootstrap interval.

        Above 1 means slower than the baseline. With several processes the value is the
        median of the processes' medians, and processes are resampled too.
        """
        return median_interval(self.ratios(name), level=level)

    def metrics(self) -> dict[str, dict[str, float]]:
        """Returns medians and ratios by name, ready for a record."""
        found = {}
        for name in self.names:
            ratio = self.ratio(name)
            found[name] = {
                "median_ms": self.median_ms(name),
                "median_cpu_ms": self.median_cpu_ms(name),
                "ratio": ratio.value,
                "ratio_low": ratio.low,
                "ratio_high": ratio.high,
            }
        return found

    def as_dict(self) -> dict[str, Any]:
        """Returns the raw times as plain lists, for JSON; see `from_dict`."""
        return {
            "baseline": self.baseline,
            "wall_ms": {name: times.tolist() for name, times in self.wall_ms.items()},
            "cpu_ms": {name: times.tolist() for name, times in self.cpu_ms.items()},
        }

    @classmethod
    def from_dict(cls, body: Mapping[str, Any]) -> "Comparison":
        """Rebuilds a comparison from `as_dict`."""
        return cls(
            body["baseline"],
            {name: np.array(times) for name, times in body["wall_ms"].items()},
            {name: np.array(times) for name, times in body["cpu_ms"].items()},
        )


def compare(
    callables: Mapping[str, Callable[[], Any]],
    rounds: int = 30,
    *,
    warmup: int = 3,
    baseline: str | None = None,
    seed: int = 0,
    inner: int = 1,
    after: Mapping[str, Callable[[], Any]] | None = None,
) -> Comparison:
    """Times callables against each other.

    Args:
        callables: Functions of no arguments; what they return is waited for.
        rounds: Number of rounds; each times every callable once.
        warmup: Untimed calls of each beforehand, so that compilation is not timed.
        baseline: Which one the others are divided by; None takes the first.
        seed: Seed of the order within each round.
        inner: Calls within one timing, for callables of a few microseconds; times
            are per call.
        after: By name, what is called after each timing of that callable and is not
            timed itself: what undoes the call's side effects.

    Returns:
        A comparison of one process. Garbage collection is off while it measures.

    Raises:
        ValueError: If there is nothing to time or the baseline is no callable's name.
    """
    import jax  # kept out of `list`

    names = list(callables)
    baseline = names[0] if baseline is None and names else baseline
    if baseline not in callables or rounds < 1 or inner < 1:
        raise ValueError(
            f"compare: expected rounds >= 1, inner >= 1 and a baseline among {names}, "
            f"got {rounds}, {inner} and {baseline!r}. Name one of the callables."
        )
    undo = {name: lambda: None for name in names} | dict(after or {})
    for name in names:
        for _ in range(warmup):
            jax.block_until_ready(callables[name]())
            undo[name]()
    wall = {name: np.zeros((1, rounds)) for name in names}
    cpu = {name: np.zeros((1, rounds)) for name in names}
    order = generator(seed)
    collecting = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        for i in range(rounds):
            for name in order.permutation(names).tolist():
                function = callables[name]
                cpu_start, wall_start = time.process_time_ns(), time.perf_counter_ns()
                for _ in range(inner):
                    jax.block_until_ready(function())
                wall_end, cpu_end = time.perf_counter_ns(), time.process_time_ns()
                wall[name][0, i] = max(wall_end - wall_start, 1) / inner / 1e6
                cpu[name][0, i] = (cpu_end - cpu_start) / inner / 1e6
                undo[name]()
    finally:
        if collecting:
            gc.enable()
    return Comparison(baseline, wall, cpu)


def combine(parts: Sequence[Comparison | Mapping[str, Any]]) -> Comparison:
    """Joins comparisons of the same callables from several processes.

    Args:
        parts: Comparisons, or what their `as_dict` returned.

    Returns:
        One comparison whose intervals also cover the differences between processes.

    Raises:
        ValueError: If names, baselines or numbers of rounds differ, or none is given.
    """
    read = [p if isinstance(p, Comparison) else Comparison.from_dict(p) for p in parts]
    kinds = {(p.baseline, *p.names, p.wall_ms[p.baseline].shape[1]) for p in read}
    if len(kinds) != 1:
        raise ValueError(
            "combine: expected comparisons of the same callables, baseline and rounds, "
            f"got {sorted(map(str, kinds))}. Combine like with like."
        )
    return Comparison(
        read[0].baseline,
        {n: np.concatenate([p.wall_ms[n] for p in read]) for n in read[0].names},
        {n: np.concatenate([p.cpu_ms[n] for p in read]) for n in read[0].names},
    )


def in_common(parts: Sequence[Mapping[str, Any]]) -> list[Comparison]:
    """The times of what every process timed: a peer may be left out by one alone."""
    read = [Comparison.from_dict(part["times"]) for part in parts]
    names = [n for n in read[0].names if all(n in times.names for times in read)]
    return [
        Comparison(
            times.baseline,
            {n: times.wall_ms[n] for n in names},
            {n: times.cpu_ms[n] for n in names},
        )
        for times in read
    ]


def in_processes(
    module: str,
    args: Mapping[str, Any] | None = None,
    processes: int = 3,
    *,
    timeout: float | None = None,
) -> list[Any]:
    """Runs a function in fresh Python processes, one after the other.

    Compilation, memory layout and thread placement are drawn anew in each process, so
    what is true of one process need not be true of the program.

    Args:
        module: `package.module:function`; without a function, `measure`.
        args: Keyword arguments, as plain JSON values.
        processes: How many processes.
        timeout: Seconds allowed to each; None waits.

    Returns:
        What each call returned, as plain JSON values. What a process prints goes to
        this process's standard error.

    Raises:
        RuntimeError: If a process fails, with its traceback above it.
    """
    request = json.dumps({"module": module, "args": dict(args or {})})
    paths = [path for path in sys.path if path] + [os.getcwd()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    answers = []
    for i in range(processes):
        with tempfile.TemporaryDirectory() as folder:
            answer = pathlib.Path(folder) / "answer.json"
            command = [sys.executable, "-m", "benchmarks.timing", request, str(answer)]
            done = subprocess.run(
                command,
                env=environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=timeout,
            )
            if done.returncode or not answer.exists():
                raise RuntimeError(
                    f"in_processes: process {i + 1} of {processes} of {module!r} "
                    f"failed with code {done.returncode}:\n{done.stdout[-4000:]}"
                )
            sys.stderr.write(done.stdout)
            answers.append(json.loads(answer.read_text()))
    return answers


def _child(request: str, answer: str) -> None:
    """Runs in the fresh process: calls the function, writes its answer."""
    from benchmarks import record

    body = json.loads(request)
    module, _, function = body["module"].partition(":")
    result = getattr(importlib.import_module(module), function or "measure")(
        **body["args"]
    )
    pathlib.Path(answer).write_text(json.dumps(record.plain(result)))


if __name__ == "__main__":
    _child(*sys.argv[1:])
