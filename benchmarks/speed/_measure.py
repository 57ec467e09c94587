"""What one fresh process measures: costs, agreement, then times side by side."""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.speed import _hlo as hlo
from benchmarks.speed._contenders import (
    Contender,
    many_tasks,
    own,
    scanned,
    step,
)
from benchmarks.speed._networks import (
    Network,
    Sizes,
    layer_network,
    scanned_transformer,
    transformer,
)
from benchmarks.speed._peers import PEERS, first_line, peers, versions
from benchmarks.timing import compare

Tree = Any

ADAM = "+adam"  # after a contender's name: the step with its update
LEARNING_RATE = 1e-4

# Relative, in the Euclidean norm of each array. Two float32 programs that sum in
# another order differ by some 1e-7 times the root of the number of roundings in a row;
# a wrong or missing term is of order 1.
TOLERANCE = 1e-4


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled step and what it cost to make it."""

    compiled: Any
    args: tuple[Any, ...]
    costs: dict[str, float]


def network_of(sizes: Mapping[str, int]) -> Network:
    """The network of a row: a layer where `size` is given, else a transformer."""
    if "size" in sizes:
        return layer_network(**sizes)
    return transformer(Sizes(**sizes))


def arguments(contender: Contender) -> tuple[Any, ...]:
    """What a step is called with."""
    return contender.trainable, contender.probe, contender.frozen, contender.batch


def build(run: Callable[..., Any], args: tuple[Any, ...], **options: Any) -> Program:
    """Traces and compiles, and notes what both took and what the program needs.

    Raises:
        RuntimeError: If the backend does not tell FLOPs or memory.
    """
    jitted = jax.jit(run, **options)
    start = time.perf_counter()
    lowered = jitted.lower(*args)
    traced = time.perf_counter()
    compiled = lowered.compile()
    done = time.perf_counter()
    flops, memory = compiled.cost_analysis(), compiled.memory_analysis()
    if flops is None or memory is None:
        raise RuntimeError(
            "speed/lora_step: this backend does not say what a program costs: expected "
            "cost_analysis() and memory_analysis(). Run it on a CPU."
        )
    costs = {
        "trace_s": traced - start,
        "compile_s": done - traced,
        "gflop": flops["flops"] / 1e9,
        "temp_mb": memory.temp_size_in_bytes / 1e6,
        "output_mb": memory.output_size_in_bytes / 1e6,
    }
    return Program(compiled, args, costs)


def _adam(contender: Contender) -> Callable[[], Any]:
    """A step that updates what it trains, in place."""
    optimizer = optax.adam(LEARNING_RATE)
    gradient = step(contender)

    def run(
        trainable: Tree, state: Tree, probe: Tree, frozen: Tree, batch: Tree
    ) -> Any:
        loss, (grads, to_probe) = gradient(trainable, probe, frozen, batch)
        updates, state = optimizer.update(grads, state)
        return optax.apply_updates(trainable, updates), state, loss, to_probe

    trainable = jax.tree.map(jnp.array, contender.trainable)  # it will be donated
    held = [trainable, optimizer.init(trainable)]
    rest = (contender.probe, contender.frozen, contender.batch)
    compiled = jax.jit(run, donate_argnums=(0, 1)).lower(*held, *rest).compile()

    def update() -> Any:
        *held[:], loss, to_probe = compiled(*held, *rest)
        return held, loss, to_probe

    return update


def _distance(got: Tree, want: Tree) -> float:
    """The largest relative distance of two trees' arrays."""
    pairs = zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True)
    each = [
        np.linalg.norm(np.ravel(x - y)) / np.linalg.norm(np.ravel(y)) for x, y in pairs
    ]
    return float(np.max(each))  # of which one may be no number: Python's would lose it


def _outcome(contender: Contender, program: Program) -> tuple[Any, Any, Any]:
    """Loss, gradient in the factors, and gradient in the probe, where there are any."""
    out = jax.device_get(program.compiled(*program.args))
    if not contender.differentiate:
        return out, None, None
    loss, (grads, to_probe) = out
    factors = contender.factors(grads) if contender.factors else None
    return loss, factors, None if contender.probe is None else to_probe


def agreement(contender: Contender, program: Program, want: Any) -> dict[str, float]:
    """Relative distances of loss and gradients from those of another contender."""
    names = ("loss", "factors", "input")
    return {
        name: _distance(got, wanted)
        for name, got, wanted in zip(
            names, _outcome(contender, program), want, strict=True
        )
        if got is not None and wanted is not None
    }


@dataclasses.dataclass(frozen=True)
class Checked:
    """Contenders that compiled and agree, and why others are left out."""

    contenders: dict[str, Contender]
    programs: dict[str, Program]
    agreement: dict[str, dict[str, float]]
    absent: dict[str, str]


