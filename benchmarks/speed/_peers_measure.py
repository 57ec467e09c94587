"""What one fresh process measures of `speed/peers`: agreement, costs, times, memory."""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from benchmarks.speed._peers import first_line
from benchmarks.speed._peers_jax import MAKERS, Running
from benchmarks.speed._peers_nets import Factors, Problem, problem
from benchmarks.speed._peers_torch import Peft, versions
from benchmarks.speed._rram_measure import cores, pin
from benchmarks.timing import compare

NAME = "speed/peers"
PEERS = ("nnx", "qwix", "peft")
# Relative: of the first loss, and of the gradient in each factor, in the Euclidean
# norm. In float32 a wrong or missing term is of order 1, rounding of 1e-6; in bfloat16
# an operation rounds by 4e-3 already.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1e-1}


@dataclasses.dataclass
class Checked:
    """Contenders that agree, and why others are left out."""

    calls: dict[str, Any] = dataclasses.field(default_factory=dict)
    found: dict[str, dict[str, float]] = dataclasses.field(default_factory=dict)
    absent: dict[str, str] = dataclasses.field(default_factory=dict)


def backend() -> str:
    """Where JAX runs here: `cpu`, `gpu`, ..."""
    return jax.default_backend()


def _start(threads: int, flags: str, dtype: str) -> str:
    """Pins this process, and lets float32 be float32 on a GPU; gives the backend."""
    pin(threads, flags)
    jax.config.update("jax_enable_compilation_cache", False)
    where = backend()
    if where != "cpu" and dtype == "float32":
        jax.config.update("jax_default_matmul_precision", "highest")
    return where


def _made(given: Problem, name: str, where: str) -> Any:
    """A contender that is ready for its first step."""
    if name == "peft":
        return Peft(given, where)
    return Running(MAKERS[name](given), given.batch)


def _norm(gradient: Factors) -> float:
    squares = [np.vdot(x, x) for own in gradient.values() for x in own.values()]
    return float(np.sqrt(np.sum(squares)))


def distance(got: Factors, want: Factors) -> float:
    """The largest relative distance of the gradients in one factor.

    Raises:
        ValueError: If they are not of the same factors.
    """
    if got.keys() != want.keys():
        raise ValueError(f"{NAME}: gradients of {set(got) ^ set(want)} are missing.")
    pairs = [(got[p][n], x) for p, own in want.items() for n, x in own.items()]
    # NumPy's maximum keeps a NaN, which Python's may lose.
    return float(np.max([np.linalg.norm(x - y) / np.linalg.norm(y) for x, y in pairs]))


def checked(given: Problem, names: Sequence[str], where: str) -> Checked:
    """Makes contenders and compares the first steps with that of layers by hand.

    Raises:
        RuntimeError: If a contender of this project disagrees; of a peer it is noted.
    """
    out, want = Checked(), None
    for name in sorted({"flat", *names}, key=lambda name: name != "flat"):
        try:
            call = _made(given, name, where)
            loss, gradient = float(call()), call.gradient()
            want = want or (loss, gradient)
            about = {
                "loss": loss,
                "gradient_norm": _norm(gradient),
                "loss_difference": abs(loss / want[0] - 1),
                "gradient_difference": distance(gradient, want[1]),
            }
            fallen = loss - float(call())
        except ImportError as error:
            if name not in PEERS:
                raise
            out.absent[name] = f"not installed ({error.name or error})"
            continue
        except Exception as error:  # a peer's own error is a result, not ours
            if name not in PEERS:
                raise
            out.absent[name] = f"fails: {type(error).__name__}: {first_line(error)}"
            continue
        worst = np.max([about[f"{n}_difference"] for n in ("loss", "gradient")])
        text = f"its result differs by {worst:.1e}, relative"
        if worst <= TOLERANCE[given.dtype]:
            text = "" if fallen > 0 else "its loss does not fall"
        if text and name not in PEERS:
            raise RuntimeError(f"{NAME}: {name}: {text}.")
        if text:
            out.absent[name] = text
        elif name in names:
            out.calls[name], out.found[name] = call, about
    return out


def measure(
    net: Mapping[str, Any],
    names: Sequence[str],
    threads: int,
    rounds: int,
    seed: int,
    flags: str = "",
) -> dict[str, Any]:
    """Times one training step of every contender in this process.

    Args:
        net: Arguments of `problem`, without the seed.
        names: Contenders, `lowrank` among them.
        threads: Threads and cores of this process.
        rounds: Rounds of the comparison.
        seed: Of the problem and of the order within the rounds.
        flags: More flags for XLA.

    Returns:
        Times; by contender costs, first loss and gradient, and how they differ from
        those of layers by hand; reasons of those left out, versions, tokens of a step,
        cores and backend.
    """
    where = _start(threads, flags, net["dtype"])
    given = problem(**net, seed=seed)
    out = checked(given, names, where)
    calls = {n: out.calls[n] for n in names if n in out.calls}
    times = compare(calls, rounds, warmup=1, baseline="lowrank", seed=seed)
    for name, call in calls.items():
        out.found[name] |= call.costs()
    return {
        "times": times.as_dict(),
        "about": out.found,
        "absent": out.absent,
        "peers": versions(),
        "tokens": given.tokens,
        "cores": cores(),
        "backend": where,
    }


def resident(
    net: Mapping[str, Any], name: str, threads: int, seed: int, flags: str = ""
) -> float | None:
    """How much this process grows during two steps, at its peak, in MB.

    Args:
        net: Arguments of `problem`, without the seed.
        name: The one contender that this process makes.
        threads: Threads and cores of this process.
        seed: Of the problem.
        flags: More flags for XLA.

    Returns:
        None where the system does not tell, or the contender cannot be made.
    """
    where = _start(threads, flags, net["dtype"])
    try:
        call = _made(problem(**net, seed=seed), name, where)
        before = _status("VmRSS")
        pathlib.Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
    except (ImportError, RuntimeError, OSError):
        return None
    for _ in range(2):
        call()
    return _status("VmHWM") - before


def _status(entry: str) -> float:
    """An entry of this process's status, in MB."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith(entry):
            return int(line.split()[1]) * 1024 / 1e6
    raise OSError(f"no {entry} in /proc/self/status")
