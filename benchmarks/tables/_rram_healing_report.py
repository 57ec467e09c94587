"""What the table of healing shows: figures, rows, labels, clean chips, verdicts."""

import functools
from typing import Any

from matplotlib import rc_context

from benchmarks.blocks import Block, Figure, Heading, Table, Text
from benchmarks.chips.methods import TITLES as KINDS
from benchmarks.chips.methods import parse
from benchmarks.chips.points import TITLES, Fault
from benchmarks.figures import INK, STYLE, curves
from benchmarks.record import Record, Records
from benchmarks.stats import bootstrap_interval, paired_bootstrap
from benchmarks.tables import _rram_healing_extras as extras
from benchmarks.tables import _rram_healing_plan as plan
from benchmarks.tables import _rram_healing_verdicts as verdicts
from benchmarks.tables._rram_healing_costs import costs
from benchmarks.tables._rram_healing_numbers import END, Board, Cell, board

LINES = {
    "lora": "LoRA",
    "lori-d": "LoRI-D",
    "subspace": "random subspace",
    "svd": "SVD of E",
    "svdw": "weighted SVD of E",
    "patchw": "sparse patch",
}
MARKED = {"head": "head", "bias": "biases"}
LEVELS = {"retrain": "retraining all weights", "itt": "ITT"}
RIVAL = "lora-8"
NONE = "–"


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    found: list[Block] = [Heading("How many numbers heal a chip"), _points(records)]
    boards = {
        (net, point): board(records, kind="main", net=net, point=point)
        for net in plan.NETS
        for point in plan.POINTS[net]
    }
    for (net, point), cells in boards.items():
        if cells:
            found.append(_figure(net, point, cells))
    known = verdicts.places(records)
    found += [verdicts.hypotheses(known), verdicts.ranks(known)]
    found.append(verdicts.thresholds(known))
    for (net, point), cells in boards.items():
        found += [Heading(f"{plan.NETS[net]}, {TITLES[point]}", 3)]
        if cells:
            found += [_all(net, point, cells), _equal(net, point, cells)]
        else:
            title = f"{plan.NETS[net]}, {TITLES[point]}"
            found.append(Text(f"Every way at {title}: not run."))
    found.append(costs(records))
    found += [Heading("Labelled images", 3), _labels(records)]
    found += [Heading("A chip without faults", 3), _clean(records)]
    found += [Heading("Resampled chips", 3)]
    return [*found, _resampled(records), Text(_reduced(records))]


def _points(records: Records) -> Table:
    """Fault points, and what they cost on validation."""
    rows: list[list[Any]] = []
    for net, points in plan.POINTS.items():
        for point in points:
            record = records.get(f"point-{net}-{point}")
            title = f"{plan.NETS[net]}, {TITLES[point]}"
            if record is None:
                rows.append([title, None, None, None, None, None])
                continue
            own = record.metrics
            rows.append(
                [
                    title,
                    100 * own["p_lrs"],
                    100 * own["p_hrs"],
                    f"{own['g_lrs']:g} / {own['g_hrs']:g}",
                    100 * own["lost"],
                    bool(own["in_band"]),
                ]
            )
    columns = ("point", "p_lrs, %", "p_hrs, %", "g_lrs / g_hrs, uS", "lost", "in band")
    return Table(
        columns,
        rows,
        caption="Fault points, chosen on validation images and on chips that are not "
        "scored: rates for each cell, and the points of accuracy that the deployed net "
        "loses there.",
        digits={"p_lrs, %": 2, "p_hrs, %": 2, "lost": 1},
        notes=["In band: between 10 and 30 points are lost."],
    )


def _figure(net: str, point: str, cells: Board) -> Figure:
    """Recovered accuracy against digital parameters."""
    series = {}
    for kind, title in LINES.items():
        own = sorted(
            (cell.numbers, share)
            for name, cell in cells.items()
            if parse(name).kind == kind and (share := cell.recovered()) is not None
        )
        if own:
            x = [n for n, _ in own]
            parts = [[100 * share[i] for _, share in own] for i in range(3)]
            series[title] = (x, *parts)
    marks = {
        title: (cells[name].numbers, 100 * share[0])
        for name, title in MARKED.items()
        if name in cells and (share := cells[name].recovered()) is not None
    }
    levels = {
        title: 100 * share[0]
        for name, title in LEVELS.items()
        if name in cells and (share := cells[name].recovered()) is not None
    }
    ends = "; ".join(
        f"{title}: {y[0]:.0f} % with {x[0]:,} to {y[-1]:.0f} % with {x[-1]:,}"
        for title, (x, y, *_) in series.items()
    )
    return Figure(
        functools.partial(_draw, series, marks, levels),
        f"Share of the lost accuracy that comes back against digital parameters, "
        f"{plan.NETS[net]}, {TITLES[point]}. {_faults(next(iter(cells.values())))} "
        "Bands are 95 % intervals over chips; dashed lines rewrite the chip and keep "
        "no digital parameter.",
        ends,
        f"healing-{net}-{point}",
    )