def checked(network: Network, names: Sequence[str]) -> Checked:
    """Compiles contenders and compares the results with that of the layer by hand.

    Raises:
        RuntimeError: If a contender of this project disagrees; of a peer it is noted.
    """
    contenders, (made, absent) = own(network), peers(network, names)
    warm = contenders["full"]
    contenders = {n: c for n, c in contenders.items() if n in {"flat", *names}} | made
    jax.jit(step(warm)).lower(*arguments(warm))  # what JAX traces once for all
    programs: dict[str, Program] = {}
    found: dict[str, dict[str, float]] = {}
    want = None
    for name in sorted(contenders, key=lambda name: name != "flat"):
        contender = contenders[name]
        try:
            program = build(step(contender), arguments(contender))
            want = want or _outcome(contender, program)
            found[name] = agreement(contender, program, want)
        except Exception as error:
            if name not in PEERS:
                raise
            absent[name] = f"fails: {type(error).__name__}: {first_line(error)}"
            continue
        worst = float(np.max(list(found[name].values())))
        if worst > TOLERANCE or not np.isfinite(worst):
            text = f"its result differs by {worst:.1e}, relative"
            if name not in PEERS:
                raise RuntimeError(f"speed/lora_step: {name}: {text}.")
            absent[name] = text
            continue
        programs[name] = program
    kept = {name: contenders[name] for name in contenders if name in programs}
    return Checked(kept, programs, found, absent)


def _calls(found: Checked, adam: Sequence[str]) -> dict[str, Callable[[], Any]]:
    """What is timed: each step, and some with their update."""
    calls: dict[str, Callable[[], Any]] = {}
    for name, contender in found.contenders.items():
        program = found.programs[name]
        calls[name] = lambda program=program: program.compiled(*program.args)
        if name in adam and jax.tree.leaves(contender.trainable):
            calls[name + ADAM] = _adam(contender)
    return calls


def measure(
    networks: Sequence[Mapping[str, int]],
    names: Sequence[str],
    adam: Sequence[str],
    rounds: int,
    seed: int,
) -> list[dict[str, Any]]:
    """Measures networks in this process, one after another.

    Args:
        networks: For each the arguments of `layer_network`, or of `Sizes`.
        names: Contenders to run; `flat` runs in any case.
        adam: Contenders whose step is also timed with its Adam update.
        rounds: Rounds of timing.
        seed: Seed of the order within the rounds.

    Returns:
        For each network the times by name, costs and agreement by contender, reasons of
        those left out, and the versions of the peers.
    """
    jax.config.update("jax_enable_compilation_cache", False)
    return [_measured(sizes, names, adam, rounds, seed) for sizes in networks]


def _measured(
    sizes: Mapping[str, int],
    names: Sequence[str],
    adam: Sequence[str],
    rounds: int,
    seed: int,
) -> dict[str, Any]:
    found = checked(network_of(sizes), names)
    calls = _calls(found, adam)
    times = compare(calls, rounds, warmup=1, baseline="flat", seed=seed)
    return {
        "times": times.as_dict(),
        "costs": {name: program.costs for name, program in found.programs.items()},
        "agreement": found.agreement,
        "absent": found.absent,
        "peers": versions(),
    }


def under_scan(sizes: Mapping[str, int], names: Sequence[str]) -> dict[str, Any]:
    """Costs of the transformer with its blocks under scan and remat; runs each once.

    Raises:
        RuntimeError: If their losses differ.
    """
    contenders = scanned(scanned_transformer(Sizes(**sizes)))
    costs, losses = {}, {}
    for name in contenders.keys() & {"flat", *names}:
        contender = contenders[name]
        program = build(step(contender), arguments(contender))
        costs[name] = program.costs
        losses[name] = float(program.compiled(*program.args)[0])
    distance = max(abs(x / losses["flat"] - 1) for x in losses.values())
    if distance > TOLERANCE:
        raise RuntimeError(f"speed/lora_step: losses under scan differ: {losses}.")
    return {"costs": costs, "agreement": distance}


def many_adapters(
    networks: Mapping[str, Mapping[str, int]], tasks: int
) -> dict[str, dict[str, Any]]:
    """How a step of many adapters under `vmap` multiplies by the shared base.

    Args:
        networks: Arguments of `layer_network` or of `Sizes`, by name.
        tasks: How many adapters, each with a batch of its own.

    Returns:
        For each network how many products of the compiled program have a base weight on
        one side, how many of them hold the tokens of all tasks, how many products have
        a copy of the base for each task, one in words, and what the program costs.
    """
    found = {}
    for name, sizes in networks.items():
        network = network_of(sizes)
        program = build(*many_tasks(network, tasks))
        found[name] = {
            **base_products(program.compiled.as_text(), network, tasks),
            **program.costs,
        }
    return found


def base_products(text: str, network: Network, tasks: int) -> dict[str, Any]:
    """Counts the products with a base weight in a compiled program of many tasks."""
    found = hlo.products(text)
    tokens = int(np.prod(network.input.shape[:-1])) * tasks
    counts = {"base_products": 0, "all_tokens": 0, "copies": 0}
    shown = ""
    for n, m in sorted({tuple(sorted(w.shape)) for w in network.kernels.values()}):
        counts["copies"] += sum(hlo.with_size(found, tasks, n, m).values())
        for product, count in hlo.with_size(found, n, m).items():
            counts["base_products"] += count
            if tokens in product.out:
                counts["all_tokens"] += count
                shown = shown or str(product)
    return {**counts, "example": shown}
