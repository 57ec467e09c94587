"""The report of `speed/merging`, from its records alone."""

from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table
from benchmarks.speed._merging_dense import DENSE
from benchmarks.speed._merging_methods import FACTORED, METHODS
from benchmarks.speed._merging_peers import TYPES

SIZES = (1024, 2048)
WIDTHS = (512, 1024, 2048)
DENSE_GOAL = 1 / 20
MEMORY_GOAL = 8.0
OTHERS = {"peft": "PEFT", "dense": "dense NumPy"}

INTRODUCTION = (
    "Every contender merges the same factors with the same weights. A time is the "
    "median over rounds; a ratio is the median over rounds of two times of the same "
    "round, with its 95 % bootstrap interval. lowrank's time is that of the compiled "
    "call; PEFT's is that of `add_weighted_adapter`, which also makes the new adapter "
    "(its deletion is not timed)."
)


def _of(record: Record | None, name: str, metric: str) -> Any:
    """A metric of a method; None where there is none."""
    # Not `get`, whose paths a name with a comma would pass and one with a slash not.
    own = {} if record is None else record.metrics.get("methods", {}).get(name, {})
    for part in metric.split("/"):
        own = own.get(part) if isinstance(own, dict) else None
    return tuple(own) if isinstance(own, list) else own


def _timed(records: Records) -> dict[int, Record | None]:
    """The timed rows by width: those that are there, or else those of the full run."""
    found = [r for r in records if r.row.startswith("size-")]
    if not found:
        return dict.fromkeys(SIZES)
    sizes = {r.config["sizes"]["size"]: r for r in found}
    return dict(sorted(sizes.items()))


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    timed, found = _timed(records), []
    largest = max(timed)
    for name in ("svd", "knots", "tsv", "iso"):
        ratio = _of(timed[largest], name, "own_ratio/dense")
        text = f"{name} over the same on formed weights, N = {largest}"
        found.append(Goal(text, DENSE_GOAL, ratio, timed[largest]))
    for size, record in timed.items():
        for name in TYPES:
            text = f"{name} over PEFT's {TYPES[name]}, N = {size}"
            ratio = _of(record, name, "own_ratio/peft")
            found.append(Goal(text, 1.0, ratio, record))
    memory = records.get("memory")
    for name in ("svd", "knots", "core_space", "tsv", "iso"):
        text = f"temporary memory of {name} in N sum r floats, at the largest N"
        found.append(Goal(text, MEMORY_GOAL, _units(memory, name, None), memory))
    return found


def _units(record: Record | None, name: str, width: int | None) -> float | None:
    """Temporary memory in sizes of all factors `[N, sum r]` together."""
    if record is None:
        return None
    width = max(record.config["widths"]) if width is None else width
    own = record.metrics.get(str(width), {})
    temp = own.get("temp_mb", {}).get(name)
    return None if temp is None else temp / own["unit_mb"]


def _cells(record: Record | None, name: str) -> list[Any]:
    """Times and ratios of one method; a dash where there is no such contender."""
    cells = [_of(record, name, "ms/lowrank")]
    for other, has in (("peft", name in TYPES), ("dense", name in DENSE)):
        metrics = (f"ms/{other}", f"ratio/{other}")
        cells += [_of(record, name, m) if has else "–" for m in metrics]
    return [*cells, _of(record, name, "rounds")]


def _times_table(size: int, record: Record | None) -> Table:
    rows = [[name, *_cells(record, name)] for name in METHODS]
    columns = ["merge", "lowrank, ms"]
    for other in OTHERS.values():
        columns += [f"{other}, ms", f"{other}, of lowrank"]
    milliseconds = {column: 2 for column in columns if column.endswith("ms")}
    return Table(
        [*columns, "rounds"],
        rows,
        caption=f"Time of one merge of a kernel {size} x {size}{_adapters(record)}.",
        notes=_notes(record),
        digits=milliseconds | {column: 1 for column in columns if "of" in column},
        align="lrrlrlr",
        sources=[record] * len(rows),
    )


def _adapters(record: Record | None) -> str:
    if record is None:
        return ""
    sizes = record.config["sizes"]
    return f", {sizes['adapters']} adapters of rank {sizes['rank']}"


def _notes(record: Record | None) -> list[str]:
    """Versions, and what was left out and why."""
    if record is None:
        return []
    told = [f"{name} {version}" for name, version in record.get("peers").items()]
    notes = [f"{', '.join(told)}; {record.get('threads')} threads each."]
    if (reason := record.get("absent")) is not None:
        notes.append(f"PEFT: {reason}.")
    for name in METHODS:
        for who, why in (_of(record, name, "absent") or {}).items():
            notes.append(f"{name}, {OTHERS.get(who, who)}: {why}.")
    return notes


def _memory_table(record: Record | None) -> Table:
    widths = list(WIDTHS) if record is None else list(record.config["widths"])
    rows: list[list[Any]] = [
        [name, *(_units(record, name, width) for width in widths)] for name in FACTORED
    ]
    weights: list[Any] = ["one weight, for comparison"]
    for width in widths:
        own = None if record is None else record.metrics.get(str(width))
        weights.append(None if own is None else own["weight_mb"] / own["unit_mb"])
    rows.append(weights)
    return Table(
        ["merge", *(f"N = {width}" for width in widths)],
        rows,
        caption="Temporary memory of the compiled merge, in units of N sum r floats: "
        "a row that stays level is O(N sum r).",
        notes=["XLA's account; what LAPACK allocates inside a call is not in it."],
        digits=2,
        sources=[record] * len(rows),
    )


def blocks(records: Records) -> list[Block]:
    """The report; what has no record says so."""
    found: list[Block] = [
        Heading("Speed of merging"),
        Text(INTRODUCTION),
        goal_table(goals(records), "At most 0.05 is at least twenty times faster."),
    ]
    for size, record in _timed(records).items():
        found += [Heading(f"N = {size}", 3), _times_table(size, record)]
    return [*found, Heading("Memory", 3), _memory_table(records.get("memory"))]
