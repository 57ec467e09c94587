"""The report of `speed/rram`, from its records alone."""

from collections.abc import Sequence
from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table

NETWORKS = {"mlp": "MLP 784-512-10", "lenet": "LeNet-5"}
LIMITS = {"chip": 1.6, "read": 1.8, "converters": 2.0}
EFFECTS = {
    "chip": "through a sampled chip",
    "read": "with fresh read noise",
    "converters": "with read noise, DAC and ADC",
}
TWICE = 0.5
BATCHED = 0.2  # five times as fast
LIBRARIES = ("lightning", "aihwkit torch tile", "aihwkit C++ tile")
SETS = ("noise", "noise and converters")
STEPS = {
    "clean": "plain JAX",
    "by hand, chip": "JAX by hand: chip",
    "by hand, read": "JAX by hand: chip, read noise",
    "by hand, converters": "JAX by hand: chip, read noise, DAC, ADC",
    "lowrank, chip": "lowrank: chip",
    "lowrank, read": "lowrank: chip, read noise",
    "lowrank, converters": "lowrank: chip, read noise, DAC, ADC",
    "lowrank, redrawn": "lowrank: a new chip each step",
    "torch": "plain PyTorch",
    "lowrank, noise": "lowrank: fresh noise",
    "lowrank, cells": "lowrank: fresh noise, drawn for each cell",
    "torch, noise": "PyTorch by hand: fresh noise",
    "lightning, noise": "aihwkit-lightning: fresh noise",
    "aihwkit torch tile, noise": "aihwkit, torch tile: fresh noise",
    "aihwkit C++ tile, noise": "aihwkit, C++ tile: fresh noise",
    "lowrank, noise and converters": "lowrank: fresh noise, DAC, ADC",
    "lightning, noise and converters": "aihwkit-lightning: fresh noise, DAC, ADC",
    "aihwkit torch tile, noise and converters": "aihwkit, torch tile: fresh noise, "
    "DAC, ADC",
    "aihwkit C++ tile, noise and converters": "aihwkit, C++ tile: fresh noise, "
    "DAC, ADC",
}
CHIPS = {
    "lowrank, map": "lowrank: chip, lax.map",
    "lowrank, vmap": "lowrank: chip, vmap",
    "lowrank, one call per chip": "lowrank: chip, one jitted call each",
    "by hand, map": "JAX by hand: chip, lax.map",
    "lowrank, cells": "lowrank: noise of each cell",
    "torch, noise": "PyTorch by hand: noise of each weight",
    "lightning, noise": "aihwkit-lightning: noise of each weight",
    "aihwkit torch tile, noise": "aihwkit, torch tile: noise of each weight",
    "aihwkit C++ tile, noise": "aihwkit, C++ tile: noise of each weight",
    "lowrank, cells and converters": "lowrank: noise of each cell, DAC, ADC",
    "lightning, noise and converters": "aihwkit-lightning: noise, DAC, ADC",
    "aihwkit torch tile, noise and converters": "aihwkit, torch tile: noise, DAC, ADC",
    "aihwkit C++ tile, noise and converters": "aihwkit, C++ tile: noise, DAC, ADC",
}

INTRODUCTION = (
    "A time is the median over rounds; a ratio is the median over rounds of two times "
    "of the same round, with its 95 % bootstrap interval over rounds and processes. "
    "Rows of one noise set disturb the logits equally, which is checked before "
    "anything is timed."
)


def pairs(names: Sequence[str]) -> dict[str, list[str]]:
    """By contender, those of lowrank whose time is divided by its own."""
    found = {}
    for name in names:
        if name.startswith("lowrank"):
            continue
        noises = [n for n in ("noise and converters", "noise") if name.endswith(n)]
        own = [] if not noises else [f"lowrank, {noises[0]}"]
        own += [f"lowrank, {noises[0].replace('noise', 'cells')}"] if noises else []
        own = [n for n in own if n in names]
        if own:
            found[name] = own
    if {"lowrank, one call per chip", "lowrank, vmap"} <= set(names):
        found["lowrank, one call per chip"] = ["lowrank, vmap"]
    if {"lowrank, vmap", "lowrank, map"} <= set(names):
        found["lowrank, vmap"] = ["lowrank, map"]
    return found


def _of(record: Record | None, name: str, *metric: str) -> Any:
    """A metric of a contender; None where there is none."""
    own = {} if record is None else record.metrics.get("contenders", {}).get(name, {})
    for part in metric:
        own = own.get(part) if isinstance(own, dict) else None
    return tuple(own) if isinstance(own, list) else own


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    found = []
    for network, title in NETWORKS.items():
        record = records.get(f"step-{network}")
        for name, limit in LIMITS.items():
            value = _of(record, f"lowrank, {name}", "ratio")
            text = f"step {EFFECTS[name]} over the clean step, {title}"
            found.append(Goal(text, limit, value, record))
    for network, title in NETWORKS.items():
        found += _against(records.get(f"step-{network}"), f"step, {title}", "noise")
        found += _against(records.get(f"chips-{network}"), f"chips, {title}", "cells")
    for network, title in NETWORKS.items():
        record = records.get(f"chips-{network}")
        value = None
        if record is not None and record.get("backend") != "cpu":
            value = _of(record, "lowrank, one call per chip", "own", "lowrank, vmap")
        text = f"chips batched over one call each, on an accelerator, {title}"
        found.append(Goal(text, BATCHED, value, record))
    return [*found, *_traces(records.get("traces"))]


