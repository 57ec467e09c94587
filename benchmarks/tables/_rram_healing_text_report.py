"""What the table of healed encoders shows: hypotheses, tables, a figure."""

import functools
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import (
    Block,
    Figure,
    Heading,
    Table,
    Text,
    bars_with_intervals,
)
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables._rram_healing_text_claims import Grid, hypotheses, right
from benchmarks.tables._rram_healing_text_ways import FEW, WAYS

TITLES = SUITES["tasks"]
NONE = "–"


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    grid: Grid = {
        (record.config["task"], record.row.removeprefix(f"{record.config['task']}-")): (
            record
        )
        for record in records
    }
    tasks = list(dict.fromkeys(task for task, _ in grid)) or ["trec", "sentiment_movie"]
    tasks.sort(key=list(TITLES).index)
    return [
        Heading("How many numbers heal a broken chip?"),
        Text(verdict(grid, tasks)),
        hypotheses(grid, tasks),
        *(block for task in tasks for block in _task(grid, task)),
        _others(grid, tasks),
        Heading("What was reduced, and what to make of it"),
        Text(_reduced(records)),
    ]


def verdict(grid: Grid, tasks: list[str]) -> str:
    """Says what was lost and what the best ways gave back; computed."""
    parts = []
    for task in tasks:
        bare = grid.get((task, "none"))
        if bare is None:
            continue
        whole, low = bare.metrics["whole"], right(bare).mean()
        gains = {
            name: right(grid[task, name]).mean() - low
            for name in WAYS
            if name != "none" and (task, name) in grid
        }
        title = TITLES[task][0].upper() + TITLES[task][1:]
        text = (
            f"{title}: the fine-tuned net has {100 * whole:.1f} %, on "
            f"{len(right(bare))} chips without action {100 * low:.1f} % on average"
        )
        if gains:
            best = max(gains, key=gains.__getitem__)
            if gains[best] > 0:
                text += (
                    f"; most comes back by {WAYS[best].title}: "
                    f"{100 * gains[best]:+.1f} points"
                )
            else:
                text += "; no way gives anything back: healing fails"
        lost, (least, most) = whole - low, bare.config["aim"]
        if not least <= lost <= most:
            text += (
                f". The loss of {100 * lost:.1f} points lies outside the "
                f"{100 * least:.0f} to {100 * most:.0f} that were aimed at"
            )
        parts.append(f"{text}.")
    return " ".join(parts) or "Not run."


COLUMNS = (
    "way",
    "accuracy, %",
    "5th percentile",
    "minus no action",
    "recovered, %",
    "no faults, %",
    "recovered of its own, %",
    "numbers",
    "head",
    "bytes",
    "multiply-adds",
    "rate",
)


def _task(grid: Grid, task: str) -> list[Block]:
    """The table and figure of one task."""
    rows, sources = [], []
    for name, way in WAYS.items():
        record, clean = grid.get((task, name)), grid.get((task, f"clean-{name}"))
        title = _titled(way.title, record)
        rows.append([title, *(_cells(grid, task, name) or [None] * 11)])
        sources.append([r for r in (record, clean) if r is not None] or None)
    title = TITLES[task][0].upper() + TITLES[task][1:]
    first = grid.get((task, "none"))
    notes = [
        "Mean over chips with 95 % bootstrap intervals over chips; differences are "
        "paired by chip. `recovered`: share of what the chips lose. `no faults`: the "
        "same on chips without faults, with converters and noise; corrections of the "
        "known error have nothing to correct there. `recovered` counts "
        "what a way gains without faults too, which is fine-tuning; `recovered of its "
        "own` is the share of the way from no action to the same way without faults "
        "(for corrections, to no action without faults). `numbers`: kept digitally for "
        "one chip, `bytes` with 4 for each value and each place; a frozen A and the "
        "subspace come from a seed. `head`: retrained numbers of the head, in a "
        "place that every row has. `multiply-adds`: digital, for each token and "
        "beside the head; the change of the subspace is formed."
    ]
    found: list[Block] = [
        Heading(title, 3),
        Table(
            COLUMNS,
            rows,
            align="llllllllrrrr",
            digits=dict.fromkeys(COLUMNS, 1),
            caption=_caption(title, first),
            notes=notes,
            sources=sources,
        ),
    ]
    if first is not None:
        found.append(_figure(grid, task, title))
    return found


def _others(grid: Grid, tasks: list[str]) -> Table:
    """Another polarity, and fewer labelled texts, for a few ways."""
    labels = {
        name.removesuffix("-none")
        for task, name in grid
        if name.endswith("-none") and not name.startswith("clean")
    }
    labels = {name for name in labels if not name.endswith("-clean")} or {""}
    rows: list[list[Any]] = []
    for task in tasks:
        for label in sorted(labels):
            own: Grid = {
                (task, name.removeprefix(f"{label}-")): record
                for (of, name), record in grid.items()
                if of == task and label and name.startswith(f"{label}-")
            }
            first = own.get((task, "none"))
            for name in FEW:
                title = _titled(WAYS[name].title, own.get((task, name)))
                cells = _cells(own, task, name) or [None] * 11
                kept = [*cells[:1], *cells[2:6]]
                rows.append([TITLES[task], _point(first), title, *kept])
    columns = ("task", "point", *COLUMNS[:2], *COLUMNS[3:7])
    return Table(
        columns,
        rows,
        align="llllllll",
        digits=1,
        caption="Other faults and fewer labelled texts.",
        notes=[
            "Columns as above. Another polarity has a share of stuck cells chosen for "
            "it; fewer labelled texts also mean fewer for the activations' weights."
        ],
    )


