"""What one fresh process measures of many adapters: agreement, times, bytes."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import lowrank as lrk
from benchmarks.speed import _many_net as net
from benchmarks.speed import _many_peers as peers
from benchmarks.speed._merging_peers import threads, versions
from benchmarks.speed._peers import first_line
from benchmarks.timing import compare

# Relative, in the Euclidean norm; a wrong or missing adapter is of order 1e-2 and more.
TOLERANCE = 1e-4
NAME = "speed/many"

Calls = dict[str, Callable[[], Any]]


def backend() -> str:
    """Where JAX runs here: `cpu`, `gpu`, ..."""
    return jax.default_backend()


def _start() -> str:
    """Compiles anew, and lets float32 be float32 on a GPU; gives the backend."""
    jax.config.update("jax_enable_compilation_cache", False)
    where = backend()
    if where != "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")
    return where


def _distance(got: Any, want: Any) -> float:
    """The largest relative distance of one array; a tree's are told apart."""
    if isinstance(want, tuple | dict):
        pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
        # NumPy's maximum keeps a NaN, which Python's may lose.
        return float(np.max([_distance(*pair) for pair in pairs]))
    got = got.cpu() if hasattr(got, "cpu") else got  # PyTorch's, on a GPU
    got, want = (np.asarray(x, np.float64).ravel() for x in (got, want))
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def _peft(given: net.Problem, where: str, absent: dict[str, str]) -> peers.Peft | None:
    """The model under PEFT; where there is none, why."""
    try:
        return peers.Peft(given, where)
    except ImportError as error:
        absent["peft"] = f"not installed ({error.name or error})"
    except RuntimeError as error:
        absent["peft"] = f"fails: {first_line(error)}"
    return None


def _agreeing(
    calls: Calls, want: Mapping[str, Any], absent: dict[str, str]
) -> dict[str, float]:
    """Distances of results from what they should be; a peer that is wrong is left out.

    Raises:
        RuntimeError: If one of lowrank's is wrong.
    """
    found: dict[str, float] = {}
    for name in list(calls):
        if name not in want:
            continue
        try:
            found[name] = _distance(calls[name](), want[name])
        except Exception as error:
            if not name.startswith("peft"):
                raise
            absent[name] = f"fails: {type(error).__name__}: {first_line(error)}"
            del calls[name]
            continue
        if not found[name] <= TOLERANCE:
            reason = f"its result differs by {found[name]:.1e}, relative"
            if not name.startswith("peft"):
                raise RuntimeError(f"{NAME}: {name}: {reason}.")
            absent[name] = reason
            del calls[name]
    return found


def training(sizes: Mapping[str, int], rounds: int, seed: int) -> dict[str, Any]:
    """Times a step of all adapters: at once, one after another, and by PEFT."""
    where, absent = _start(), {}
    given = net.problem(net.Sizes(**sizes), seed)
    calls: Calls = {m: net.trainer(given, m) for m in ("vmap", "map")}
    calls["in turn"] = net.one_by_one(given)
    if (peft := _peft(given, where, absent)) is not None:
        calls["peft"] = peft.trainer()
    # The second losses tell whether the updates agree too.
    first = np.asarray(calls["in turn"]())
    agreement = _agreeing(calls, {n: first for n in calls if n != "in turn"}, absent)
    second = np.asarray(calls["in turn"]())
    again = _agreeing(calls, {n: second for n in calls if n != "in turn"}, absent)
    agreement = {n: max(x, agreement[n]) for n, x in again.items()}
    times = compare(calls, rounds, warmup=1, baseline="in turn", seed=seed)
    return _told(times, agreement, absent)


def mixed(sizes: Mapping[str, int], rounds: int, seed: int) -> dict[str, Any]:
    """Times a batch of many adapters, forward."""
    where, absent = _start(), {}
    given = net.problem(net.Sizes(**sizes), seed)
    ids = net.ids_of(given, seed)
    calls: Calls = dict(net.mixed(given, ids))
    if (peft := _peft(given, where, absent)) is not None:
        calls |= peft.mixed(ids)
    own = net.trees(given)
    run = jax.jit(lrk.lift(net.model))
    each = [run(own[i], x) for i, x in zip(ids, given.x[0], strict=True)]
    want = {"routed": np.stack(each), "peft mixed": np.stack(each)}
    want["peft single"] = np.asarray(run(own[0], given.x[0]))
    agreement = _agreeing(calls, want, absent)
    times = compare(calls, rounds, warmup=1, baseline="single", seed=seed)
    return _told(times, agreement, absent)


