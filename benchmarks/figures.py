"""Figures in one style: thin axes, colours that colour-blind readers can tell apart.

Figures become SVG whose text stays text. Ink, rules and series colours turn into CSS
variables with fallbacks, so one figure serves light and dark pages.
"""

import io
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import LogFormatter

# Okabe and Ito's palette, without its black and its yellow (too pale on white).
PALETTE = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
INK, RULE = "#1b1b1e", "#d4d4d8"
MARKERS = "osD^vP"
WIDTH, HEIGHT = 6.4, 3.4
STYLE = {
    "axes.axisbelow": True,
    "axes.edgecolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.labelcolor": INK,
    "axes.labelsize": 10,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "lowrank",
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.labelsize": 9,
    "ytick.labelsize": 9,
    "ytick.major.size": 0,
}
_BLUES = LinearSegmentedColormap.from_list(
    "lowrank", ["#f3f6fa", "#b4d0e7", "#5b9bcb", "#0b6fab", "#003a5c"]
)


def bars_with_intervals(
    groups: Sequence[str],
    series: Mapping[str, Sequence[Any]],
    *,
    ylabel: str = "",
    title: str = "",
    baseline: float | None = None,
) -> Canvas:
    """Draws grouped bars with intervals.

    Args:
        groups: Labels along the axis.
        series: For each method one value per group: a number, `(value, low, high)`, or
            None where the row was not run (marked so).
        ylabel: Quantity and unit.
        title: Title, if the caption is not enough.
        baseline: A value to mark by a dashed line, such as 1 for ratios.

    Returns:
        A matplotlib figure.
    """
    with rc_context(STYLE):
        figure, axes = _axes(ylabel=ylabel, title=title)
        width = 0.8 / max(len(series), 1)
        for i, (name, values) in enumerate(series.items()):
            places = np.arange(len(groups)) + (i - (len(series) - 1) / 2) * width
            _bars(axes, places, values, width, name, PALETTE[i % len(PALETTE)])
        if baseline is not None:
            axes.axhline(baseline, color=INK, linewidth=0.8, linestyle=(0, (4, 3)))
        axes.set_xticks(np.arange(len(groups)), groups)
        axes.tick_params(axis="x", length=0)
        _legend(axes, len(series))
        return figure


def _bars(
    axes: Axes,
    places: np.ndarray,
    values: Sequence[Any],
    width: float,
    name: str,
    colour: str,
) -> None:
    """Draws the bars of one series; an absent value is written, not drawn as 0."""
    ends = np.array([_ends(value) for value in values], dtype=float)
    middle, low, high = ends.reshape(-1, 3).T
    axes.bar(places, np.nan_to_num(middle), width * 0.9, color=colour, label=name)
    known = np.isfinite(middle) & (high > low)
    if known.any():
        reach = np.abs(np.stack([middle - low, high - middle]))[:, known]
        axes.errorbar(
            places[known], middle[known], reach, fmt="none", ecolor=INK, capsize=2.5,
            elinewidth=1.0,
        )  # fmt: skip
    for place in places[~np.isfinite(middle)]:
        axes.annotate(
            "not run", (place, 0), (0, 3), textcoords="offset points", rotation=90,
            ha="center", va="bottom", fontsize=8,
        )  # fmt: skip


def _ends(value: Any) -> tuple[float, float, float]:
    """Returns value, low, high; NaN for what was not run."""
    if value is None:
        return (np.nan, np.nan, np.nan)
    if isinstance(value, Sequence):
        return (float(value[0]), float(value[1]), float(value[2]))
    return (float(value), float(value), float(value))


def curves(
    series: Mapping[str, Sequence[Any]],
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    logx: bool = False,
    logy: bool = False,
) -> Canvas:
    """Draws curves, with bands where given; markers differ as well as colours.

    Args:
        series: For each curve `(x, y)` or `(x, y, low, high)`.
        xlabel: Quantity and unit along x.
        ylabel: Quantity and unit along y.
        title: Title, if the caption is not enough.
        logx: Logarithmic x.
        logy: Logarithmic y.

    Returns:
        A matplotlib figure.
    """
    with rc_context(STYLE):
        figure, axes = _axes(xlabel=xlabel, ylabel=ylabel, title=title)
        for i, (name, parts) in enumerate(series.items()):
            colour = PALETTE[i % len(PALETTE)]
            x, y = np.asarray(parts[0]), np.asarray(parts[1], dtype=float)
            marker = MARKERS[i % len(MARKERS)] if len(x) <= 30 else ""
            axes.plot(x, y, marker=marker, color=colour, label=name)
            if len(parts) == 4:
                axes.fill_between(
                    x, parts[2], parts[3], color=colour, alpha=0.18, linewidth=0
                )
        for wanted, axis, scale in (
            (logx, axes.xaxis, axes.set_xscale),
            (logy, axes.yaxis, axes.set_yscale),
        ):
            if wanted:
                scale("log")
                axis.set_major_formatter(_PlainLog())
                axis.set_minor_formatter(_PlainLog(minor_thresholds=(1.5, 0.5)))
        _legend(axes, len(series))
        return figure