def _point(first: Record | None) -> str | None:
    """The faults and the labels of a point."""
    if first is None:
        return None
    own = first.metrics["device"]
    return (
        f"p_lrs {100 * own['p_lrs']:.3g} %, p_hrs {100 * own['p_hrs']:.3g} %; "
        f"{first.config['labelled']} texts"
    )


def _titled(title: str, record: Record | None) -> str:
    """The title with the ranks of the run."""
    if record is None:
        return title
    rank = record.config["rank"]
    for text, value in (
        ("rank r / 8", max(1, round(rank / 8))),
        ("rank r / 4", max(1, round(rank / 4))),
        ("rank r / 2", max(1, round(rank / 2))),
        ("rank 2 r", 2 * rank),
        ("rank 4 r", 4 * rank),
        ("rank r", rank),
    ):
        if text in title:
            return title.replace(text, f"rank {value}")
    return title


def _cells(grid: Grid, task: str, name: str) -> list[Any] | None:
    """The cells of one way, after its title."""
    record, bare = grid.get((task, name)), grid.get((task, "none"))
    if record is None or bare is None:
        return None
    marks, metrics = right(record), record.metrics
    gain, lost = marks - right(bare), metrics["whole"] - right(bare).mean()
    clean = grid.get((task, f"clean-{name}"))
    same = name == "none"
    return [
        tuple(100 * x for x in stats.bootstrap_interval(marks)),
        100 * metrics["fifth"],
        NONE if same else _signed(gain),
        NONE if same or lost <= 0 else f"{100 * gain.mean() / lost:.0f}",
        NONE if clean is None else f"{100 * right(clean).mean():.1f}",
        NONE if same else _own_share(grid, task, name, gain),
        round(metrics["cost"]["numbers"]),
        round(metrics["head"]),
        round(metrics["cost"]["bytes"]),
        round(metrics["cost"]["multiply_adds"]),
        f"{metrics['rate']:g}" if metrics["rate"] else NONE,
    ]


def _own_share(grid: Grid, task: str, name: str, gain: np.ndarray) -> str | None:
    """Share of the way from no action to the same way on chips without faults."""
    trains = WAYS[name].trained or WAYS[name].kind == "head"
    clean = grid.get((task, f"clean-{name}" if trains else "clean-none"))
    if clean is None:
        return None
    reach = right(clean).mean() - right(grid[task, "none"]).mean()
    return NONE if reach <= 0 else f"{100 * gain.mean() / reach:.0f}"


def _signed(gain: np.ndarray) -> str:
    """A mean difference in points with its interval over chips."""
    value, low, high = (100 * x for x in stats.bootstrap_interval(gain))
    return f"{value:+.1f} [{low:+.1f}, {high:+.1f}]"


def _caption(title: str, first: Record | None) -> str:
    """Names the chips and how their faults were chosen."""
    if first is None:
        return f"{title}."
    own, c = first.metrics["device"], first.config
    tried = ", ".join(
        f"{100 * float(rate):g} %: {100 * lost:.1f}"
        for rate, lost in first.metrics["lost_by_rate"].items()
    )
    return (
        f"{title}: test accuracy over {len(right(first))} chips; {c['texts']} texts. "
        f"Fine-tuned, off the chip: {100 * first.metrics['whole']:.1f} %. Every cell "
        f"stuck with p_lrs {100 * own['p_lrs']:g} % and p_hrs {100 * own['p_hrs']:g} % "
        f"at the ends of {own['g_min']:g} to {own['g_max']:g} uS; {c['bits']}-bit DAC "
        f"and ADC, read noise {100 * own['read']:g} %, tiles of {c['tile']} rows. The "
        f"share of stuck cells was chosen on {c['tuning']} validation chips (share and "
        f"points lost: {tried})."
    )


def _figure(grid: Grid, task: str, title: str) -> Figure:
    """Accuracy by way, in the order of digital numbers."""
    found = [
        (grid[task, name].metrics["cost"]["numbers"], name)
        for name in WAYS
        if (task, name) in grid
    ]
    names = [name for _, name in sorted(found, key=lambda pair: pair[0])]
    values = [
        tuple(100 * x for x in stats.bootstrap_interval(right(grid[task, name])))
        for name in names
    ]
    groups = [
        f"{_titled(WAYS[n].title, grid[task, n])}\n"
        f"{grid[task, n].metrics['cost']['numbers']:,}"
        for n in names
    ]
    draw = functools.partial(
        bars_with_intervals, groups, {"on chips": values}, ylabel="test accuracy, %"
    )
    alt = "; ".join(
        f"{WAYS[n].title}: {v[0]:.1f}" for n, v in zip(names, values, strict=True)
    )
    caption = f"{title}: accuracy by way, with digital numbers below, fewest first."
    return Figure(draw, caption, alt)


def _reduced(records: Records) -> str:
    """What was small, and what is no hardware."""
    if not len(records):
        return "Not run."
    c = records[0].config
    words = (
        f"Only the matrices of the last {c['layers']} layers sit on the chip; the "
        "layers below run once, on ideal hardware. Texts are cut to "
        f"{LENGTHS['tasks']} tokens. The net was fine-tuned by a LoRA of rank "
        f"{c['rank']} ({c['steps']} steps), which is merged before it is programmed. "
        f"Healing has {c['heal_steps']} steps of {c['batch']} of {c['labelled']} "
        "labelled texts; every trained way starts from the new head, and three peak "
        f"rates are tried on {c['tuning']} chips of their own. Training sees the "
        "weights that the cells hold, all scores the converters and fresh noise. One "
        f"seed of the net; {c['texts']} test texts, the same for all rows, whose "
        "choice the intervals do not cover. One polarity of faults: "
        f"{100 * c['lrs']:g} % of them at low resistance."
    )
    return words
