"""What the quickstart shows of its chip: a verdict in words, and one table."""

from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.tables._quickstart_chip import KINDS, LOST
from benchmarks.tables._quickstart_figures import Cell
from benchmarks.tables._quickstart_tasks import TITLES

Cells = dict[str, Cell]


def blocks(records: Records) -> list[Block]:
    """The blocks of the chip; complete even for no records."""
    cells = {
        task: Cell(found)
        for task in TITLES
        if len(found := records.where(method="chip", task=task))
    }
    return [
        Heading("The merged adapters on a faulty chip"),
        Text(verdict(cells)),
        _table(cells),
    ]


def verdict(cells: Cells) -> str:
    """Says what was lost, what a new head and healing gave back; computed."""
    if len(cells) < len(TITLES):
        return "The chip was not run."
    mean = {kind: _mean(cells, kind) for kind in KINDS}
    lost = mean["merged"] - mean["deployed"]
    low, high = (100 * share for share in LOST)
    words = (
        f"One chip, one seed. Programmed into it, the merged adapters lose {lost:.1f} "
        f"points on average over the tasks ({mean['merged']:.1f} to "
        f"{mean['deployed']:.1f} %)"
    )
    if not low <= lost <= high:
        words += f", outside the {low:.0f} to {high:.0f} that were aimed at"
    parts = [f"{words}. {_gained('A new head', lost, mean['head'] - mean['deployed'])}"]
    if lost > 0:
        back = mean["healed"] - mean["deployed"]
        parts.append(
            _gained(
                "A LoRA of each task beside the chip, trained with the head,",
                lost,
                back,
            )
        )
    gap = _gap(cells, "healed", "head")
    parts.append(f"{_judged(gap)} ({_signed(gap)} points, paired over all texts).")
    further = mean["control"] - mean["merged"]
    parts.append(
        f"The same training without faults changes the merge by {further:+.1f} points."
    )
    if _gap(cells, "healed", "deployed").low <= 0:
        parts.append("Healing fails here: it cannot be told from doing nothing.")
    return " ".join(parts)


def _gained(who: str, lost: float, back: float) -> str:
    """What an action gave back of what was lost."""
    if back <= 0:
        return f"{who} gives nothing back ({back:+.1f} points)."
    share = f", {100 * back / lost:.0f} % of what was lost" if lost > 0 else ""
    return f"{who} gives back {back:.1f} points{share}."


def _judged(gap: stats.Difference) -> str:
    """What healing adds to a new head, by its interval."""
    if gap.low > 0:
        return "Healing does more than a new head"
    if gap.high < 0:
        return "Healing is worse than a new head alone: it fails here"
    return "Healing fails to do more than a new head that could be told apart"


def _right(cells: Cells, kind: str) -> list[np.ndarray]:
    """Which texts are right, by task."""
    return [cell.right(kind)[0] for cell in cells.values()]


def _mean(cells: Cells, kind: str) -> float:
    """Mean accuracy over the tasks, in per cent."""
    return 100 * float(np.mean([right.mean() for right in _right(cells, kind)]))


def _gap(cells: Cells, one: str, two: str) -> stats.Difference:
    """The paired difference over the texts of all tasks, in points."""
    pair = [np.concatenate(_right(cells, kind)) for kind in (one, two)]
    gap = stats.paired_bootstrap(*pair)
    return stats.Difference(
        100 * gap.difference, 100 * gap.low, 100 * gap.high, gap.share_not_positive
    )


def _signed(gap: stats.Difference) -> str:
    """Writes a difference with its interval, signs included."""
    return f"{gap.difference:+.1f} [{gap.low:+.1f}, {gap.high:+.1f}]"


def _table(cells: Cells) -> Table:
    """Accuracy by task, side by side, and what each row trains."""
    first = next((cell.records[0] for cell in cells.values()), None)
    whole = len(cells) == len(TITLES)
    rows: list[list[Any]] = []
    for kind, title in KINDS.items():
        values = [
            cells[task].percent(kind) if task in cells else None for task in TITLES
        ]
        mean = _mean(cells, kind) if whole else None
        rows.append([title, *values, mean, _numbers(first, kind)])
    columns = ("on the chip", *TITLES.values(), "mean", "digital numbers")
    texts = {len(own) for own in _right(cells, "deployed")}
    sources = [record for cell in cells.values() for record in cell.records]
    return Table(
        columns,
        rows,
        caption=_caption(first, max(texts, default=0)),
        align="l" * (len(columns) - 2) + "rr",
        digits=dict.fromkeys(columns, 1),
        notes=[
            "All rows read the same texts. `digital numbers`: of each task's LoRA, "
            "kept beside the chip; the heads are digital in every row. The last row "
            "is the same training beside the merge without faults: what it gains is "
            "further training, and no healing."
        ],
        sources=[sources or None] * len(rows),
    )


def _numbers(first: Any, kind: str) -> Any:
    """Digital numbers that a row trains."""
    if first is None:
        return None
    return round(first.metrics["numbers"].get(kind, 0))


def _caption(first: Any, texts: int) -> str:
    """Names the device, what was chosen, and the budget."""
    text = "Test accuracy in per cent with 95 % bootstrap intervals over texts"
    if first is None:
        return f"{text}."
    own, config = first.metrics["device"], first.config
    tried = ", ".join(
        f"{100 * float(rate):g} %: {100 * value:.1f}"
        for rate, value in first.metrics["valid_by_rate"].items()
    )
    return (
        f"{text}; {texts} texts of each task. One chip: all 36 projections of the "
        f"encoder on pairs of cells of {own['g_min']:g} to {own['g_max']:g} uS, "
        f"p_lrs {100 * own['p_lrs']:g} % and p_hrs {100 * own['p_hrs']:g} % of the "
        f"cells stuck at the ends of the range; chosen on {config['chip_valid']} "
        f"validation texts of each task (share of stuck cells and accuracy: {tried}). "
        f"New heads: probes on {config['chip_train']} training texts of each task; "
        f"healing goes on with the trained heads, for {config['chip_steps']} steps of "
        f"{config['batch']} of the same texts of each task."
    )
