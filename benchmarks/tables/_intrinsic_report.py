"""What the table of intrinsic dimension shows: curves, d90, verdicts, bounds, costs."""

import functools
import itertools
import math
from typing import Any

import numpy as np

from benchmarks.figures import INK, curves
from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, spread
from benchmarks.tables import _intrinsic_plan as plan
from benchmarks.tables import _intrinsic_verdicts as verdicts
from benchmarks.tables._intrinsic_numbers import (
    Scores,
    curve,
    dimensions,
    labels_dimension,
    mean,
    within,
)
from benchmarks.tables._intrinsic_plan import AUTHORS, DIRECT, NETS, TITLES


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("Intrinsic dimension on MNIST"),
        verdicts.table(records),
        _anchors(records),
        *_figure(records),
        _measured(records),
        _other(records),
        _labels(records),
        _toy(records),
        _bounds(records),
        _costs(records),
        Text(_protocol(records)),
    ]


def _shown(scores: Scores, d: int) -> str | None:
    return spread([100 * x for x in scores.get(d, {}).values()], 1)


def _range(ends: tuple[float, float]) -> str:
    low, high = (f"{100 * end:.1f}" for end in ends)
    return low if low == high else f"{low} to {high}"


def _anchors(records: Records) -> Table:
    """The FC net's curve against the authors' range."""
    own = curve(records, "main", "fc")
    check, beside = (curve(records, part, "fc") for part in ("dense", "beside"))
    rows: list[list[Any]] = []
    for d, ends in ((DIRECT, plan.AUTHORS_DIRECT), *AUTHORS.items()):
        middle = mean(own, d)
        met = None if middle is None else within(middle, ends)
        rows.append(
            [
                "all weights" if d == DIRECT else f"{d:,}",
                _range(ends),
                _shown(own, d),
                len(own.get(d, {})) or None,
                met if met is None else "met" if met else "not met",
                "–" if d == DIRECT else _shown(check, d),
            ]
        )
    of = (
        f" With fewer epochs than the curve; the curve's own projection at as many: "
        f"{', '.join(f'{_shown(beside, d)} at d = {d}' for d in beside)}."
        if beside
        else ""
    )
    notes = [
        "Test accuracy after the last epoch, in per cent, mean [min…max] over seeds. "
        f"`met`: the mean lies within {100 * plan.TOLERANCE:g} points of the authors' "
        f"range; for all weights the same rule.{of}"
    ]
    columns = ("d", "authors, %", "here, %", "seeds", "", "dense projection, %")
    return Table(
        columns,
        rows,
        caption=f"{NETS['fc'].title} on MNIST against the authors' own runs.",
        align="rllrll",
        notes=notes,
    )


def _figure(records: Records) -> list[Block]:
    """Accuracy against d, with the authors' range as a band."""
    found: dict[str, Scores] = {}
    for name, title in TITLES.items():
        own = curve(records, *name.split("-"))
        if len([d for d in own if d != DIRECT]) > 1:
            found[title] = own
    if not found:
        return []
    ends = [
        f"{title} {100 * np.mean(list(own[max(own)].values())):.1f} at d = {max(own)}"
        for title, own in found.items()
    ]
    caption = (
        "Accuracy against d. Lines are means over seeds, bands their range; grey: the "
        "range of the authors' runs of the FC net; dashed: training all weights."
    )
    figure = functools.partial(draw, found)
    return [Figure(figure, caption, f"{'; '.join(ends)}.", name="intrinsic-mnist")]


def draw(found: dict[str, Scores]) -> Any:
    """The curves, the authors' band and the baselines."""
    lines = {}
    for title, own in found.items():
        dims = [d for d in own if d != DIRECT]
        values = [100 * np.array(list(own[d].values())) for d in dims]
        ends = [[f(x) for x in values] for f in (np.mean, np.min, np.max)]
        lines[title] = (dims, *ends)
    canvas = curves(
        lines, xlabel="d, numbers that train", ylabel="test accuracy, %", logx=True
    )
    axes = canvas.axes[0]
    low, high = (100 * np.array(ends) for ends in zip(*AUTHORS.values(), strict=True))
    axes.fill_between(
        list(AUTHORS), low - 0.2, high + 0.2, color=INK, alpha=0.25, linewidth=0
    )
    for line, own in zip(axes.get_lines(), found.values(), strict=False):
        if DIRECT in own:
            level = 100 * float(np.mean(list(own[DIRECT].values())))
            axes.axhline(
                level, color=line.get_color(), linewidth=0.8, linestyle=(0, (4, 3))
            )
    return canvas


