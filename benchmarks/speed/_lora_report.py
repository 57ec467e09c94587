"""The report of `speed/lora_step`, from its records alone."""

from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import (
    Block,
    Figure,
    Heading,
    Table,
    Text,
    bars_with_intervals,
)
from benchmarks.speed._goals import Goal, goal_table

NAMES = {
    "lowrank": "lowrank",
    "flat": "by hand, 2-D x",
    "naive": "by hand, rank-3 x",
    "nnx": "nnx.LoRALinear",
    "qwix": "qwix LoraProvider",
    "quax": "quax LoraArray",
    "materialised": "materialised",
    "materialised in the loop": "materialised in the loop",
    "full": "full fine-tuning",
    "input": "backward to the input",
    "forward": "frozen forward",
}
_PACKAGE = {"nnx": "flax", "qwix": "qwix", "quax": "quax"}
_WIDTHS = (512, 1024, 2048)
_ADAM = "+adam"

INTRODUCTION = (
    "Every contender computes the same loss and the same gradients from the same "
    "numbers; this is checked before anything is timed. Times are medians. A ratio is "
    "the median over rounds of two times of the same round, with its 95 % bootstrap "
    "interval over rounds and processes. Below 1 is faster."
)


def _of(record: Record | None, name: str, metric: str) -> Any:
    """A metric of a contender; None where there is none."""
    value = None if record is None else record.get(f"contenders/{name}/{metric}")
    return tuple(value) if isinstance(value, list) else value


def _timed(records: Records) -> dict[str, Record | None]:
    """The timed rows in order: those of the full run, or those that are there."""
    layers = [r for r in records if r.row.startswith("layer-")]
    found: dict[str, Record | None] = {"transformer": records.get("transformer")}
    if not layers:
        return found | {f"layer-{width}": None for width in _WIDTHS}
    layers.sort(key=lambda record: record.config["network"]["size"])
    return found | {record.row: record for record in layers}


def _title(row: str) -> str:
    """A row in words."""
    size = row.partition("-")[2]
    return f"one layer, N = {size}" if size else "transformer"


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    found = []
    for row, record in _timed(records).items():
        title = _title(row)
        ratio = _of(record, "lowrank", "ratio_flat")
        text = f"step over the flattened layer by hand, {title}"
        found.append(Goal(text, 1.05, ratio, record))
        limit = {"transformer": 0.76, "layer-2048": 0.70}.get(row)
        if limit is not None:
            ratio = _of(record, "lowrank", "ratio_full")
            text = f"step over full fine-tuning, {title}"
            found.append(Goal(text, limit, ratio, record))
        memory = _over(record, "lowrank", "flat", "temp_mb")
        text = f"temporary memory over the flattened layer by hand, {title}"
        found.append(Goal(text, 1.001, memory, record))
    found += _scan_goals(records.get("scan-remat"))
    record = records.get("transformer")
    lifted, plain = (_of(record, name, "trace_s") for name in ("lowrank", "full"))
    more = None if lifted is None or plain is None else lifted - plain
    text = "seconds of tracing more than the unlifted model, transformer"
    return [*found, Goal(text, 0.6, more, record)]


def _scan_goals(record: Record | None) -> list[Goal]:
    def over(other: str) -> float | None:
        if record is None:
            return None
        own, base = (record.get(f"costs/{x}/temp_mb") for x in ("lowrank", other))
        return own / base if own and base else None

    start = "temporary memory under scan and remat over"
    return [
        Goal(f"{start} the flattened layer by hand", 1.001, over("flat"), record),
        Goal(f"{start} the materialised form", 0.55, over("materialised"), record),
    ]


def _over(record: Record | None, name: str, other: str, metric: str) -> float | None:
    """A cost as a multiple of another contender's."""
    own, base = (_of(record, x, metric) for x in (name, other))
    return None if own is None or not base else own / base


def _goal_table(records: Records) -> Table:
    note = (
        "Memory counts as equal up to a thousandth. Tracing is what Python does before "
        "XLA compiles; the unlifted model is the one of full fine-tuning."
    )
    return goal_table(goals(records), note)