def _draw(series: Any, marks: Any, levels: Any) -> Any:
    """The curves, single points, and levels of what keeps no parameter."""
    canvas = curves(
        series, xlabel="digital parameters", ylabel="loss recovered, %", logx=True
    )
    with rc_context(STYLE):
        axes = canvas.axes[0]
        for title, (x, y) in marks.items():
            axes.plot([x], [y], marker="*", color=INK, markersize=8, linestyle="")
            axes.annotate(
                title, (x, y), (5, -9), textcoords="offset points", fontsize=8
            )
        highest = max(levels.values(), default=0.0)
        for i, (title, y) in enumerate(levels.items()):
            axes.axhline(y, color=INK, linewidth=0.8, linestyle=(0, (4, 2 + 2 * i)))
            axes.annotate(
                title, (0.01, y), (0, 2 if y == highest else -10),
                xycoords=("axes fraction", "data"), textcoords="offset points",
                fontsize=8,
            )  # fmt: skip
        axes.set_ylim(bottom=max(axes.get_ylim()[0], -20.0), top=108)
    return canvas


def _faults(cell: Cell) -> str:
    """The faults of a row, in words."""
    own = cell.record.config
    return (
        f"p_lrs {100 * own['p_lrs']:.3g} %, p_hrs {100 * own['p_hrs']:.3g} %, g_lrs "
        f"{own['g_lrs']:g} uS, g_hrs {own['g_hrs']:g} uS."
    )


def _all(net: str, point: str, cells: Board) -> Table:
    """Every way at a point."""
    rows, sources = [], []
    for name in plan.WAYS[net]:
        cell = cells.get(name)
        rows.append(_row(name, cell))
        sources.append(None if cell is None else cell.record)
    columns = (
        "way", "faults", "numbers", "bytes", "multiply-adds", "cells written",
        "accuracy, %", "5th percentile", "worst", "recovered, %", "minus clean", "rate",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption=f"{plan.NETS[net]}, {TITLES[point]}: every way and size.",
        align="llrrrrlrrlll",
        digits={name: 1 for name in columns},
        sources=sources,
        notes=[
            "Faults: p_lrs + p_hrs in per cent of cells, and g_lrs / g_hrs in uS. "
            "Numbers, bytes: digital values kept for one chip, and the places that "
            "are kept with them, 4 bytes each. A frozen A and a projection come back "
            "from a seed. Multiply-adds: digital ones for one image, beside the "
            "chip's; a subspace's change has no fast product and is formed. Cells "
            "written: whose level changes when the chip is programmed again, mean. "
            "Accuracy with a 95 % bootstrap interval over chips; minus clean: points, "
            "against the net that no chip broke. Rate: the one that was chosen; * "
            "where it is the least or the largest that was tried."
        ],
    )


def _row(name: str, cell: Cell | None) -> list[Any]:
    """A row of the table of a point."""
    title = parse(name).title
    if cell is None:
        return [title, *(None,) * 11]
    record, cost = cell.record, cell.record.metrics["cost"]
    own = record.config
    rates = f"{100 * own['p_lrs']:.3g} + {100 * own['p_hrs']:.3g}"
    written = record.metrics.get("written")
    accuracy = bootstrap_interval(100 * cell.accuracy, resamples=2000)
    share = cell.recovered()
    clean, rate = float(record.metrics["clean"]), record.metrics.get("rate")
    return [
        title,
        f"{rates}; {own['g_lrs']:g} / {own['g_hrs']:g}",
        int(cost["numbers"]),
        int(cost["bytes"]),
        int(cost["multiply_adds"]),
        0 if written is None else round(written),
        tuple(accuracy),
        100 * record.metrics["low"],
        100 * record.metrics["worst"],
        NONE if name == "none" or share is None else tuple(100 * x for x in share),
        tuple(x - 100 * clean for x in accuracy),
        f"{rate:g}{END * cell.at_end}" if rate is not None else NONE,
    ]


def _equal(net: str, point: str, cells: Board) -> Table:
    """Each kind at most as large as LoRA of one rank, paired."""
    rows: list[list[Any]] = []
    rival = cells.get(RIVAL)
    for kind in KINDS:
        if kind in ("none", "retrain", "itt"):
            continue
        own = [
            cell
            for name, cell in cells.items()
            if parse(name).kind == kind
            and name != RIVAL
            and rival is not None
            and cell.bytes <= rival.bytes
        ]
        if not own or rival is None:
            continue
        best = max(own, key=lambda cell: cell.bytes)
        rows.append([best.way.title, *_gap(best, rival)])
    for kind in ("retrain", "itt"):
        if kind in cells and rival is not None:
            rows.append([KINDS[kind], *_gap(cells[kind], rival)])
    return Table(
        ("way", "bytes", "multiply-adds", "chips", "minus LoRA"),
        rows,
        caption=f"{plan.NETS[net]}, {TITLES[point]}: the largest size of each way that "
        f"takes no more bytes than {parse(RIVAL).title}, and the paired difference to "
        "it in points over the same chips.",
        align="lrrrl",
        digits=1,
        notes=["95 % bootstrap intervals over chips, not corrected for their number."],
    )  # fmt: skip