def number(value: float | None) -> str | None:
    """A dimension as a cell; infinite: not reached."""
    if value is None:
        return None
    return f"{value:,.0f}" if math.isfinite(value) else "not reached"


def interval(found: Any) -> str | None:
    """An interpolated dimension with its interval."""
    if found is None:
        return None
    low, high = (number(end) for end in (found.low, found.high))
    return f"{number(found.interpolated)} [{low}, {high}]"


def _measured(records: Records) -> Table:
    """d90 by both baselines."""
    rows: list[list[Any]] = []
    for name, title in TITLES.items():
        found = dimensions(curve(records, *name.split("-")))
        cells: list[Any] = []
        for own in (found and found.local, found and found.overall):
            cells += [number(own.tested) if own else None, interval(own)]
        published = ["–" if x is None else f"{x:,}" for x in plan.PUBLISHED[name]]
        rows.append([title, *cells, *published])
    notes = [
        "Smallest tested d, and where straight lines between means over seeds cross "
        "the threshold, with its 95 % bootstrap interval over seeds: with three seeds "
        "little more than their range. Local: 90 % of the accuracy of training all "
        "weights; overall: 90 % of 1. The authors' table mixes both; their notebooks "
        "tell them apart for some rows."
    ]
    columns = (
        "net", "local, tested", "local", "overall, tested", "overall",
        "published", "their local", "their overall",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="Intrinsic dimension at 90 %.",
        align="lrlrlrrr",
        notes=notes,
    )


def _other(records: Records) -> Table:
    """The curves that have no published range."""
    rows: list[list[Any]] = []
    for name in ("main-lenet", "pixels-fc", "pixels-lenet"):
        own = curve(records, *name.split("-"))
        rows += [
            [
                TITLES[name],
                "all weights" if d == DIRECT else f"{d:,}",
                _shown(own, d),
                len(own[d]),
            ]
            for d in own
        ] or [[TITLES[name], "–", None, None]]
    extra = curve(records, "main", "fc")
    rows += [
        [TITLES["main-fc"], f"{d:,}", _shown(extra, d), len(extra[d])]
        for d in extra
        if d not in (DIRECT, *AUTHORS)
    ]
    return Table(
        ("net", "d", "accuracy, %", "seeds"),
        rows,
        caption="The other curves, and dimensions that the search went to.",
        align="lrlr",
    )


def _labels(records: Records) -> Table:
    """Random labels: dimensions, and numbers for each label."""
    rows: list[list[Any]] = []
    kinds = {"labels": "steps", "epochs": "epochs"}
    for (kind, title), (fraction, published) in itertools.product(
        kinds.items(), plan.PUBLISHED_LABELS.items()
    ):
        part = plan.label_part(fraction, kind)
        found = labels_dimension(curve(records, part, "fc"))
        first = next(iter(records.where(part=part)), None)
        images = first.config["train"] if first else None
        each = None if found is None or images is None else found.interpolated / images
        rows.append(
            [
                title,
                f"{100 * fraction:g} %",
                images,
                interval(found),
                each,
                published,
                published / (fraction * 50_000),
            ]
        )
    notes = [
        f"Share of training labels learnt by heart that must be reached: "
        f"{plan.LABEL_SHARE:g}, as the authors'. Reduced: a smaller net, fewer images "
        "and for all shares as many steps or, as the authors, as many epochs; the "
        "published columns are of FC 5 x 400 on up to 50,000 images for 500 epochs, so "
        "that only the order compares."
    ]
    columns = (
        "alike", "of the images", "images", "d", "d for each label", "published d",
        "published for each",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="Random labels.",
        align="llrlrrr",
        digits=1,
        notes=notes,
    )


