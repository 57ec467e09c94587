"""Reports: blocks in a terminal, as one HTML page, and as Markdown tables in docs.

A table's `report(records)` returns a list of the blocks defined here; it must also
give a full list for no records at all: what was not run is shown as `not run`.
"""

import dataclasses
import pathlib
import re
from collections.abc import Sequence
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.padding import Padding
from rich.table import Table as Grid
from rich.text import Text as Styled

from benchmarks.blocks import (
    NOT_RUN,
    Block,
    Figure,
    Heading,
    Table,
    Text,
    show,
    spread,
)
from benchmarks.figures import bars_with_intervals, curves, heatmap, to_file
from benchmarks.page import provenance, render_page
from benchmarks.record import Records, read_folder, write_atomic
from benchmarks.runner import Entry, folder, load

__all__ = [
    "NOT_RUN",
    "Block",
    "Figure",
    "Heading",
    "Report",
    "Table",
    "Text",
    "bars_with_intervals",
    "curves",
    "heatmap",
    "make_report",
    "render_page",
    "render_terminal",
    "show",
    "spread",
    "update_markdown",
    "write_figures",
    "write_page",
]

_SIDES: dict[str, Any] = {"l": "left", "r": "right", "c": "center"}


@dataclasses.dataclass(frozen=True)
class Report:
    """The report of one table, ready to be shown.

    Attributes:
        entry: The table.
        blocks: What it shows.
        records: The records it was made from.
        problems: Files that are no records, one sentence each.
        smoke: Whether the records are of a smoke run.
    """

    entry: Entry
    blocks: list[Block]
    records: Records
    problems: list[str]
    smoke: bool


def make_report(entry: Entry, results: pathlib.Path, *, smoke: bool = False) -> Report:
    """Reads the records of a table and asks it for its blocks."""
    records, problems = read_folder(folder(results, entry.name, smoke=smoke))
    return Report(entry, list(load(entry).report(records)), records, problems, smoke)


def render_terminal(report: Report, console: Console | None = None) -> None:
    """Shows a report in the terminal; a figure is its caption and its alt text."""
    console = console or Console(highlight=False, markup=False)
    console.print(Styled(report.entry.name, style="bold"))
    console.print(Styled(report.entry.summary, style="dim"))
    if report.smoke:
        console.print(Styled("Smoke run: the numbers mean nothing.", style="yellow"))
    for problem in report.problems:
        console.print(Styled(f"Left out: {problem}", style="yellow"))
    for block in report.blocks:
        console.print()
        if isinstance(block, Heading):
            console.print(Styled(block.text, style="bold underline"))
        elif isinstance(block, Text):
            console.print(Styled(block.text.strip()))
        elif isinstance(block, Table):
            _print_table(block, console)
        else:
            text = " ".join(part for part in (block.caption, block.alt) if part)
            console.print(Styled(f"[figure] {text}", style="dim"))
    console.print(Styled(_origin(report.records), style="dim"))


def _print_table(table: Table, console: Console) -> None:
    """Prints one table."""
    if table.caption:
        console.print(Styled(table.caption, style="italic"))
    grid = Grid(box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for name, side in zip(table.columns, table.alignment(), strict=True):
        grid.add_column(Styled(name), justify=_SIDES[side], no_wrap=side == "r")
    for row in table.text():
        grid.add_row(
            *(Styled(cell, style="dim" if cell == NOT_RUN else "") for cell in row)
        )
    console.print(Padding(grid, (0, 0, 0, 1)))
    for note in table.notes:
        console.print(Styled(note, style="dim"))


def write_page(report: Report, path: pathlib.Path, results: pathlib.Path) -> None:
    """Writes the HTML page of a report, linking to its records where they lie."""
    where = folder(results, report.entry.name, smoke=report.smoke).resolve()
    base = pathlib.PurePosixPath(_relative(where, path.resolve().parent)).as_posix()
    page = render_page(
        report.entry.name,
        report.blocks,
        report.records,
        doc=report.entry.doc,
        base=f"{base}/",
        smoke=report.smoke,
        problems=report.problems,
    )
    write_atomic(path, page.encode())


def _relative(target: pathlib.Path, start: pathlib.Path) -> str:
    """Returns a path relative to a folder that need not be its parent."""
    shared = 0
    for one, other in zip(target.parts, start.parts, strict=False):
        if one != other:
            break
        shared += 1
    up = [".."] * (len(start.parts) - shared)
    return "/".join([*up, *target.parts[shared:]]) or "."


def write_figures(report: Report, into: pathlib.Path) -> list[pathlib.Path]:
    """Writes the figures that have a name as SVG files.

    Args:
        report: A report.
        into: The folder.

    Returns:
        The files, in the order of the report.
    """
    named = [b for b in report.blocks if isinstance(b, Figure) and b.name]
    paths = [into / f"{figure.name}.svg" for figure in named]
    for figure, path in zip(named, paths, strict=True):
        to_file(figure.figure, path)
    return paths


def update_markdown(report: Report, text: str) -> str:
    """Regenerates the tables of a report inside a Markdown text.

    Between `<!-- records:NAME -->` and `<!-- end -->` everything is replaced by the
    report's tables and a line on their origin. Doing it twice changes nothing.

    Raises:
        ValueError: If the text has no such pair of markers.
    """
    start = rf"<!-- records:{re.escape(report.entry.name)} -->"
    pattern = re.compile(rf"({start}\n)(.*?)(<!-- end -->)", re.DOTALL)
    sections = pattern.findall(text)
    if not sections or any("<!-- records:" in body for _, body, _ in sections):
        raise ValueError(
            f"report: expected `<!-- records:{report.entry.name} -->` on a line of its "
            "own, followed by `<!-- end -->`, got neither or only one of them. Add "
            "both lines where the tables shall stand."
        )
    body = _markdown(report)
    return pattern.sub(lambda match: f"{match[1]}{body}{match[3]}", text)


def _markdown(report: Report) -> str:
    """Returns the tables of a report in Markdown."""
    parts = [""]
    for block in report.blocks:
        if isinstance(block, Table):
            parts += [_markdown_table(block), ""]
    parts += [f"*{_origin(report.records)}*", "", ""]
    return "\n".join(parts)


def _markdown_table(table: Table) -> str:
    """Returns one table in Markdown."""
    rules = {"l": ":--", "r": "--:", "c": ":-:"}
    lines = [_pipe(table.columns), _pipe([rules[s] for s in table.alignment()])]
    lines += [_pipe(row) for row in table.text()]
    text = "\n".join(lines)
    if table.caption:
        text = f"{_plain(table.caption)}\n\n{text}"
    return "\n\n".join([text, *map(_plain, table.notes)])


def _pipe(cells: Sequence[str]) -> str:
    """Returns one line of a Markdown table."""
    escaped = [_plain(cell).replace("|", "\\|") for cell in cells]
    return f"| {' | '.join(escaped)} |"


def _plain(text: str) -> str:
    """Returns text on one line, harmless as HTML inside Markdown."""
    return " ".join(text.split()).replace("<", "&lt;")


def _origin(records: Records) -> str:
    """Says in one line what the numbers were made from."""
    facts = provenance(records)
    if not len(records):
        return "No records yet: nothing was run."
    commits = ", ".join(facts["Commit"]).replace("`", "")
    devices = " / ".join(facts["Device"])
    return (
        f"From {facts['Records'][0].split(',')[0]} records of {facts['Date'][0]}, "
        f"commit {commits}, {devices}."
    )