def _gap(cell: Cell, rival: Cell) -> list[Any]:
    """What a way takes, and the paired difference to another."""
    one, two = cell.accuracy, rival.accuracy
    count = min(len(one), len(two))
    found = paired_bootstrap(100 * one[:count], 100 * two[:count], resamples=2000)
    work = int(cell.record.metrics["cost"]["multiply_adds"])
    gap = (found.difference, found.low, found.high)
    return [cell.bytes, work, count, gap]


def _labels(records: Records) -> Table:
    """Accuracy against the number of labelled images."""
    counts = sorted({int(r.config["labels"]) for r in records.where(kind="labels")})
    rows, known = [], counts or list(plan.LABELS)
    for net in plan.NETS:
        for way in plan.ONE_SIZE:
            row: list[Any] = [plan.NETS[net], parse(way).title]
            for count in (*known, 0):
                kind = "labels" if count else "main"
                own = records.where(
                    kind=kind, net=net, point="equal", way=way, labels=count
                )
                row.append(_spread(own[0]) if len(own) else None)
            if any(row[2:]):
                rows.append(row)
    columns = ("net", "way", *(f"{count:,}" for count in known), "all")
    return Table(
        columns,
        rows,
        caption="Accuracy in per cent by number of labelled images, "
        f"{TITLES['equal']}: mean over chips, 5th percentile in brackets.",
        notes=["Each chip draws its own images."],
    )


def _spread(record: Record) -> str:
    return f"{100 * record.metrics['mean']:.1f} ({100 * record.metrics['low']:.1f})"


def _clean(records: Records) -> Table:
    """Every way on a chip that nothing broke."""
    rows: list[list[Any]] = []
    for net in plan.NETS:
        cells = board(records, kind="clean", net=net)
        if "none" not in cells:
            continue
        base = cells["none"].accuracy.mean()
        for name in plan.WAYS[net]:
            if name in cells:
                own = cells[name].accuracy.mean()
                title = [plan.NETS[net], parse(name).title]
                rows.append([*title, 100 * own, 100 * (own - base)])
    return Table(
        ("net", "way", "accuracy, %", "minus no action"),
        rows,
        caption="The same ways on a chip without faults: what is gained here is no "
        "healing.",
        digits=2,
    )


def _resampled(records: Records) -> Table:
    """Training without the map, beside training for each chip."""
    rows: list[list[Any]] = []
    for net, title in plan.NETS.items():
        for record in records.where(kind="resampled", net=net):
            factor = record.config["factor"]
            name = (
                f"resampled chips, penalty {factor:g}" if factor else "resampled chips"
            )
            rows.append([title, f"LoRA, rank {extras.RANK}, {name}", *_cells(record)])
        for way in (f"lora-{extras.RANK}", "none"):
            for record in records.where(kind="main", net=net, point="equal", way=way):
                if rows:
                    tail = "" if way == "none" else ", for each chip"
                    rows.append([title, parse(way).title + tail, *_cells(record)])
    return Table(
        ("net", "way", "chips", "accuracy, %", "5th percentile", "worst"),
        rows,
        caption="One adapter for all chips, trained on chips drawn anew and without "
        "the map of any, with HaLoRA's penalty on its norms and without; scored on the "
        f"same chips as adapters that know theirs. {TITLES['equal']}.",
        align="llrlrr",
        digits=1,
    )


def _cells(record: Record) -> list[Any]:
    accuracy = [100 * x for x in record.series["accuracy"]]
    interval = tuple(bootstrap_interval(accuracy, resamples=2000))
    own = record.metrics
    return [len(accuracy), interval, 100 * own["low"], 100 * own["worst"]]


def _reduced(records: Records) -> str:
    """What was small."""
    own = [record for record in records if record.config.get("kind") == "main"]
    if not own:
        return "Not run."
    first = own[0].config
    counts = sorted({int(r.config["chips"]) for r in own})
    steps = sorted({int(r.config["steps"]) for r in own})
    tried = sorted({len(r.config["rates"]) for r in own if "rate" in r.metrics})
    device = Fault().given()
    return (
        f"One seed of each net. Chips of a row: {counts[0]} to {counts[-1]}; training "
        f"steps: {', '.join(map(str, steps))}, of {first['batch']} images; learning "
        f"rate: one of {' or '.join(map(str, tried))}, chosen for each row on "
        f"{first['tuning_chips']} other chips and {first['valid']} validation images; "
        f"a frozen A of LoRI-S has rank {first['mask_rank']}. One-sided pairs, a scale "
        f"for each column, {device['levels']} levels, an on/off ratio of "
        f"{device['g_lrs'] / device['g_hrs']:g}."
    )