def _toy(records: Records) -> Table:
    record = records.get("toy")
    rows: list[list[Any]] = []
    for d in (9, 10, 11):
        cell: Any = None
        if record is not None and d in record.config["ds"]:
            scores = record.metrics["scores"][record.config["ds"].index(d)]
            cell = spread(scores, 4)
        rows.append([d, cell, {9: "0.165", 10: "0.9998"}.get(d, "–")])
    return Table(
        ("d", "exp(-loss), here", "authors"),
        rows,
        caption="The toy problem: of 1,000 numbers, ten blocks must sum to 1, 2, ..., "
        "10, so that the dimension is 10. The optimum in each subspace, mean [min…max] "
        "over seeds.",
        align="rll",
        sources=[record] * len(rows),
    )


def _bounds(records: Records) -> Table:
    """The best bound of each dimension."""
    rows: list[list[Any]] = []
    sources: list[Any] = []
    for net, own in NETS.items():
        found = records.where(part="bound", net=net)
        for d in sorted({r.config["d"] for r in found}) or [None]:
            here = [r for r in found if r.config["d"] == d]
            best = min(here, key=lambda r: r.metrics["bound"], default=None)
            names = ("levels", "bits", "train_error", "test_error", "bound")
            cells = [best.metrics[n] if best else None for n in (*names, "square_root")]
            cells[2:] = [None if x is None else 100 * x for x in cells[2:]]
            rows.append([own.title, d, *cells])
            sources.append(best)
    facts = records.where(part="bound")
    paid = facts[0].config if len(facts) else None
    notes = [
        "Of the rounded numbers; the best of seeds and levels, which the bound pays "
        "for. Bound: by the inverse of the binary relative entropy; beside it the "
        "square-root form, `O(sqrt(d / m))`."
        + (
            f" They hold together with probability {1 - paid['delta']:g}, and pay for "
            f"{paid['choices']:,} choices."
            if paid
            else ""
        )
    ]
    columns = (
        "net", "d", "levels", "bits", "training error, %", "test error, %",
        "bound, %", "square root, %",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="Compression bounds on the true error.",
        align="lrrrrrrr",
        digits={"levels": 0, "bits": 0, "training error, %": 1, "test error, %": 1,
                "bound, %": 1, "square root, %": 1},
        notes=notes,
        sources=sources,
    )  # fmt: skip


def _epochs(own: list[Any]) -> str:
    """The epochs of some rows, or the range of them."""
    found = sorted({r.config["epochs"] for r in own})
    return " to ".join(f"{n:,}" for n in dict.fromkeys((found[0], found[-1])))


def _costs(records: Records) -> Table:
    """Milliseconds of a step and hours by kind of row."""
    kinds: dict[tuple[str, str, str], list[Any]] = {}
    for record in records:
        c = record.config
        if "net" in c and c["part"] != "bound":
            of = c.get("projection", "all weights")
            part = c["part"].rstrip("0123456789")
            kinds.setdefault((part, c["net"], of), []).append(record)
    rows = [
        [
            part,
            NETS[net].title,
            of,
            len(own),
            _epochs(own),
            spread([r.metrics["step_ms"] for r in own], 2),
            sum(r.seconds for r in own) / 3600,
        ]
        for (part, net, of), own in kinds.items()
    ] or [["–", "–", "–", None, None, None, None]]
    columns = ("part", "net", "projection", "runs", "epochs", "ms a step", "hours")
    return Table(
        columns,
        rows,
        caption="What the rows cost, scores and compiling included.",
        align="lllrrlr",
        digits={"hours": 2},
    )


def _protocol(records: Records) -> str:
    """What a run is, in words; from the records."""
    own = records.where(part="main")
    if not len(own):
        return "Not run."
    c = own[0].config
    source = "a made-up twin of the data" if c["synthetic"] else "MNIST"
    epochs = {record.config["net"]: record.config["epochs"] for record in own}
    rounds = ", ".join(f"{n} ({NETS[net].title})" for net, n in epochs.items())
    return (
        f"{source}, {c['train']:,} training and {c['test']:,} test images; "
        f"{rounds} epochs of batches of {c['batch']}, Adam at {c['rate']:g} with "
        f"b2 = {c['b2']:g}, l2 of {c['l2']:g} on all kernels of theta."
    )
