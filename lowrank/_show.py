"""One line per leaf: text and HTML tables for states, operators and adapted trees."""

import html
import math
from typing import Any, NamedTuple

import jax
import numpy as np

_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


class Row(NamedTuple):
    """One leaf of a table: where, what, how much, and how much of it is a base."""

    path: str
    what: str
    role: str
    count: int
    nbytes: int
    base: int = 0


def bytes_text(count: int) -> str:
    """A byte count in binary units."""
    power = min(int(math.log2(count) // 10), len(_UNITS) - 1) if count >= 1024 else 0
    value = count / 1024**power
    return (
        f"{value:.0f} {_UNITS[power]}" if power == 0 else f"{value:.1f} {_UNITS[power]}"
    )


def array_text(leaf: Any) -> str:
    """Dtype and shape of an array, as `float32[4,8]`."""
    if not hasattr(leaf, "shape") or not hasattr(leaf, "dtype"):
        return type(leaf).__name__
    return f"{leaf.dtype}[{','.join(str(n) for n in leaf.shape)}]"


def _is_operator(leaf: Any) -> bool:
    return hasattr(leaf, "fields") and hasattr(leaf, "own_dense")


def operator_line(op: Any) -> str:
    """The class of an operator with its children in one line."""
    parts = []
    for name in op.fields:
        value = getattr(op, name)
        parts.append(f"{name}={_child_text(value)}")
    return f"{type(op).__name__}({', '.join(parts)})"


def _child_text(value: Any) -> str:
    if _is_operator(value):
        return operator_line(value)
    if isinstance(value, dict):  # of scalars: their names say it all
        return "{" + ", ".join(sorted(value)) + "}"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_child_text, value)) + ")"
    return array_text(value) if hasattr(value, "dtype") else repr(value)


def _nbytes(leaf: Any) -> int:
    """Bytes of an array; random keys count their data."""
    if not hasattr(leaf, "dtype"):
        return 0
    item = 8 if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key) else None
    return math.prod(leaf.shape) * (item or np.dtype(leaf.dtype).itemsize)


def _row(path: str, leaf: Any, role: str) -> Row:
    arrays = [x for x in jax.tree.leaves(leaf) if hasattr(x, "dtype")]
    what = operator_line(leaf) if _is_operator(leaf) else array_text(leaf)
    count = sum(math.prod(x.shape) for x in arrays)
    return Row(path, what, role, count, sum(_nbytes(x) for x in arrays))


def _key_text(keypath: Any) -> str:
    parts = []
    for key in keypath:
        for name in ("key", "name", "idx"):
            if hasattr(key, name):
                parts.append(str(getattr(key, name)))
                break
    return "/".join(parts)


def state_rows(state: Any) -> list[Row]:
    """Rows of a State: trainable leaves first."""
    rows = []
    for role in ("trainable", "fixed"):
        leaves = jax.tree_util.tree_flatten_with_path(getattr(state, role))[0]
        rows += [_row(_key_text(path), leaf, role) for path, leaf in leaves]
    return rows


def leaf_row(path: str, leaf: Any) -> Row:
    """The row of one leaf of a parameter tree."""
    if not _is_operator(leaf):
        return _row(path, leaf, "array")
    bases = [getattr(leaf, name) for name in leaf.base_fields]
    base = sum(
        leaf_row(path, inner).base or _row(path, inner, "").count for inner in bases
    )
    return _row(path, leaf, "operator")._replace(base=base)


def tree_rows(tree: Any) -> list[Row]:
    """Rows of a parameter tree: an operator is one leaf."""
    flat = jax.tree_util.tree_flatten_with_path(tree, is_leaf=_is_operator)[0]
    return [leaf_row(_key_text(path), leaf) for path, leaf in flat]


def _totals(rows: list[Row]) -> str:
    roles = dict.fromkeys(row.role for row in rows)
    parts = []
    for role in roles:
        mine = [row for row in rows if row.role == role]
        size = bytes_text(sum(row.nbytes for row in mine))
        base = sum(row.base for row in mine)
        added = sum(row.count for row in mine) - base
        number = f"{base:,} + {added:,} added" if base else f"{added:,}"
        parts.append(f"{role} {number} ({size})")
    leaves = "1 leaf" if len(rows) == 1 else f"{len(rows)} leaves"
    return f"{leaves}: {', '.join(parts) or 'empty'}"


def grid_text(title: str, head: list[str], body: list[list[str]], foot: str) -> str:
    """A plain table with aligned columns."""
    lines = [head, *body]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    rows = [
        "  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True))
        for line in lines
    ]
    return "\n".join([title, *("  " + row.rstrip() for row in rows), "  " + foot])


def grid_html(title: str, head: list[str], body: list[list[str]], foot: str) -> str:
    """The same table for notebooks."""

    def cells(tag: str, line: list[str]) -> str:
        style = ' style="text-align:left"'
        inner = "".join(f"<{tag}{style}>{html.escape(c)}</{tag}>" for c in line)
        return f"<tr>{inner}</tr>"

    rows = "".join(cells("td", line) for line in body)
    caption = f"<caption style='text-align:left'>{html.escape(title)}</caption>"
    note = f"<p>{html.escape(foot)}</p>"
    return f"<table>{caption}<thead>{cells('th', head)}</thead>{rows}</table>{note}"


_HEAD = ["path", "leaf", "role", "count", "size"]


def _body(rows: list[Row]) -> list[list[str]]:
    return [
        [r.path, r.what, r.role, f"{r.count:,}", bytes_text(r.nbytes)] for r in rows
    ]


def table_text(title: str, rows: list[Row]) -> str:
    """Rows as text."""
    return grid_text(title, _HEAD, _body(rows), _totals(rows))


def table_html(title: str, rows: list[Row]) -> str:
    """Rows as an HTML table."""
    return grid_html(title, _HEAD, _body(rows), _totals(rows))
