"""LoRA over many devices: bytes on paper and in compiled programs, measured pieces.

Command: python -m benchmarks run scaling
Paper: none; the formulas are in `_scaling_cost.py`, sizes are those of Llama 3 8B, 70B.
Cost: 3 min on 2 cores
Rows: 6

The first two tables are formulas alone. The third compares them with what the compiler
makes of a small decoder on eight devices of the host: which collectives it chooses, and
how that depends on what is pinned. The last two time what many adapters are made of, on
one device of the host (a step, a checkpoint by the byte, a swap, the base's hash), and
say what that comes to for large bases. No time on an accelerator is measured here.
"""

import dataclasses
import time
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.runner import Session
from benchmarks.tables._scaling_cost import LLAMA, Cost, Sizes, cost
from benchmarks.tables._scaling_pieces import KEPT, VALUE, Step
from benchmarks.timing import in_processes

SETUPS = ((1, 1), (8, 1), (64, 1), (1, 8), (8, 8))  # data, model
TITLES = {
    "fsdp": "FSDP, nothing pinned",
    "fsdp-weights": "FSDP, weights pinned",
    "fsdp-gathered": "FSDP, `gather`",
    "fsdp-activations": "FSDP, activations pinned",
    "tensor": "tensor parallel",
}
DEVICES = 8
PIECES = "pieces"
RANK, TOKENS = 8, 16_384  # of the tables for large bases
GB, MB = 1e9, 1e6


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    layers: int = 4
    width: int = 256
    kv: int = 256
    hidden: int = 896
    vocab: int = 512
    rank: int = 8
    batch: int = 16
    length: int = 64
    ways: tuple[str, ...] = tuple(TITLES)
    """What is split, and what is pinned."""
    texts: int = 2
    """Texts of an adapter in a timed step."""
    adapters: int = 32
    """The larger number of adapters that are timed; the smaller is 1."""
    repeats: int = 7
    """How often each piece is timed."""

    def smoke(self) -> "Config":
        """Returns one tiny program, and two adapters."""
        small = {"layers": 1, "vocab": 64, "hidden": 256, "batch": 8, "length": 8}
        small |= {"texts": 1, "adapters": 2, "repeats": 1}
        return dataclasses.replace(self, **small, ways=("fsdp-gathered",))

    @property
    def sizes(self) -> Sizes:
        """Sizes of the small decoder."""
        return Sizes(self.layers, self.width, self.kv, self.hidden, self.vocab)


def run(config: Config, session: Session) -> None:
    """Compiles the small program once for each way, in a process of its own."""
    for way in config.ways:
        given = {
            "sizes": list(config.sizes),
            "rank": config.rank,
            "batch": config.batch,
            "length": config.length,
            "way": way,
        }
        if session.row(way, **given) is not None:
            continue
        start = time.perf_counter()
        module = "benchmarks.tables._scaling_measure"
        (metrics,) = in_processes(module, given, processes=1)
        seconds = time.perf_counter() - start
        session.save(way, metrics, config=given, seconds=seconds, seed=0)
    _run_pieces(config, session)


def _run_pieces(config: Config, session: Session) -> None:
    """Times the pieces, in a process of its own."""
    given = {
        "sizes": list(config.sizes),
        "rank": config.rank,
        "batch": config.texts,
        "length": config.length,
        "adapters": config.adapters,
        "repeats": config.repeats,
    }
    if session.row(PIECES, **given) is None:
        start = time.perf_counter()
        (metrics,) = in_processes("benchmarks.tables._scaling_pieces", given, 1)
        seconds = time.perf_counter() - start
        session.save(PIECES, metrics, config=given, seconds=seconds, seed=0)


def report(records: Records) -> list[Block]:
    """Returns the formulas' tables, and the compiled programs beside them."""
    return [
        Heading("Bytes on one device, by formula"),
        _memory(),
        Heading("Bytes that one device receives in a step, by formula"),
        _traffic(),
        Heading("Formulas and compiled programs"),
        Text(
            "A small decoder on eight devices of the host, compiled and not run. The "
            "columns count what collectives put out on one device in one step; in "
            "brackets the formula. Temporary memory is the CPU compiler's, which does "
            "not order a program to save memory as those of accelerators do."
        ),
        _programs(records),
        Heading("Pieces in seconds"),
        _pieces(records),
        _extended(records),
    ]


def _rows() -> list[tuple[str, tuple[int, int], Cost, Cost]]:
    """Base, devices, and the costs of one adapter and of a thousand."""
    return [
        (name, setup, _cost(sizes, setup, 1), _cost(sizes, setup, 1000))
        for name, sizes in LLAMA.items()
        for setup in SETUPS
    ]


def _cost(sizes: Sizes, setup: tuple[int, int], adapters: int) -> Cost:
    data, model = setup
    return cost(sizes, data=data, model=model, adapters=adapters)


def _memory() -> Table:
    rows = [
        [name, data, model, *(x / GB for x in _parts(one, many))]
        for name, (data, model), one, many in _rows()
    ]
    columns = ["model", "FSDP", "tensor", "base", "1 adapter", "1,000 adapters"]
    columns += ["kept activations", "layer at work", "all, 1", "all, 1,000"]
    caption = (
        "GB on one device: base and activations in bfloat16, rank-8 LoRA on every "
        "kernel of the layers with gradients and Adam in float32, 16,384 tokens at "
        "work for each group of tensor-parallel devices, layers rematerialised. "
        "Measured on accelerators: not run."
    )
    return Table(columns, rows, caption=caption, digits=2)