def heatmap(
    values: Sequence[Sequence[float]] | np.ndarray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    xlabel: str = "",
    ylabel: str = "",
    title: str = "",
    digits: int = 2,
    limits: tuple[float, float] | None = None,
) -> Canvas:
    """Draws a matrix as coloured cells with their values written in.

    Args:
        values: Matrix `[rows, columns]`; NaN leaves a cell empty.
        rows: Labels of the rows.
        columns: Labels of the columns.
        xlabel: What the columns are.
        ylabel: What the rows are.
        title: Title, if the caption is not enough.
        digits: Decimals of the values; they are left out past 12 columns.
        limits: Values of the palest and the darkest colour; None takes the range.

    Returns:
        A matplotlib figure.
    """
    matrix = np.ma.masked_invalid(np.asarray(values, dtype=float))
    height = min(max(1.3 + 0.38 * len(rows), 2.2), 8.0)
    with rc_context({**STYLE, "axes.grid": False}):
        figure, axes = _axes(xlabel=xlabel, ylabel=ylabel, title=title, height=height)
        known = matrix.compressed() if matrix.count() else np.array([0.0, 1.0])
        low, high = limits or (known.min(), known.max())
        mesh = axes.pcolormesh(
            matrix, cmap=_BLUES, vmin=low, vmax=high, edgecolors="face", linewidth=0.3
        )
        axes.set_xticks(np.arange(len(columns)) + 0.5, columns)
        axes.set_yticks(np.arange(len(rows)) + 0.5, rows)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
        axes.invert_yaxis()
        if len(columns) > 12:
            bar = figure.colorbar(mesh, ax=axes)
            bar.outline.set_visible(False)
            if bar.solids is not None:
                bar.solids.set_rasterized(False)
            return figure
        for (i, j), value in np.ndenumerate(matrix):
            if not np.ma.is_masked(value):
                dark = float(value) - low > 0.55 * (high - low)
                axes.text(
                    j + 0.5, i + 0.5, f"{value:.{digits}f}", ha="center", va="center",
                    fontsize=9, color="#ffffff" if dark else "#101014",
                )  # fmt: skip
        return figure


class _PlainLog(LogFormatter):
    """Writes the ticks of a logarithmic axis as 0.3 and not as a power."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        """Returns the text of a tick; empty where it is left out."""
        return f"{x:g}" if super().__call__(x, pos) else ""


def _axes(
    *, xlabel: str = "", ylabel: str = "", title: str = "", height: float = HEIGHT
) -> tuple[Canvas, Axes]:
    """Makes a figure with one pair of axes, outside any global state."""
    figure = Canvas(figsize=(WIDTH, height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    if title:
        figure.suptitle(title, x=0.02, ha="left", fontsize=11)
    return figure, axes


def _legend(axes: Axes, count: int) -> None:
    """Puts a legend above the axes, where it hides nothing."""
    if count > 1:
        axes.legend(
            loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=min(count, 4),
            borderaxespad=0.2, handlelength=1.4, columnspacing=1.4,
        )  # fmt: skip


def to_file(figure: Any, path: pathlib.Path) -> None:
    """Writes a figure as an SVG file of its own, on white; one figure, one file.

    Args:
        figure: A matplotlib figure, or a function that returns one.
        path: Where it goes; folders are made.
    """
    drawn = figure() if callable(figure) else figure
    path.parent.mkdir(parents=True, exist_ok=True)
    # Metadata names addresses, and the date.
    kept = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with rc_context(STYLE):
        drawn.savefig(path, format="svg", metadata=kept, facecolor="white")


def to_svg(figure: Any, prefix: str) -> str:
    """Turns a figure into SVG that can stand in an HTML page.

    Args:
        figure: A matplotlib figure, SVG text, or a function that returns either.
        prefix: Put before every id, so that several figures fit one page.

    Returns:
        An `<svg>` element: no declaration, no metadata, no address of any kind, the
        same for the same figure; its size follows the page.
    """
    drawn = figure() if callable(figure) else figure
    if not isinstance(drawn, str):
        buffer = io.StringIO()
        with rc_context(STYLE):
            drawn.savefig(buffer, format="svg", metadata={"Date": None})
        drawn = buffer.getvalue()
    svg = drawn[drawn.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\s+xmlns(:\w+)?="[^"]*"', "", svg)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{prefix}\1"', svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{prefix}\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{prefix}\1)", svg)
    svg = _fluid(svg)
    svg = re.sub(r"(?i)#(?:000000|000|1b1b1e)\b", "currentColor", svg)
    svg = re.sub(f"(?i){RULE}", f"var(--rule, {RULE})", svg)
    for i, colour in enumerate(PALETTE):
        svg = re.sub(f"(?i){colour}", f"var(--c{i}, {colour})", svg)
    return svg


def _fluid(svg: str) -> str:
    """Replaces the fixed size of the root element by a greatest width."""
    end = svg.index(">")
    head = svg[:end]
    width = re.search(r'\swidth="([\d.]+)(?:pt|px)?"', head)
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    size = f"{float(width.group(1)) * 4 / 3:.0f}px" if width else "100%"
    return f'{head} style="width: 100%; max-width: {size}; height: auto"{svg[end:]}'
