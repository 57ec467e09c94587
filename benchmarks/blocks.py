"""The blocks of a report, and how their cells are written.

A report is a list of blocks; `benchmarks.report` shows it in a terminal, as one HTML
page, and as Markdown.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.record import Record

NOT_RUN = "not run"
_FIGURE_SPACE = "\u2007"  # as wide as a digit


@dataclasses.dataclass(frozen=True)
class Heading:
    """A heading; level 2 is a section, 3 a part of one."""

    text: str
    level: int = 2


@dataclasses.dataclass(frozen=True)
class Text:
    """Paragraphs, divided by blank lines; `code` in backticks."""

    text: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        columns: Column heads.
        rows: Cells: strings, ints, floats; None is a row or cell that was not run.
        caption: What the table shows, in one or two sentences.
        align: `l`, `r` or `c` per column; empty: numbers right, words left.
        notes: Footnotes below the table.
        digits: Decimals of floats; a mapping sets them for the named columns.
        sources: The records behind each row: a row name, a Record, or a list of them.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]
    caption: str = ""
    align: str = ""
    notes: Sequence[str] = ()
    digits: int | Mapping[str, int] = 3
    sources: Sequence[Any] = ()

    def __post_init__(self) -> None:
        """Checks that the parts fit each other."""
        width = len(self.columns)
        uneven = [i for i, row in enumerate(self.rows) if len(row) != width]
        if uneven or len(self.align) not in (0, width):
            raise ValueError(
                f"Table: expected {width} cells and alignments for {width} columns, "
                f"got other numbers in rows {uneven}, align {self.align!r}."
            )
        if self.sources and len(self.sources) != len(self.rows):
            raise ValueError(
                f"Table: expected one source for each of {len(self.rows)} rows, got "
                f"{len(self.sources)}. Use None for a row without one."
            )

    def text(self) -> list[list[str]]:
        """Returns the cells as they are shown."""
        rows = [
            [
                show(cell, self._digits(name))
                for name, cell in zip(self.columns, row, strict=True)
            ]
            for row in self.rows
        ]
        columns = [_line_up(column) for column in zip(*rows, strict=True)]
        return [list(row) for row in zip(*columns, strict=True)]

    def alignment(self) -> str:
        """Returns one of `l`, `r`, `c` for each column."""
        if self.align:
            return self.align
        cells = self.text()
        columns = [[row[i] for row in cells] for i in range(len(self.columns))]
        return "".join(
            "r" if _numeric(column) and not _with_intervals(column) else "l"
            for column in columns
        )

    def links(self) -> list[list[str]]:
        """Returns the names of the records behind each row."""
        return [_row_names(source) for source in self.sources]

    def _digits(self, column: str) -> int:
        """Returns the decimals of a column."""
        if isinstance(self.digits, Mapping):
            return self.digits.get(column, 3)
        return self.digits


@dataclasses.dataclass(frozen=True)
class Figure:
    """A figure.

    Attributes:
        figure: A matplotlib figure, SVG text, or a function that returns either; a
            function is called only when a page is made.
        caption: What the figure shows.
        alt: What it says, for readers who cannot see it.
        name: Of its file, where figures are written as files; none without one.
    """

    figure: Any | Callable[[], Any]
    caption: str = ""
    alt: str = ""
    name: str = ""


Block = Heading | Text | Table | Figure


def show(value: Any, digits: int = 3) -> str:
    """Writes a cell: `not run` for None, floats with fixed decimals.

    Intervals, which are `(value, low, high)`, become `0.912 [0.905, 0.920]`.
    """
    if value is None:
        return NOT_RUN
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.{digits}f}" if math.isfinite(value) else str(value)
    if isinstance(value, tuple) and len(value) == 3:
        middle, low, high = (f"{float(end):.{digits}f}" for end in value)
        return f"{middle} [{low}, {high}]"
    if hasattr(value, "item"):
        return show(value.item(), digits)
    return str(value)


def spread(values: Sequence[float | None], digits: int = 3) -> str | None:
    """Writes results over seeds as `mean [min…max]`; None when there are none."""
    present = [float(value) for value in values if value is not None]
    if not present:
        return None
    middle = f"{statistics.fmean(present):.{digits}f}"
    if len(present) == 1:
        return middle
    return f"{middle} [{min(present):.{digits}f}…{max(present):.{digits}f}]"


def _with_intervals(cells: Sequence[str]) -> bool:
    """Whether a column holds `value [low, high]`."""
    return any(cell.endswith("]") and " [" in cell for cell in cells)


def _line_up(cells: Sequence[str]) -> list[str]:
    """Pads the values of a column with intervals to one width, so that they align."""
    if not _with_intervals(cells) or not _numeric(cells):
        return list(cells)
    heads = [cell.split(" ")[0] for cell in cells if cell != NOT_RUN]
    width = max(map(len, heads))
    return [
        cell if cell == NOT_RUN else _FIGURE_SPACE * (width - len(head)) + cell
        for cell, head in zip(cells, (c.split(" ")[0] for c in cells), strict=True)
    ]


def _numeric(cells: Sequence[str]) -> bool:
    """Whether a column holds numbers: it is set right, so that they align."""
    present = [cell for cell in cells if cell != NOT_RUN]
    return bool(present) and all(_is_number(cell) for cell in present)


def _is_number(cell: str) -> bool:
    """Whether a cell is a number or begins like one."""
    head = cell.strip().split(" ")[0].rstrip("%×x").replace(",", "").replace("−", "-")
    try:
        float(head)
    except ValueError:
        return head in ("", "-", "–", "—")
    return True


def _row_names(source: Any) -> list[str]:
    """Returns the row names of a source."""
    if source is None:
        return []
    if isinstance(source, Record):
        return [source.row]
    if isinstance(source, str):
        return [source]
    return [name for item in source for name in _row_names(item)]