def _parts(one: Cost, many: Cost) -> list[float]:
    state = [one.base, one.adapters, many.adapters]
    return [*state, one.kept, one.working, one.total, many.total]


def _traffic() -> Table:
    rows = [
        [
            name,
            data,
            model,
            one.gathered / GB,
            one.reduced / GB,
            many.reduced / GB,
            None,
        ]
        for name, (data, model), one, many in _rows()
    ]
    columns = ["model", "FSDP", "tensor", "gathered", "reduced, 1 adapter"]
    columns += ["reduced, 1,000 adapters", "seconds, measured"]
    caption = (
        "GB received by one device in one step of 16,384 tokens: all-gathers of the "
        "base; all-reduces of activations, and of the gradients of an adapter that is "
        "whole on every device."
    )
    return Table(columns, rows, caption=caption, digits=2)


def _programs(records: Records) -> Table:
    rows, sources = [], []
    for way, title in TITLES.items():
        record = records.get(way)
        rows.append([title, *_compared(way, record)])
        sources.append(record)
    columns = ["split", "base, MB", "all-gather, MB", "all-reduce, MB", "other, MB"]
    caption = "On one device of eight; formula in brackets."
    return Table([*columns, "temporary, MB"], rows, caption=caption, sources=sources)


def _compared(way: str, record: Any) -> list[str | None]:
    """Cells of one program: found, and by formula."""
    if record is None:
        return [None] * 5
    given = record.config
    axis = "model" if way == "tensor" else "data"
    tokens = given["batch"] * given["length"]
    want = cost(
        Sizes(*given["sizes"]),
        **{axis: DEVICES},
        rank=given["rank"],
        tokens=tokens if axis == "model" else tokens // DEVICES,
        width=4,
    )
    whole = DEVICES / (DEVICES - 1)  # from received to put out
    found = record.metrics
    pairs = [
        (found["base"], want.base),
        (found["all-gather"], want.gathered * whole),
        (found["all-reduce"], want.reduced * whole / 2),
    ]
    cells: list[str | None] = [f"{x / MB:.2f} ({y / MB:.2f})" for x, y in pairs]
    temporary = found["temporary"]
    room = None if temporary is None else f"{temporary / MB:.1f}"
    return [*cells, f"{found['other'] / MB:.2f}", room]


# What is shown, its entry, and how many of its unit make one.
_SHOWN = (
    ("a step of one adapter, ms", "step_s", 1e3),
    ("a step, each adapter more, ms", "step_each_s", 1e3),
    ("the same, GFLOP/s", "flops_s", 1e-9),
    ("saving one adapter with Adam's moments, ms", "save_s", 1e3),
    ("saving, each byte more, ns", "save_s_byte", 1e9),
    ("restoring one adapter with Adam's moments, ms", "restore_s", 1e3),
    ("restoring, each byte more, ns", "restore_s_byte", 1e9),
    ("putting an adapter in another's place, ms", "swap_s", 1e3),
    ("the fingerprint of the base, a byte, ns", "fingerprint_s_byte", 1e9),
)


def _pieces(records: Records) -> Table:
    """What each piece took."""
    record = records.get(PIECES)
    told, notes = "", []
    if record is not None:
        given = record.config
        sizes, tokens = Sizes(*given["sizes"]), given["batch"] * given["length"]
        told = (
            f" {sizes.layers} layers of width {sizes.width}, rank {given['rank']}, "
            f"{tokens} tokens of each adapter."
        )
        notes = [
            f"Medians of {given['repeats']}. What one more costs is from 1 and "
            f"{given['adapters']} adapters; a step is `training.step` with its default."
        ]
    rows = [
        [text, None if record is None else record.metrics[name] * scale]
        for text, name, scale in _SHOWN
    ]
    caption = f"Pieces, measured on one device of the host.{told}"
    sources = [record] * len(rows)
    columns = ["piece", "measured"]
    return Table(columns, rows, caption=caption, notes=notes, digits=2, sources=sources)


def _extended(records: Records) -> Table:
    """What the pieces come to for large bases."""
    record = records.get(PIECES)
    rows = []
    for name, sizes in LLAMA.items():
        for adapters in (1, 1000):
            found = None if record is None else record.metrics
            rows.append([name, adapters, *_seconds(found, sizes, adapters)])
    columns = ["model", "adapters", "kept, GB", "save, s", "restore, s", "swap one, s"]
    columns += ["fingerprint, s", "step, h"]
    caption = (
        "What that comes to on such a host: by bytes, and for a step by FLOPs of "
        f"{TOKENS:,} tokens of each rank-{RANK} adapter over a base in bfloat16. Kept "
        "are values and Adam's moments."
    )
    return Table(columns, rows, caption=caption, digits=2, sources=[record] * len(rows))


def _seconds(found: Any, sizes: Sizes, adapters: int) -> list[float | None]:
    """Cells of one base and number of adapters."""
    numbers = sizes.adapter(RANK)
    kept = KEPT * numbers * adapters
    if found is None:
        return [kept / GB, *[None] * 5]
    swap = found["swap_s"] * VALUE * numbers / found["adapter_bytes"]
    step = adapters * Step(sizes, TOKENS).flops / found["flops_s"]
    return [
        kept / GB,
        found["save_s"] + kept * found["save_s_byte"],
        found["restore_s"] + kept * found["restore_s_byte"],
        swap,
        2 * sizes.base * found["fingerprint_s_byte"],
        step / 3600,
    ]