def _against(record: Record | None, what: str, kind: str) -> list[Goal]:
    """Times of lowrank over those of the peers at equal noise."""
    found = []
    for noises in SETS:
        own = f"lowrank, {noises.replace('noise', kind)}"
        for library in LIBRARIES:
            value = _of(record, f"{library}, {noises}", "own", own)
            text = f"{what}, over {library} at equal {noises}"
            found.append(Goal(text, TWICE, value, record))
    return found


def _traces(record: Record | None) -> list[Goal]:
    text = "traces of sweeps of a stuck rate and of the spread of write noise"
    count = None if record is None else record.get("traces")
    return [Goal(text, 1, count, record)]


def _own(record: Record | None, name: str) -> Any:
    """The time of lowrank at the same noise, over a peer's; a dash where none is."""
    if record is None or name not in record.metrics.get("contenders", {}):
        return None
    ratios = _of(record, name, "own")
    if not ratios or name.startswith("lowrank"):
        return "–"
    return tuple(next(iter(ratios.values())))


def _steps_table(network: str, record: Record | None) -> Table:
    rows = [
        [
            title,
            _of(record, name, "ms"),
            _of(record, name, "ratio"),
            _own(record, name),
            None if record is None else record.metrics.get("spread", {}).get(name),
        ]
        for name, title in STEPS.items()
    ]
    return Table(
        ["one step", "ms", "of plain JAX", "lowrank's, of it", "spread"],
        rows,
        caption=f"One training step of the {NETWORKS[network]}{_setting(record)}.",
        notes=[
            "Spread: root mean square of what chip and noise do to the logits.",
            *_notes(record, STEPS),
        ],
        digits={"ms": 2, "of plain JAX": 2, "lowrank's, of it": 2, "spread": 3},
        align="lrllr",
        sources=[record] * len(rows),
    )


def _chips_table(network: str, record: Record | None) -> Table:
    rows = [
        [
            title,
            _of(record, name, "ms"),
            _of(record, name, "ratio"),
            _own(record, name),
            None if record is None else record.metrics["chips"].get(name),
        ]
        for name, title in CHIPS.items()
    ]
    return Table(
        [
            "many chips",
            "ms a chip",
            "of lowrank's lax.map",
            "lowrank's, of it",
            "chips",
        ],
        rows,
        caption=f"Evaluation of sampled chips of the {NETWORKS[network]}"
        f"{_setting(record)}.",
        notes=["Sampling the chip is timed with it.", *_notes(record, CHIPS)],
        digits={"ms a chip": 1, "of lowrank's lax.map": 2, "lowrank's, of it": 2},
        align="lrllr",
        sources=[record] * len(rows),
    )


def _setting(record: Record | None) -> str:
    if record is None:
        return ""
    sizes = record.config["sizes"]
    if record.row.startswith("step"):
        return f", batch {sizes['batch']}, tiles of {sizes['tile']} rows"
    return f" on {sizes['rows']} rows, tiles of {sizes['tile']} rows"


def _notes(record: Record | None, titles: dict[str, str]) -> list[str]:
    """Threads, versions, noise, and what was left out and why."""
    if record is None:
        return []
    noise = record.config["noise"]
    told = [f"{name} {version}" for name, version in record.get("peers").items()]
    found = [
        f"{record.config['threads']} thread on {record.get('cores')} core, "
        f"{record.get('backend')}; {', '.join(told)}.",
        f"A chip: {noise['levels']} levels, lognormal write noise of "
        f"{noise['write']}, {noise['p_lrs']:.0%} of cells stuck at low and "
        f"{noise['p_hrs']:.0%} at high resistance. Fresh noise: {noise['weight']} of a "
        f"column's largest weight. Converters: {noise['bits']} bits.",
    ]
    reasons: dict[str, list[str]] = {}
    for name, why in record.metrics.get("absent", {}).items():
        reasons.setdefault(why, []).append(titles[name])
    return found + [f"{'; '.join(names)}: {why}." for why, names in reasons.items()]


def blocks(records: Records) -> list[Block]:
    """The report; what has no record says so."""
    found: list[Block] = [
        Heading("Speed of chips"),
        Text(INTRODUCTION),
        goal_table(
            goals(records),
            "At most 0.5 is at least twice, 0.2 five times as fast.",
            {"at most": 1, "measured": 2},
        ),
    ]
    for network, title in NETWORKS.items():
        step, many = (records.get(f"{w}-{network}") for w in ("step", "chips"))
        found += [
            Heading(title, 3),
            _steps_table(network, step),
            _chips_table(network, many),
        ]
    return found
