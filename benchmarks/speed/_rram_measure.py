"""What one fresh process measures of chips: agreement, then times side by side."""

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.speed import _rram_jax as ours
from benchmarks.speed import _rram_peers as peers
from benchmarks.speed._peers import first_line
from benchmarks.speed._rram_nets import Problem, problem
from benchmarks.timing import Comparison, compare

# Both deploy the same chip, from the same numbers in another order.
TOLERANCE = 1e-4
# Noise of the logits of one contender over that of lowrank: a noise set that is not
# the same, or is not applied at all, is further away.
NOISE_RANGE = (0.75, 1.33)
# Draws of it: noise that a whole batch shares sits in few weights of a first kernel.
DRAWS = 64
EQUAL = {"noise": "lowrank, noise", "converters": "lowrank, noise and converters"}


def pin(threads: int, flags: str = "") -> None:
    """Keeps this process on as many cores, before JAX has made its threads.

    Args:
        threads: Threads of XLA and PyTorch, and cores.
        flags: More flags for XLA.
    """
    if hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))[-threads:]
        os.sched_setaffinity(0, cores)
    if threads == 1:
        flags = f"{flags} --xla_cpu_multi_thread_eigen=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}".strip()
    try:
        import torch
    except ImportError:
        return
    torch.set_num_threads(threads)


def cores() -> int:
    """How many cores this process may use."""
    known = hasattr(os, "sched_getaffinity")
    return len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1


def step(
    sizes: Mapping[str, Any],
    threads: int,
    rounds: int,
    names: Sequence[str] | None = None,
    seed: int = 0,
    flags: str = "",
) -> dict[str, Any]:
    """Times one training step of every contender in this process.

    Args:
        sizes: Arguments of `problem`, without the seed.
        threads: Threads and cores of this process.
        rounds: Rounds of the comparison.
        names: Contenders, `clean` among them; None: all.
        seed: Of the problem, the chip and the order within the rounds.
        flags: More flags for XLA.

    Returns:
        The comparison as plain lists, the spread that each contender's noise gives the
        logits, reasons of what is left out, versions and cores.
    """
    pin(threads, flags)
    jax.config.update("jax_enable_compilation_cache", False)
    given = problem(**sizes, seed=seed)
    made = ours.steps(given, seed, names)
    clean = given.apply(given.params, jnp.asarray(given.x))
    spreads = {n: s.spread(clean, DRAWS) for n, s in made.items()}
    _check_by_hand(given, made)
    calls: dict[str, Callable[[], Any]] = dict(made)
    absent = _add_peers(calls, given, names, np.asarray(clean), spreads)
    times = compare(calls, rounds, baseline="clean", seed=seed)
    return {
        "times": times.as_dict(),
        "spread": spreads,
        "absent": absent,
        **_about(),
    }


def _about() -> dict[str, Any]:
    return {
        "peers": peers.versions(),
        "cores": cores(),
        "backend": jax.default_backend(),
    }


def _check_by_hand(given: Problem, made: Mapping[str, ours.Step]) -> None:
    """Refuses to time a chip that is not the one written by hand.

    Raises:
        RuntimeError: If logits differ.
    """
    both = ("by hand, chip", "lowrank, chip")
    if not set(both) <= set(made):
        return
    first, second = (made[name].logits() for name in both)
    distance = float(jnp.abs(first - second).max() / jnp.abs(second).max())
    if not distance < TOLERANCE:
        raise RuntimeError(
            f"speed/rram: by hand and lowrank differ by {distance:.1e} on {given.name}."
        )


def _add_peers(
    calls: dict[str, Callable[[], Any]],
    given: Problem,
    names: Sequence[str] | None,
    clean: np.ndarray,
    spreads: dict[str, float],
) -> dict[str, str]:
    """Adds every peer that is installed and has the noise set; the others' reasons."""
    absent = {}
    for name in peers.PEERS:
        if names is not None and name not in names:
            continue
        model = _model(name, given, absent)
        if model is None:
            continue
        found = np.stack([model.logits() - clean for _ in range(DRAWS)])
        spreads[name] = float(np.sqrt(np.mean(np.square(found))))
        if (reason := _other_noise(name, spreads)) is None:
            calls[name] = model.step
        else:
            absent[name] = reason
    return absent


def _model(name: str, given: Problem, absent: dict[str, str]) -> peers.Model | None:
    """A peer's network; or None, and why there is none."""
    try:
        return peers.Model(name, given)
    except ImportError as error:
        absent[name] = f"not installed ({error.name or error})"
    except Exception as error:  # a peer's own error is a result, not ours
        absent[name] = f"fails: {type(error).__name__}: {first_line(error)}"
    return None


def _other_noise(name: str, spreads: Mapping[str, float]) -> str | None:
    """Why a peer's noise is not that of the set, or None."""
    if name == "torch":
        return None if spreads[name] < TOLERANCE else "its logits differ"
    if equal(name) not in spreads:
        return None
    low, high = NOISE_RANGE
    share = spreads[name] / spreads[equal(name)]
    return None if low < share < high else f"its noise is {share:.2f} of lowrank's"


def equal(name: str) -> str:
    """The contender of lowrank with a peer's noise set."""
    return EQUAL["converters" if name.endswith("converters") else "noise"]


def chips(
    sizes: Mapping[str, Any],
    threads: int,
    rounds: int,
    counts: Mapping[str, int],
    names: Sequence[str] | None = None,
    seed: int = 0,
    flags: str = "",
) -> dict[str, Any]:
    """Times the evaluation of many chips, in milliseconds for each chip.

    Args:
        sizes: As for `step`.
        threads: As for `step`.
        rounds: As for `step`.
        counts: Chips of one call of this project's contenders (`own`), of those that
            are batched (`vmap`), and of peers (`peers`).
        names: Contenders, `lowrank, map` among them; None: all.
        seed: As for `step`.
        flags: As for `step`.

    Returns:
        As `step`, with times by chip and the chips of each call.
    """
    pin(threads, flags)
    jax.config.update("jax_enable_compilation_cache", False)
    given = problem(**sizes, seed=seed)
    calls = ours.chips(given, counts["own"], counts["vmap"], seed, names)
    made = {n: counts["vmap" if n.endswith("vmap") else "own"] for n in calls}
    absent: dict[str, str] = {}
    for name in peers.PEERS:
        if name == "torch" or (names is not None and name not in names):
            continue
        if (model := _model(name, given, absent)) is not None:
            calls[name] = model.evaluate(counts["peers"])
            made[name] = counts["peers"]
    times = compare(calls, rounds, warmup=1, baseline="lowrank, map", seed=seed)
    return {
        "times": _each(times, made).as_dict(),
        "chips": made,
        "absent": absent,
        **_about(),
    }


def _each(times: Comparison, count: Mapping[str, int]) -> Comparison:
    """Times of one chip."""
    return Comparison(
        times.baseline,
        {n: t / count[n] for n, t in times.wall_ms.items()},
        {n: t / count[n] for n, t in times.cpu_ms.items()},
    )


def traces(
    sizes: Mapping[str, Any],
    values: int,
    threads: int = 1,
    seed: int = 0,
    flags: str = "",
) -> dict[str, Any]:
    """How often a function is traced while two numbers of the device are swept.

    Args:
        sizes: As for `step`.
        values: Values of each sweep.
        threads: As for `step`.
        seed: As for `step`.
        flags: As for `step`.

    Returns:
        The number of traces.
    """
    pin(threads, flags)
    found = ours.traces(problem(**sizes, seed=seed), values, seed)
    return {"traces": found, **_about()}