def mixed_training(sizes: Mapping[str, int], rounds: int, seed: int) -> dict[str, Any]:
    """Times loss and gradient of a batch of many adapters, over those of one."""
    _start()
    given = net.problem(net.Sizes(**sizes), seed)
    ids = net.ids_of(given, seed)
    calls: Calls = dict(net.mixed_gradients(given, ids))
    want = net.gradients_in_turn(given, ids)
    agreement = _agreeing(calls, {n: want for n in calls if n != "single"}, {})
    times = compare(calls, rounds, warmup=1, baseline="single", seed=seed)
    return _told(times, agreement, {})


def _told(times: Any, agreement: Any, absent: Any) -> dict[str, Any]:
    return {
        "times": times.as_dict(),
        "agreement": agreement,
        "absent": absent,
        "peers": versions(),
        "threads": threads(),
    }


def deployment(sizes: Mapping[str, int], rounds: int, seed: int) -> dict[str, Any]:
    """Bytes of many tasks, memory of training, and times of swapping and merging."""
    _start()
    given = net.problem(net.Sizes(**sizes), seed)
    x, own = jnp.asarray(given.x[0]), net.trees(given)
    merged = jax.jit(lrk.materialize)(own[0])
    plain, lifted = jax.jit(net.model), jax.jit(lrk.lift(net.model))
    difference = _distance(plain(merged, x), lifted(own[0], x))
    if not difference <= TOLERANCE:
        raise RuntimeError(f"{NAME}: merged differs by {difference:.1e}, relative.")
    latency = compare(
        {
            "base": lambda: plain(given.params, x),
            "merged": lambda: plain(merged, x),
            "unmerged": lambda: lifted(own[0], x),
        },
        rounds,
        warmup=1,
        seed=seed,
    )
    swap = compare(net.swaps(given), rounds, warmup=1, inner=3, seed=seed)
    start = time.perf_counter()
    memory = memory_of_training(given)
    return {
        "bytes": bytes_of_tasks(given),
        "memory": memory,
        "latency": latency.as_dict(),
        "swap": swap.as_dict(),
        "agreement": {"merged": difference},
        "compile_s": time.perf_counter() - start,
    }


def _size(tree: Any) -> int:
    return sum(int(np.asarray(x).nbytes) for x in jax.tree.leaves(tree))


def bytes_of_tasks(given: net.Problem) -> dict[str, Any]:
    """Bytes of 1, 10 and 100 tasks: one base and an adapter each, or full copies."""
    base, state = _size(given.params), _size(net.states(given)[0])
    return {
        "base": base,
        "adapter": state,
        "tasks": {
            str(n): {"adapters": base + n * state, "copies": n * base}
            for n in (1, 10, 100)
        },
    }


def memory_of_training(given: net.Problem) -> dict[str, dict[str, float]]:
    """What a step of one adapter holds, in MB, by XLA's account.

    `held` is what lies there between steps (weights, adapter, optimiser, batch),
    `temporary` what a step needs beside it.
    """
    rank = given.sizes.rank
    batch = given.x[:1], given.y[:1]
    ways = {"A frozen": lrk.lori(rank), "A trained": lrk.lora(rank)}
    found = {}
    for name, tx in ways.items():
        one = lrk.training.step(net.loss, tx, net.RATE, method="vmap")
        state = tx.init(jax.random.key(0), given.params)
        read, carry = one.init([state], steps=1)
        args = (given.params, read, carry, batch)
        found[name] = _memory(one.update, args, donated=2)

    def full(params: Any, memory: Any, batch: Any) -> Any:
        slope = jax.grad(net.loss)(params, jax.tree.map(lambda x: x[0], batch), None)
        change, memory = net.RATE.update(slope, memory)
        return optax.apply_updates(params, change), memory

    params = given.params
    args = (params, net.RATE.init(params), batch)
    found["full fine-tuning"] = _memory(full, args, donated=(0, 1))
    return found


def _memory(run: Any, args: Any, donated: Any) -> dict[str, float]:
    compiled = jax.jit(run, donate_argnums=donated).lower(*args).compile()
    memory = compiled.memory_analysis()
    if memory is None:
        raise RuntimeError(f"{NAME}: this backend does not say what a program needs.")
    beside = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "held": memory.argument_size_in_bytes / 1e6,
        "temporary": (memory.temp_size_in_bytes + beside) / 1e6,
    }