def _label(name: str, record: Record | None) -> str:
    """A contender's name, with the version of a peer."""
    version = None
    if record is not None and name in _PACKAGE:
        version = record.get(f"peers/{_PACKAGE[name]}")
    shown = version not in (None, "not installed")
    return f"{NAMES[name]} {version}" if shown else NAMES[name]


def _listed() -> list[str]:
    """The contenders of a timed table."""
    return [name for name in NAMES if name != "materialised in the loop"]


def _times_table(row: str, record: Record | None) -> Table:
    rows = []
    for name in _listed():
        reason = None if record is None else record.get(f"absent/{name}")
        cells = [
            _of(record, name, metric)
            for metric in ("median_ms", "ratio_lowrank", "ratio_flat")
        ]
        adam = [
            _of(record, name + _ADAM, metric) for metric in ("median_ms", "ratio_flat")
        ]
        label = _label(name, record)
        label = f"{label}: {reason}" if reason else label
        rows.append([label, *_missing_or_dash([*cells, *adam], record)])
    columns = ["contender", "ms", "of lowrank", "of by hand", "+ Adam, ms"]
    columns.append("+ Adam, of by hand")
    return Table(
        columns,
        rows,
        caption=f"Time of one step: {_title(row)}{_sizes(record)}.",
        notes=_time_notes(record),
        digits={"ms": 1, "+ Adam, ms": 1},
        align="lrllrl",
        sources=[record] * len(rows),
    )


def _sizes(record: Record | None) -> str:
    """The sizes of a row in words."""
    if record is None:
        return ""
    network = record.config["network"]
    tokens = network["batch"] * network["length"]
    text = f", {tokens:,} tokens, rank {network['rank']}"
    if "layers" in network:
        text = f" of {network['layers']} blocks, width {network['width']}{text}"
    return text


def _missing_or_dash(cells: list[Any], record: Record | None) -> list[Any]:
    """A cell without a number is `not run` only where the row was not run."""
    return [c if c is not None or record is None else "–" for c in cells]


def _time_notes(record: Record | None) -> list[str]:
    """What the numbers say, and how many there are."""
    if record is None:
        return []
    told = [
        f"{_words(ratio)} of the time of {text}"
        for other, text in (
            ("flat", "the flattened layer by hand"),
            ("full", "full fine-tuning"),
        )
        if (ratio := _of(record, "lowrank", f"ratio_{other}")) is not None
    ]
    notes = [f"lowrank takes {' and '.join(told)}."]
    slower = [
        (ratio[0], NAMES[name])
        for name in ("naive", *_PACKAGE, "materialised")
        if (ratio := _of(record, name, "ratio_lowrank")) is not None
    ]
    told = "; ".join(f"{name} {value:.2f}" for value, name in sorted(slower))
    notes.append(
        f"Times of the other ways to train the same adapters, in lowrank's: {told}."
    )
    times = [_of(record, "lowrank", name) for name in ("median_cpu_ms", "median_ms")]
    config = record.config
    notes.append(
        f"{config['rounds']} rounds in each of {config['processes']} processes; "
        f"lowrank's step kept {times[0] / times[1]:.1f} cores busy."
    )
    return notes


def _words(ratio: Any) -> str:
    """A ratio with its interval."""
    return f"{ratio[0]:.2f} [{ratio[1]:.2f}, {ratio[2]:.2f}]"


_COSTS = {
    "GFLOP": "gflop",
    "temporary MB": "temp_mb",
    "output MB": "output_mb",
    "trace s": "trace_s",
    "compile s": "compile_s",
}


