"""The report of `speed/many`, from its records alone."""

from collections.abc import Mapping
from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table

TRAINED = (8, 32)
WAYS = {
    "in turn": "one after another, one program",
    "vmap": "at once, `vmap`",
    "map": "at once, the loop of `map`",
    "peft": "PEFT, one after another",
}
MIXED = {
    "single": "one adapter for all",
    "routed": "routed: an adapter for each example",
    "in turn": "group after group",
    "base": "the base alone",
    "peft single": "PEFT, one adapter for all",
    "peft mixed": "PEFT, `adapter_names`",
}
GRADIENT = {"single": MIXED["single"], "routed": MIXED["routed"]}
LATENCY = {"base": "the base", "merged": "merged", "unmerged": "lifted, not merged"}
SWAP = {"adapter": "an adapter of a bank", "full copy": "a full copy"}
MEMORY = ("A frozen", "A trained", "full fine-tuning")

INTRODUCTION = (
    "Every contender runs the same network with the same adapters and data; results "
    "are compared before anything is timed. Times are medians. A ratio is the median "
    "over rounds of two times of the same round, with its 95 % bootstrap interval over "
    "rounds and processes. Below 1 is faster."
)


def _ratio(record: Record | None, part: str, name: str) -> Any:
    """A ratio to the baseline of its row, with its interval."""
    own = {} if record is None else record.get(f"{part}/{name}", {})
    keys = ("ratio", "ratio_low", "ratio_high")
    return tuple(own[key] for key in keys) if own else None


def _training(records: Records) -> dict[int, Record | None]:
    """The rows of training by number of adapters."""
    found = {
        r.config["sizes"]["adapters"]: r
        for r in records
        if r.row.startswith("training-")
    }
    return dict(sorted(found.items())) if found else dict.fromkeys(TRAINED)


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here."""
    found = []
    for number, record in _training(records).items():
        both = [_ratio(record, "times", name) for name in ("vmap", "map")]
        known = [ratio for ratio in both if ratio is not None]
        text = f"step of {number} adapters at once, the better way, over them in turn"
        found.append(Goal(text, 1.0, min(known, default=None), record))
    mixed = records.get("mixed")
    text = "routed batch over one adapter for all, forward"
    found.append(Goal(text, 1.35, _ratio(mixed, "times", "routed"), mixed))
    record = records.get("deployment")
    ratio = _ratio(record, "latency", "merged")
    found.append(Goal("merged weights over the base, forward", 1.05, ratio, record))
    return found


def _times_table(
    record: Record | None, part: str, names: Mapping[str, str], caption: str
) -> Table:
    """Times and ratios of one comparison."""
    rows = []
    for name, label in names.items():
        reason = None
        if record is not None and name.startswith("peft"):
            reason = record.get(f"absent/{name}") or record.get("absent/peft")
        time = None if record is None else record.get(f"{part}/{name}/median_ms")
        cells = [time, _ratio(record, part, name)]
        if record is not None:
            cells = ["–" if cell is None else cell for cell in cells]
        rows.append([f"{label}: {reason}" if reason else label, *cells])
    return Table(
        ["contender", "ms", "of the first"],
        rows,
        caption=caption,
        notes=_notes(record),
        digits={"ms": 2},
        align="lrl",
        sources=[record] * len(rows),
    )


def _notes(record: Record | None) -> list[str]:
    """Where the numbers come from."""
    if record is None:
        return []
    config, told = record.config, []
    rounds = f"{config['rounds']} rounds in each of {config['processes']} processes"
    peers, number = record.get("peers"), record.get("threads")
    if peers:
        named = ", ".join(f"{name} {version}" for name, version in peers.items())
        told.append(f"{named}; {number} threads each; {rounds}.")
    else:
        told.append(f"{rounds}.")
    return told


def _sizes(record: Record | None, wording: str) -> str:
    """The sizes of a row in words."""
    if record is None:
        return ""
    sizes = record.config["sizes"]
    text = f" {sizes['layers']} layers of width {sizes['width']}, rank {sizes['rank']}"
    return f"{text}, {sizes['examples']} {wording} of {sizes['length']} tokens."


def _bytes_table(record: Record | None) -> Table:
    tasks = {} if record is None else record.get("bytes/tasks", {})
    rows = []
    for number in (1, 10, 100):
        own = tasks.get(str(number))
        cells: list[Any] = [None, None, None]
        if own:
            adapters, copies = own["adapters"], own["copies"]
            cells = [adapters / 1e6, copies / 1e6, copies / adapters]
        rows.append([str(number), *cells])
    return Table(
        ["tasks", "base and adapters, MB", "full copies, MB", "copies / adapters"],
        rows,
        caption=f"What so many tasks take.{_sizes(record, 'examples')}",
        digits={"base and adapters, MB": 2, "full copies, MB": 2}
        | {"copies / adapters": 1},
        align="lrrr",
        sources=[record] * len(rows),
    )


def _memory_table(record: Record | None) -> Table:
    rows = []
    for name in MEMORY:
        own = {} if record is None else record.get(f"memory/{name}", {})
        cells = [own["held"], own["temporary"]] if own else []
        rows.append([name, *cells, sum(cells)] if own else [name, None, None, None])
    columns = ["trained", "held, MB", "temporary, MB", "together, MB"]
    return Table(
        columns,
        rows,
        caption=f"Memory of a step with Adam.{_sizes(record, 'examples')}",
        notes=[
            "XLA's account of the compiled step. Held: weights, adapter, optimiser and "
            "batch, which lie there between steps."
        ],
        digits=dict.fromkeys(columns[1:], 2),
        align="lrrr",
        sources=[record] * len(rows),
    )


def blocks(records: Records) -> list[Block]:
    """The report; what has no record says so."""
    found: list[Block] = [
        Heading("Many adapters"),
        Text(INTRODUCTION),
        goal_table(
            goals(records),
            "The better way is `vmap` or the loop of `map`, whichever took less.",
        ),
    ]
    for number, record in _training(records).items():
        caption = f"One step of {number} adapters over one base."
        caption += _sizes(record, "examples each")
        found.append(_times_table(record, "times", WAYS, caption))
    record = records.get("mixed")
    caption = f"A batch of many adapters, forward.{_sizes(record, 'examples')}"
    found.append(_times_table(record, "times", MIXED, caption))
    record = records.get("mixed-training")
    caption = f"The same, loss and gradient.{_sizes(record, 'examples')}"
    found.append(_times_table(record, "times", GRADIENT, caption))
    record = records.get("deployment")
    found += [
        Heading("What LoRA promises", 3),
        _bytes_table(record),
        _times_table(record, "swap", SWAP, "Putting another task in place."),
        _times_table(record, "latency", LATENCY, "A batch of one task, forward."),
        _memory_table(record),
    ]
    return found
