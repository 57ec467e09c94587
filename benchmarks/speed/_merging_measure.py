"""What one fresh process measures of merges: agreement, then times side by side."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.speed import _merging_dense as dense
from benchmarks.speed import _merging_methods as methods
from benchmarks.speed import _merging_peers as peers
from benchmarks.speed._peers import first_line
from benchmarks.timing import Comparison, compare

# Relative, in the Frobenius norm: a truncation at a small gap between singular values
# loses digits; a wrong or missing term is of order 1.
TOLERANCE = 1e-3
RANDOM = "dare"  # draws of its own in every library
# Cuts and votes over singular vectors: where two singular values lie close, as those of
# random factors do, rounding turns the vectors and moves entries over the threshold.
UNSTABLE = ("knots",)

Calls = dict[str, Callable[[], Any]]


@dataclasses.dataclass(frozen=True)
class Limits:
    """How long to measure.

    Attributes:
        seconds: About how long the rounds of one method may take.
        least: Rounds at least.
        most: Rounds at most.
    """

    seconds: float
    least: int
    most: int


def measure(
    sizes: Mapping[str, int], names: Sequence[str], limits: Mapping[str, Any], seed: int
) -> dict[str, Any]:
    """Measures every method at one width in this process.

    Args:
        sizes: Arguments of `problem`, without the seed.
        names: Methods of `_merging_methods.METHODS`.
        limits: Arguments of `Limits`.
        seed: Seed of the factors and of the order within the rounds.

    Returns:
        For each method times, ratios, rounds and agreement by contender; the reasons of
        what is left out; versions and threads.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    given = methods.problem(**sizes, seed=seed)
    peft, absent = _peft(given)
    found = {}
    for name in names:
        reason = methods.absent(name)
        found[name] = (
            {"absent": {"lowrank": reason}}
            if reason
            else measured(name, given, peft, Limits(**limits), seed)
        )
    return {
        "methods": found,
        "absent": absent,
        "peers": {**peers.versions(), "numpy": np.__version__},
        "threads": peers.threads(),
    }


def _peft(given: methods.Problem) -> tuple[peers.Peft | None, str | None]:
    """The model under PEFT, or why there is none."""
    try:
        return peers.Peft(given), None
    except ImportError as error:
        return None, f"not installed ({error.name or error})"


def measured(
    name: str,
    given: methods.Problem,
    peft: peers.Peft | None,
    limits: Limits,
    seed: int,
) -> dict[str, Any]:
    """Checks and times one method.

    Raises:
        RuntimeError: If lowrank's merge is not the one in NumPy; of PEFT it is noted.
    """
    program, args = methods.compiled(name, given), methods.arguments(given)
    own = methods.change(program(*args))
    calls: Calls = {"lowrank": lambda: program(*args)}
    agreement: dict[str, float] = {}
    absent: dict[str, str] = {}
    if name in dense.DENSE:
        calls["dense"] = lambda: dense.DENSE[name](given)
        a, b = calls["dense"]()
        agreement["dense"] = _distance(a @ b, own)
        if agreement["dense"] > TOLERANCE and name in UNSTABLE:
            del calls["dense"]
            absent["dense"] = f"its result differs by {agreement['dense']:.1e}"
        elif agreement["dense"] > TOLERANCE:
            raise RuntimeError(
                f"speed/merging: {name} differs by {agreement['dense']:.1e}, relative."
            )
    if peft is not None and name in peers.TYPES:
        reason = _checked_peft(name, peft, own, agreement)
        if reason is None:
            calls["peft"] = peft.call(name)
        else:
            absent["peft"] = reason
    times = _timed(calls, peft, limits, seed)
    memory = program.memory_analysis()
    return {
        **_summary(times),
        "rounds": times.wall_ms["lowrank"].shape[1],
        "agreement": agreement,
        "absent": absent,
        "temp_mb": memory.temp_size_in_bytes / 1e6,
    }


def _checked_peft(
    name: str, peft: peers.Peft, own: np.ndarray, agreement: dict[str, float]
) -> str | None:
    """Why PEFT's merge is not timed, or None; notes its distance from lowrank's."""
    try:
        peft.call(name)()
        result = peft.change()
    except Exception as error:  # a peer's own error is a result, not ours
        return f"fails: {type(error).__name__}: {first_line(error)}"
    finally:
        peft.clear()
    if name.startswith(RANDOM):
        return None
    agreement["peft"] = distance = _distance(result, own)
    return None if distance <= TOLERANCE else f"its result differs by {distance:.1e}"


def _distance(got: np.ndarray, want: np.ndarray) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _timed(
    calls: Calls, peft: peers.Peft | None, limits: Limits, seed: int
) -> Comparison:
    """As many rounds as the time allows."""
    after = {} if peft is None else {"peft": peft.clear}
    spent = 0.0
    for name, call in calls.items():
        start = time.perf_counter()
        jax.block_until_ready(call())
        spent += time.perf_counter() - start
        after.get(name, lambda: None)()
    rounds = min(max(limits.least, int(limits.seconds / spent)), limits.most)
    warmup = 2 if spent < 1 else 0  # every call ran twice by now
    return compare(
        calls, rounds, warmup=warmup, baseline="lowrank", seed=seed, after=after
    )


def _summary(times: Comparison) -> dict[str, Any]:
    """Medians; others' times over lowrank's, and lowrank's over theirs."""
    found: dict[str, Any] = {"ms": {n: times.median_ms(n) for n in times.names}}
    found["ratio"] = {n: times.ratio(n) for n in times.names if n != "lowrank"}
    found["own_ratio"] = {
        n: dataclasses.replace(times, baseline=n).ratio("lowrank")
        for n in found["ratio"]
    }
    return found


def memory(
    widths: Sequence[int], adapters: int, rank: int, names: Sequence[str], seed: int
) -> dict[str, Any]:
    """Peak temporary memory of the compiled merges at several widths.

    Returns:
        By width, `N sum r` floats in MB and by method the temporary MB.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    found = {}
    for size in widths:
        given = methods.problem(size, adapters, rank, seed)
        temp = {}
        for name in names:
            if methods.absent(name) is None:
                costs = methods.compiled(name, given).memory_analysis()
                temp[name] = costs.temp_size_in_bytes / 1e6
        found[str(size)] = {
            "unit_mb": 4 * size * adapters * rank / 1e6,
            "weight_mb": 4 * size * size / 1e6,
            "temp_mb": temp,
        }
    return found
