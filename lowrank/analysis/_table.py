"""A table of numbers by leaf: text, records, a data frame, bars."""

import dataclasses
import importlib
import math
import numbers
from collections.abc import Sequence
from typing import Any

from lowrank import _show


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of a report; prints as text in a terminal and as HTML in a notebook.

    Attributes:
        title: What it is about.
        rows: One dict for each row, all with the same keys. None is "does not apply".
        note: What the columns were computed with.

    Example:
        >>> lrk.analysis.Table("Norms", ({"path": "w", "norm": 2.0},)).columns
        ('path', 'norm')
    """

    title: str
    rows: tuple[dict[str, Any], ...]
    note: str = ""

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.rows[0]) if self.rows else ()

    def records(self) -> list[dict[str, Any]]:
        """The rows as plain dicts of Python values, for JSON and the like."""
        return [dict(row) for row in self.rows]

    def to_pandas(self) -> Any:
        """The rows as a `pandas.DataFrame`.

        Raises:
            ImportError: If pandas is not installed.
        """
        return _optional("to_pandas", "pandas").DataFrame(self.records())

    def plot(self, *columns: str) -> list[Any]:
        """Draw a bar for each row, a panel for each column, with matplotlib.

        What does not apply or is infinite has no bar.

        Args:
            *columns: Names of columns of numbers; all of them by default.

        Returns:
            The axes, one for each column.

        Raises:
            ImportError: If matplotlib is not installed.
            ValueError: If a column is not there, or has no numbers.
        """
        known = [c for c in self.columns if any(_is_number(r[c]) for r in self.rows)]
        if bad := [c for c in columns if c not in known]:
            raise ValueError(
                f"plot: expected columns of numbers, got {bad}. There are {known}."
            )
        names = list(columns) or known
        pyplot = _optional("plot", "matplotlib.pyplot")
        size = (2.0 + 2.2 * len(names), 1.2 + 0.25 * len(self.rows))
        _, grid = pyplot.subplots(
            1,
            len(names),
            sharey=True,
            squeeze=False,
            figsize=size,
            layout="constrained",
        )
        places = list(range(len(self.rows)))
        for axes, name in zip(grid[0], names, strict=True):
            values = [r[name] if _is_finite(r[name]) else 0 for r in self.rows]
            axes.barh(places, values)
            axes.set_title(name)
        first = grid[0][0]
        first.set_yticks(places, labels=[str(r["path"]) for r in self.rows])
        first.invert_yaxis()
        return list(grid[0])

    def __str__(self) -> str:
        """Aligned text, one line for each row."""
        return _show.grid_text(self.title, *self._grid())

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return _show.grid_html(self.title, *self._grid())

    def _grid(self) -> tuple[list[str], list[list[str]], str]:
        body = [[_cell(row[c]) for c in self.columns] for row in self.rows]
        count = "1 row" if len(body) == 1 else f"{len(body)} rows"
        return list(self.columns), body, f"{count}; {self.note}" if self.note else count


def _is_number(value: Any) -> bool:
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def _is_finite(value: Any) -> bool:
    return _is_number(value) and math.isfinite(value)


def _cell(value: Any) -> str:
    """A value as text."""
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.3g}"
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(str, value))
    return str(value)


def _optional(who: str, name: str) -> Any:
    """A package that lowrank does without.

    Raises:
        ImportError: If it is not installed.
    """
    package = name.split(".")[0]
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"{who}: {package} is not installed. Install it, or use .records()."
        ) from error
