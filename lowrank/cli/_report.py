"""What a command prints: a table when it is done, or one JSON object for each line."""

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from lowrank._show import grid_text
from lowrank.cli import UsageError


class Report:
    """Rows of one command, with a line of totals."""

    def __init__(self, title: str, as_json: bool):
        self.title, self.as_json = title, as_json
        self.rows: list[dict[str, Any]] = []

    def add(self, **row: Any) -> None:
        """One row; as JSON it is printed at once."""
        if self.as_json:
            _write(json.dumps(row, default=_plain))
        else:
            self.rows.append(row)

    def close(self, foot: str, **totals: Any) -> None:
        """The end: the table, or the totals as one more object."""
        if self.as_json:
            _write(json.dumps({"total": totals}, default=_plain))
            return
        head = list(dict.fromkeys(name for row in self.rows for name in row))
        body = [[_text(row.get(name)) for name in head] for row in self.rows]
        _write(grid_text(self.title, head, body, foot) if head else foot)


def _write(text: str) -> None:
    sys.stdout.write(text + "\n")


def _plain(value: Any) -> Any:
    """NumPy's numbers and paths, for JSON."""
    return value.item() if isinstance(value, np.generic) else str(value)


def _text(value: Any) -> str:
    """A cell: four digits of a float, a shape as `[2, 3]`, nothing for None."""
    if value is None:
        return "-"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    return str(list(value) if isinstance(value, tuple) else value)


def check_out(out: Path, sources: tuple[Path, ...], overwrite: bool) -> None:
    """Refuse a place that would destroy something.

    Raises:
        UsageError: If it is a source, or is there already without `overwrite`.
    """
    if any(out.resolve() == source.resolve() for source in sources):
        raise UsageError(f"'{out}' is read from: write to another place")
    full = any(out.iterdir()) if out.is_dir() else out.exists()
    if full and not overwrite:
        raise UsageError(f"'{out}' is there already: pass --overwrite to replace it")