def _costs_table(row: str, record: Record | None) -> Table:
    names = [
        name
        for name in _listed()
        if record is None or _of(record, name, "gflop") is not None
    ]
    rows = []
    for name in names:
        difference = _of(record, name, "difference")
        shown = None if difference is None else f"{difference:.0e}"
        costs = [_of(record, name, metric) for metric in _COSTS.values()]
        rows.append([_label(name, record), *costs, shown])
    return Table(
        ["contender", *_COSTS, "difference"],
        rows,
        caption=f"What XLA compiled: {_title(row)}.",
        notes=_cost_notes(record),
        digits={"GFLOP": 3, "temporary MB": 1, "output MB": 1, "trace s": 2}
        | {"compile s": 2},
        align="lrrrrrr",
        sources=[record] * len(rows),
    )


def _cost_notes(record: Record | None) -> list[str]:
    notes = [
        "Difference: the largest relative distance of loss or gradients from those of "
        "the flattened layer by hand."
    ]
    flops = _over(record, "lowrank", "flat", "gflop")
    if flops is not None:
        same = "exactly those" if flops == 1 else f"{flops:.4f} times those"
        notes.append(f"lowrank's FLOPs are {same} of the flattened layer by hand.")
    return notes


def _scan_table(record: Record | None) -> Table:
    names = ["lowrank", "flat", "naive", "materialised", "materialised in the loop"]
    names.append("full")

    def cost(name: str, metric: str) -> Any:
        return None if record is None else record.get(f"costs/{name}/{metric}")

    metrics = ("temp_mb", "output_mb", "gflop", "trace_s", "compile_s")
    rows = [[NAMES[name], *(cost(name, m) for m in metrics)] for name in names]
    return Table(
        ["contender", "temporary MB", "output MB", "GFLOP", "trace s", "compile s"],
        rows,
        caption="The transformer with its blocks under one scan, each recomputed.",
        notes=["XLA counts the FLOPs of a loop's body once."],
        digits={"temporary MB": 2, "output MB": 1, "trace s": 2, "compile s": 2},
        align="lrrrrr",
        sources=[record] * len(rows),
    )


def _many_table(record: Record | None) -> Table:
    rows, notes = [], []
    for name in ("layer", "transformer"):
        found = {} if record is None else record.get(name, {})
        unbatched = None
        if found:
            whole = found["all_tokens"] == found["base_products"] > 0
            unbatched = bool(whole and not found["copies"])
        keys = ("base_products", "all_tokens", "copies")
        rows.append([name, unbatched, *(found.get(key) for key in keys)])
        if found:
            notes.append(f"One of the {name}'s: {found['example']}.")
    tasks = "Many" if record is None else str(record.config["tasks"])
    columns = ["network", "base unbatched", "base products", "over all tokens"]
    return Table(
        [*columns, "copies of a base"],
        rows,
        caption=f"{tasks} adapters under `vmap`, forward and backward: how the "
        "compiled program multiplies by the shared base.",
        notes=notes,
        sources=[record] * len(rows),
    )


def _figure(timed: dict[str, Record | None]) -> Figure:
    """Ratios to the flattened layer by hand."""
    shown = ("lowrank", "naive", *_PACKAGE, "full")

    def draw() -> Any:
        series = {
            NAMES[name]: [_of(record, name, "ratio_flat") for record in timed.values()]
            for name in shown
        }
        groups = [_title(row).replace("one layer, ", "") for row in timed]
        label = "step time, of by hand, 2-D"
        return bars_with_intervals(groups, series, ylabel=label, baseline=1.0)

    caption = "Step times as ratios to the layer written by hand on 2-D activations."
    return Figure(draw, caption, "The tables give the numbers.")


def blocks(records: Records) -> list[Block]:
    """The report; what has no record says so."""
    timed = _timed(records)
    found: list[Block] = [
        Heading("Speed of a training step"),
        Text(INTRODUCTION),
        _goal_table(records),
    ]
    if any(timed.values()):
        found.append(_figure(timed))
    for row, record in timed.items():
        found.append(Heading(_title(row)[:1].upper() + _title(row)[1:], 3))
        found += [_times_table(row, record), _costs_table(row, record)]
    return [
        *found,
        Heading("Scan and remat", 3),
        _scan_table(records.get("scan-remat")),
        Heading("Many adapters", 3),
        _many_table(records.get("many-adapters")),
    ]
