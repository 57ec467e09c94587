"""The report of `speed/many`, from its records alone."""

from collections.abc import Mapping
from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.speed._goals import Goal, goal_table

TRAINED = ("training-8", "training-16-small", "training-32")
PLACES = {"cpu": "CPU", "gpu": "GPU"}
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
GRADIENT = {
    "single": MIXED["single"],
    "routed": "routed: `route` from stacked states",
    "gathered": "the states gathered, without `route`",
    "listed": "`route` from a list of trees",
}
LATENCY = {"base": "the base", "merged": "merged", "unmerged": "lifted, not merged"}
SWAP = {
    "full copy": "all weights, copied",
    "in place": "an adapter of stacked states, in place",
    "set": "an adapter by `Bank.set`",
    "set, jitted": "the same in a jitted function, which gives a base of its own",
}
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


class _Rows:
    """The rows of one backend."""

    def __init__(self, records: Records, where: str) -> None:
        self._records, self._end = records, "" if where == "cpu" else f"-{where}"
        self.where, self.place = where, PLACES.get(where, where)

    def get(self, name: str) -> Record | None:
        """A row by its name on a CPU."""
        return self._records.get(name + self._end)

    def training(self) -> dict[str, Record | None]:
        """The rows of training by name; those of the table where there are none."""
        found = {
            r.row.removesuffix(self._end): r
            for r in self._records
            if r.row.startswith("training-")
            and r.config.get("backend", "cpu") == self.where
        }
        by_number = sorted(found, key=lambda name: int(name.split("-")[1]))
        if by_number:
            return {name: found[name] for name in by_number}
        return dict.fromkeys(TRAINED)


def _places(records: Records) -> list[_Rows]:
    """The rows of a CPU, and of whatever else ran."""
    found = {r.config.get("backend", "cpu") for r in records} - {"cpu"}
    return [_Rows(records, where) for where in ("cpu", *sorted(found))]


def _better(record: Record | None) -> Any:
    """The ratio of the better way to train at once, over one after another."""
    both = [_ratio(record, "times", name) for name in ("vmap", "map")]
    return min((ratio for ratio in both if ratio is not None), default=None)


def _shared_goals(rows: _Rows) -> list[Goal]:
    """What is to be reached everywhere."""
    found = []
    for name, what in {"mixed": "forward", "mixed-training": "gradient"}.items():
        text = f"{rows.place}: routed batch over one adapter for all, {what}"
        record = rows.get(name)
        found.append(Goal(text, 1.35, _ratio(record, "times", "routed"), record))
    record = rows.get("deployment")
    ratio = _ratio(record, "latency", "merged")
    text = f"{rows.place}: merged weights over the base, forward"
    return [*found, Goal(text, 1.05, ratio, record)]


def goals(records: Records) -> list[Goal]:
    """Everything that lowrank is to reach here, on a CPU and on a GPU."""
    cpu, gpu = _Rows(records, "cpu"), _Rows(records, "gpu")
    found = []
    for name, record in cpu.training().items():
        if not name.endswith("-small"):
            number = name.split("-")[1]
            text = f"CPU: step of {number} adapters at once, over them in turn"
            found.append(Goal(text, 1.0, _better(record), record))
    small = gpu.get("training-16-small")
    text = "GPU: step of 16 adapters with small batches at once, over them in turn"
    found_on_gpu = Goal(text, 0.25, _better(small), small)
    return [*found, *_shared_goals(cpu), found_on_gpu, *_shared_goals(gpu)]


def _times_table(
    record: Record | None, part: str, names: Mapping[str, str], caption: str
) -> Table:
    """Times and ratios of one comparison."""
    rows = []
    for name, label in names.items():
        reason = None
        if record is not None and name.startswith("peft"):
            reason = record.get(f"absent/{name}") or record.get("absent/peft")
        elif record is not None and record.get(f"{part}/{name}") is None:
            continue  # an earlier record, without it
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
    note = (
        "At once is `vmap` or the loop of `map`, whichever took less. In turn is one "
        "program for one adapter, as it would be trained alone."
    )
    found: list[Block] = [
        Heading("Many adapters"),
        Text(INTRODUCTION),
        goal_table(goals(records), note),
    ]
    for rows in _places(records):
        found += _tables(rows)
    return found


def _tables(rows: _Rows) -> list[Block]:
    """What was measured in one place."""
    found: list[Block] = []
    on = "" if rows.where == "cpu" else f" On a {rows.place}."
    for name, record in rows.training().items():
        caption = f"One step of {name.split('-')[1]} adapters over one base."
        caption += _sizes(record, "examples each") + on
        found.append(_times_table(record, "times", WAYS, caption))
    record = rows.get("mixed")
    caption = f"A batch of many adapters, forward.{_sizes(record, 'examples')}{on}"
    found.append(_times_table(record, "times", MIXED, caption))
    record = rows.get("mixed-training")
    caption = f"The same, loss and gradient.{_sizes(record, 'examples')}{on}"
    found.append(_times_table(record, "times", GRADIENT, caption))
    record = rows.get("deployment")
    swap, latency = "Putting another task in place.", "A batch of one task, forward."
    return [
        *found,
        Heading(f"What LoRA promises{on.lower().rstrip('.')}", 3),
        _bytes_table(record),
        _times_table(record, "swap", SWAP, swap + on),
        _times_table(record, "latency", LATENCY, latency + on),
        _memory_table(record),
    ]
