"""Where learning rates were chosen at an end of their grid."""

from collections.abc import Mapping

from benchmarks.record import Record, Records
from benchmarks.report import Table


def rate_ends(records: Records, ways: Mapping[str, str]) -> Table:
    """How many cells of each way took the lowest or the highest rate of their grid.

    Args:
        records: Rows of `Trials`: their config has the way and the rates, sorted, their
            metrics the rate.
        ways: Titles of ways by name.

    Returns:
        A table with one row for each way; a cell, all seeds of it, counts once.
    """
    cells: dict[str, dict[tuple[object, ...], str]] = {way: {} for way in ways}
    for record in records:
        c = record.config
        if c.get("way") in cells and record.metrics.get("rate") is not None:
            key = (c["weights"], c["task"], c["size"])
            cells[c["way"]][key] = _place(record)
    rows = []
    for way, title in ways.items():
        found = list(cells[way].values())
        ends = [found.count(end) if found else None for end in ("lowest", "highest")]
        rows.append([title, len(found) or None, *ends])
    return Table(
        ("trained", "cells", "lowest rate", "highest rate"),
        rows,
        caption="Learning rates at an end of their grid.",
        notes=[
            "A cell is a way at one size, on one problem and from one start; on a "
            "problem all ways have as many rates to choose from. At an end a better "
            "rate may lie outside: a way that is there often may be better than shown."
        ],
        align="lrrr",
    )


def _place(record: Record) -> str:
    """Whether a rate is the lowest or the highest of its grid, or lies within."""
    rates, rate = record.config["rates"], record.metrics["rate"]
    if rate == min(rates):
        return "lowest"
    return "highest" if rate == max(rates) else "within"
