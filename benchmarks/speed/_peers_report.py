"""The report of `speed/peers`, from its records alone."""

from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table

NETS = {
    "minilm": "MiniLM-L6",
    "smollm2": "SmolLM2-135M",
    "llama8b": "two layers of Llama-3-8B",
}
NAMES = {
    "lowrank": "lowrank",
    "flat": "by hand, 2-D x",
    "naive": "by hand, rank-3 x",
    "nnx": "nnx.LoRA",
    "qwix": "qwix LoraProvider",
    "peft": "PEFT",
    "full": "full fine-tuning",
}
_JAX = ("flat", "naive", "nnx", "qwix")
_PACKAGE = {"nnx": "flax", "qwix": "qwix", "peft": "peft"}
FULL = 1 / 1.4

INTRODUCTION = (
    "Every contender trains the same adapters of the same network from the same "
    "numbers; the first loss and the gradient in every factor are compared before "
    "anything is timed. A time is the median over rounds; a ratio is the median over "
    "rounds of two times of the same round, with its 95 % bootstrap interval over "
    "rounds and processes. Above 1 is slower than lowrank."
)


def by_default(backend: str) -> tuple[str, ...]:
    """The networks that are run where JAX has this backend."""
    return ("minilm", "smollm2") if backend == "cpu" else tuple(NETS)


def _expected() -> list[tuple[str, str, str]]:
    """Network, backend and type of the rows that belong to the table."""
    return [
        *((net, "cpu", "float32") for net in by_default("cpu")),
        *((net, "gpu", "bfloat16") for net in by_default("gpu")),
    ]


def _rows(records: Records) -> dict[tuple[str, str, str], Record | None]:
    """The rows in order: those that belong to the table, then others that are there."""
    found: dict[tuple[str, str, str], Record | None] = dict.fromkeys(_expected())
    for record in records:
        net = record.config["net"]
        found[net["name"], record.config["backend"], net["dtype"]] = record
    return found


def _of(record: Record | None, name: str, metric: str) -> Any:
    """A metric of a contender; None where there is none."""
    value = None if record is None else record.get(f"contenders/{name}/{metric}")
    return tuple(value) if isinstance(value, list) else value


def _title(key: tuple[str, str, str]) -> str:
    """A row in words."""
    net, backend, dtype = key
    return f"{NETS[net]}, {backend.upper()}, {dtype}"


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    found = []
    for key, record in _rows(records).items():
        for name in (*_JAX, "peft"):
            text = f"step over {NAMES[name]}, {_title(key)}"
            value = _of(record, name, "own")
            found.append(Goal(text, 1.0, value, record, within=name in _JAX))
        if key[0] == "llama8b":
            text = f"step over full fine-tuning, {_title(key)}"
            found.append(Goal(text, FULL, _of(record, "full", "own"), record))
    return found


def _label(name: str, record: Record | None) -> str:
    """A contender's name, with the version of a peer, and why it is left out."""
    label, package = NAMES[name], _PACKAGE.get(name)
    version = record.get(f"peers/{package}") if record and package else None
    if version not in (None, "not installed"):
        label = f"{label} {version}"
    reason = None if record is None else record.get(f"absent/{name}")
    return f"{label}: {reason}" if reason else label


def _cells(record: Record | None, name: str, metrics: list[str]) -> list[Any]:
    """Metrics of a contender; `not run` only where the row was not run."""
    cells = [_of(record, name, metric) for metric in metrics]
    return [c if c is not None or record is None else "–" for c in cells]


def _times_table(key: tuple[str, str, str], record: Record | None) -> Table:
    columns = ["s per step", "tokens per s", "of lowrank"]
    columns.append("of lowrank, processor time")
    rows = []
    for name in NAMES:
        cells = _cells(record, name, ["ms", "tokens_s", "ratio", "cpu_ratio"])
        if isinstance(cells[0], float):
            cells[0] /= 1e3
        rows.append([_label(name, record), *cells])
    return Table(
        ["contender", *columns],
        rows,
        caption=f"One training step: {_title(key)}{_sizes(record)}.",
        notes=_notes(record),
        digits={"s per step": 3, "tokens per s": 0},
        align="lrrll",
        sources=[record] * len(rows),
    )


def _sizes(record: Record | None) -> str:
    if record is None:
        return ""
    return f", {record.get('tokens'):,} tokens, rank {record.config['net']['rank']}"


def _notes(record: Record | None) -> list[str]:
    """Where the numbers come from."""
    if record is None:
        return []
    config, peers = record.config, record.get("peers", {})
    named = ", ".join(f"{name} {version}" for name, version in peers.items())
    threads = f"{config['threads']} thread(s) on {record.get('cores')} core(s)"
    rounds = f"{config['rounds']} rounds in each of {config['processes']} processes"
    return [f"{named}; {threads}; {rounds}."]


_COSTS = {
    "GFLOP": "gflop",
    "temp. MB": "temp_mb",
    "arg. MB": "argument_mb",
    "trace s": "trace_s",
    "compile s": "compile_s",
}
_GROWN = (
    "Grown: how much a process of its own grows during two steps, at its peak: the one "
    "account that PyTorch and XLA share on a CPU."
)
_PEAK = "Peak: the most that PyTorch holds of a GPU's memory, weights and all."


def _costs_table(key: tuple[str, str, str], record: Record | None) -> Table:
    here = key[1] == "cpu"
    measured = {"grown MB": "resident_mb"} if here else {"peak MB": "peak_mb"}
    columns = _COSTS | measured
    rows = []
    for name in NAMES:
        cells = _cells(record, name, list(columns.values()))
        difference = _of(record, name, "difference")
        shown = "–" if record is not None else None
        shown = shown if difference is None else f"{difference:.0e}"
        rows.append([NAMES[name], *cells, shown])
    return Table(
        ["contender", *columns, "difference"],
        rows,
        caption=f"What a step needs: {_title(key)}.",
        notes=[
            "GFLOP, temporary and argument MB are XLA's account of the compiled step. "
            f"{_GROWN if here else _PEAK} Difference: the largest relative distance "
            "of the first loss or of the gradient in a factor from those of the layers "
            "by hand, 2-D x."
        ],
        digits={column: 1 if "MB" in column else 2 for column in columns},
        align="lrrrrrrr",
        sources=[record] * len(rows),
    )


def blocks(records: Records) -> list[Block]:
    """The report; what has no record says so."""
    note = (
        "Of the contenders in JAX lowrank is not to be slower: an interval that "
        "reaches 1 meets that. At most 0.714 is at least 1.4 times as fast."
    )
    found: list[Block] = [
        Heading("Peers on shapes of public models"),
        Text(INTRODUCTION),
        goal_table(goals(records), note),
    ]
    for key, record in _rows(records).items():
        if record is None and key[1] != "cpu":
            continue  # the goals say that it was not run
        title = _title(key)
        found.append(Heading(title[:1].upper() + title[1:], 3))
        found += [_times_table(key, record), _costs_table(key, record)]
    return found
