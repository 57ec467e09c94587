"""What ITT costs, as the table shows it: steps, seconds, counts, and rates."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import Table
from benchmarks.tables._lori_words import NONE
from benchmarks.tables._rram_itt_plan import (
    DATASETS,
    HARD,
    METHODS,
    NETS,
    POINTS,
    STUCK,
)
from lowrank.rram import published_energies


def near(record: Record | None) -> str | None:
    """The least number of steps whose runs come within a point of the clean net.

    With an interval over chips where no choice was made on them.
    """
    if record is None:
        return None
    counts, own = record.series["steps"], np.asarray(record.series["accuracies"])
    least = 100 * record.metrics["clean"] - STUCK

    def first(means: np.ndarray) -> int:
        """The number of the first of the runs that is near; their count if none."""
        return int(np.argmax([*(100 * means >= least), True]))

    def shown(number: int) -> str:
        return (
            str(counts[number]) if number < len(counts) else f"more than {counts[-1]}"
        )

    text = shown(first(own.mean(axis=1)))
    if "chips" not in record.config or own.shape[1] < 2:
        return text
    drawn = stats.generator(0).integers(own.shape[1], size=(2000, own.shape[1]))
    found = sorted(first(own[:, rows].mean(axis=1)) for rows in drawn)
    return f"{text} [{shown(found[50])}, {shown(found[-51])}]"


def budget_note(records: Records) -> str:
    """How many chips the numbers of steps rest on."""
    found = records.where(kind="budget")
    if not len(found):
        return "Numbers of steps: not run."
    chips = sorted({len(record.series["accuracies"][0]) for record in found})
    counts = ", ".join(map(str, chips))
    if all("chips" in record.config for record in found):
        return (
            f"Numbers of steps rest on {counts} chips that no choice was made on, with "
            "95 % bootstrap intervals over them."
        )
    return (
        f"Numbers of steps rest on {counts} chips, those that the rate was chosen on: "
        "they have no interval."
    )


def steps(records: Records) -> Table:
    rows: list[list[Any]] = []
    for net, title in NETS.items():
        timed = records.get(f"overhead-{net}-mnist")
        for name, shown in (("clean", "clean step"), *list(METHODS.items())[-2:]):
            own = timed.metrics["steps"][name] if timed else None
            budget = records.get(f"budget-{net}-mnist-{name}-{HARD}")
            healed = records.get(f"point-{net}-mnist-{name}-{HARD}")
            placing = healed.get("assignment_seconds") if healed else None
            written = healed.get("written") if healed else None
            seated, wrote = (NONE, NONE) if name != "itt" else (placing, None)
            if name == "itt" and written is not None:
                wrote = float(np.mean(written))
            rows.append(
                [
                    title,
                    shown,
                    own and own["median_ms"],
                    own and (own["ratio"], own["ratio_low"], own["ratio_high"]),
                    NONE if name == "clean" else near(budget),
                    seated,
                    wrote,
                ]
            )
    points = records.where(kind="point", net="mlp", dataset="mnist", method="itt")
    compiled = sum(points.values("compiled"))
    notes = [
        "A step of 128 images, one chip held, median; ratio to the clean step within "
        "rounds. `steps`: the least number of steps whose runs, on validation images "
        "and chips at (10, 10), come within a point of the clean net on average; each "
        "number of steps is a run of its own. `written`: cells that the steps on the "
        "device write; programming the chip once before that writes every cell.",
        budget_note(records),
        f"Rates and spreads are arguments of the compiled call: ITT on the MLP was "
        f"compiled {compiled} time(s) for {len(points)} points.",
    ]
    columns = (
        "net", "method", "ms a step", "times a clean step", "steps",
        "assignment, s a chip", "written",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="Overhead, which the paper does not state.",
        align="llrlrrr",
        digits={"ms a step": 1, "times a clean step": 2, "assignment, s a chip": 2,
                "written": 0},
        notes=notes,
    )  # fmt: skip


def costs(records: Records) -> Table:
    columns = (
        "net", "cells", "spare cells", "conversions", "digital multiply-adds",
        "bytes moved", "nJ",
    )  # fmt: skip
    names = ("cells", "spare_cells", "conversions", "multiply_adds", "bytes_moved")
    rows: list[list[Any]] = []
    for net, title in NETS.items():
        record = records.get(f"overhead-{net}-mnist")
        own = record.metrics["costs"] if record else dict.fromkeys(names)
        spent = None if record is None else energy(own)
        rows.append([title, *(own[name] for name in names), spent])
    notes = [
        "Counted by `rram.cost_card`, for one image and tiles of 128 rows: cells that "
        "programming writes once, conversions after each tile's column pair, and the "
        "digital work and traffic of adapters, of which ITT has none: its price is "
        "writing, and training for each chip. `nJ`: those counts by "
        "`rram.published_energies`, 1.67 pJ a conversion; the analog product, the "
        "writing and the layers between are left out."
    ]
    return Table(
        columns,
        rows,
        caption="The analytic cost of the deployed nets.",
        align="lrrrrrr",
        digits={"nJ": 1},
        notes=notes,
    )


def energy(own: Mapping[str, Any]) -> float:
    """Nanojoules of one image."""
    known = published_energies()
    names = {"conversions": "conversion_pj", "multiply_adds": "multiply_add_pj"}
    names |= {"bytes_moved": "byte_pj"}
    return sum(own[name] * known[unit] for name, unit in names.items()) / 1e3


def rates(records: Records) -> Table:
    """Learning rates that were chosen, and whether the grid ended there."""
    rows: list[list[Any]] = []
    for record in records.where(kind="rate"):
        own, c = record.metrics, record.config
        best, grid = own["rate"], c["rates"]
        mark = " *" if best in (min(grid), max(grid)) else ""
        marks = [f"{100 * np.mean(own['tried'][f'{rate:g}']):.1f}" for rate in grid]
        title = [NETS[c["net"]], DATASETS[c["dataset"]], METHODS[c["method"]]]
        shown = [POINTS[c["point"]].title, f"{best:g}{mark}", " / ".join(marks)]
        rows.append([*title, *shown])
    rows.sort(key=lambda row: (list(NETS.values()).index(row[0]), row[1:4]))
    tried = sorted(
        {rate for r in records.where(kind="rate") for rate in r.config["rates"]}
    )
    return Table(
        ("net", "data", "method", "chosen at", "rate", "validation accuracy, %"),
        rows or [[NONE, *(None,) * 5]],
        caption="Learning rates, chosen on validation images and chips of their own.",
        align="llllll",
        notes=[
            f"Tried: {', '.join(f'{rate:g}' for rate in tried) or 'none'}; accuracies "
            "in that order. *: the least or the largest that was tried, so that "
            "another may be better."
        ],
    )
