"""What the table of parallel and serial adapters shows."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.study.placed import MERGES, PLACED
from benchmarks.study.scores import gap, numbers, percent
from benchmarks.study.tasks import LENGTHS
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import NONE, Claim, Hypothesis

BASE = "serial"
BESIDE = ("lora-two", "parallel")
CLOSE = 5.0  # per cent: what merged layers may differ from bare ones
Part = Callable[[Record], np.ndarray]
Scores = dict[tuple[Any, ...], np.ndarray]


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("Parallel or serial"),
        words.hypotheses(
            expected(records),
            "Parallel and serial: the hypotheses written down before the run.",
        ),
        Heading("What an old task loses"),
        _forgotten(records),
        _disturbed(records),
        Heading("What two merged adapters keep"),
        _merged(records),
        Heading("A domain that was left out"),
        _unseen(records),
        Heading("Time of the adapted layers"),
        _times(records),
        Text(_reduced(records)),
    ]


# --- scores of texts -----------------------------------------------------------------


def scores(records: Records, part: Part, *names: str) -> Scores:
    """Scores of test texts by the named entries of the config, and the seed."""
    return {(*(r.config[n] for n in names), r.seed): part(r) for r in records}


def side_by_side(*given: Scores) -> list[np.ndarray]:
    """`[seeds, texts]` of what all have: cases side by side; empty without any."""
    common = sorted(set.intersection(*(set(own) for own in given)))
    cases = sorted({key[:-1] for key in common})
    seeds = sorted({key[-1] for key in common})
    whole = [s for s in seeds if all((*case, s) in common for case in cases)]
    if not whole:
        return []
    return [
        np.stack([np.concatenate([own[*case, s] for case in cases]) for s in whole])
        for own in given
    ]


def right(marks: Any) -> np.ndarray:
    """Which texts are right."""
    own = marks["predictions"]
    return (numbers(own["test"]) == numbers(own["labels"])).astype(float)


def lost(record: Record) -> np.ndarray:
    """How much the loss of the old task's texts has grown."""
    after, before = (record.metrics[part]["losses"] for part in ("after", "before"))
    return np.array(after) - np.array(before)


def moved(record: Record) -> np.ndarray:
    """How much an adapter raises the loss of a task that it never saw."""
    own = record.metrics["other"]
    return np.array(own["disturbed"]["losses"]) - np.array(own["bare"]["losses"])


def of_after(records: Records, name: str, part: Part) -> Scores:
    """Scores of the runs that learned two tasks."""
    return scores(records.where(kind="after", method=name), part, "task")


def of_alone(records: Records, name: str, part: Part) -> Scores:
    """Scores of the runs that learned one."""
    return scores(records.where(kind="alone", method=name), part, "task")


def of_merge(records: Records, name: str, how: str) -> Scores:
    """Right texts of both tasks under merged adapters."""
    own = records.where(kind="merge", method=name, merge=how)
    return {
        (task, r.seed): right(marks)
        for r in own
        for task, marks in r.metrics["tasks"].items()
    }


def kept(records: Records, name: str, how: str) -> Scores:
    """Right texts merged minus alone."""
    alone = of_alone(records, name, lambda r: right(r.metrics))
    merged = of_merge(records, name, how)
    return {key: merged[key] - alone[key] for key in merged if key in alone}


def of_domains(records: Records, name: str, where: str) -> Scores:
    """Right texts of the domain that was left out, or of the others."""

    def part(record: Record) -> np.ndarray:
        left, marks = record.config["left"], record.metrics["domains"]
        wanted = [t for t in marks if (t == left) is (where == "unseen")]
        return np.concatenate([right(marks[t]) for t in wanted])

    return scores(records.where(kind="unseen", method=name), part, "left")


def apart(one: Scores, two: Scores) -> Difference | None:
    """The paired difference, times a hundred; None where one was not run."""
    pair = side_by_side(one, two)
    return gap(*pair) if pair else None


# --- the hypotheses ------------------------------------------------------------------


def expected(records: Records) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def beside(read: Callable[[str], Scores], test: words.Test) -> list[Claim]:
        return [
            Claim(
                f"{PLACED[name].title} minus serial",
                apart(read(name), read(BASE)),
                test,
            )
            for name in BESIDE
        ]

    return [
        Hypothesis(
            "P1",
            "parallel ways lose less of an old task (hundredths of a nat)",
            beside(lambda n: of_after(records, n, lost), words.below),
        ),
        Hypothesis(
            "P2",
            "they disturb a task that they never saw less (hundredths of a nat)",
            beside(lambda n: of_alone(records, n, moved), words.below),
        ),
        Hypothesis(
            "P3",
            "merged, acting together, they lose less accuracy",
            beside(lambda n: kept(records, n, "together"), words.above),
        ),
        Hypothesis(
            "P4",
            "in the unseen domain they are not worse",
            beside(lambda n: of_domains(records, n, "unseen"), words.no_cost),
        ),
        Hypothesis(
            "P5",
            "unmerged each takes longer than the bare layers, LoRA merged does not "
            "(per cent)",
            _waits(records),
        ),
    ]


def _close(found: Difference) -> int:
    if found.low > CLOSE or found.high < -CLOSE:
        return -1
    return int(found.low >= -CLOSE and found.high <= CLOSE)


def _waits(records: Records) -> list[Claim]:
    """Times over those of the bare layers, for every batch; an absent one if none."""
    found = []
    for record in records.where(kind="time") or [None]:
        for name in (*BESIDE, BASE, "lora-two-merged"):
            own = None if record is None else record.metrics.get(name)
            ends = None
            if own is not None:
                value, low, high = _ratio(own)
                ends = Difference(
                    100 * (value - 1), 100 * (low - 1), 100 * (high - 1), 0.0
                )
            batch = "" if record is None else f", {_texts(record)}"
            test = _close if name.endswith("merged") else words.above
            found.append(Claim(f"{_title(name)}{batch}", ends, test))
    return found


def _ratio(own: Mapping[str, float]) -> tuple[float, float, float]:
    return own["ratio"], own["ratio_low"], own["ratio_high"]


def _texts(record: Record) -> str:
    number = record.config["batch"]
    return "1 text" if number == 1 else f"{number} texts"


# --- the tables ----------------------------------------------------------------------


def _title(name: str) -> str:
    base = name.removesuffix("-merged")
    title = PLACED[base].title if base in PLACED else f"{base} layers"
    return f"{title}, merged" if base != name else title


def _cell(own: Scores) -> Any:
    """A mean with its interval: per cent, or hundredths of a nat."""
    found = side_by_side(own)
    return percent(found[0]) if found else None


def _minus(own: Scores, base: Scores, name: str) -> str | None:
    return NONE if name == BASE else words.written(apart(own, base))


def _forgotten(records: Records) -> Table:
    rows = []
    for name, family in PLACED.items():
        own = of_after(records, name, lost)
        known = records.where(kind="alone", method=name).values("trained")
        rows.append(
            [
                family.title,
                round(float(np.mean(known))) if known else None,
                _cell(own),
                _minus(own, of_after(records, BASE, lost), name),
                *(
                    _cell(of_after(records, name, lambda r, p=p: right(r.metrics[p])))
                    for p in ("before", "after", "new")
                ),
            ]
        )
    columns = [
        "adapter", "numbers", "old loss gained, nats / 100", "minus serial",
        "old task before, %", "old task after, %", "new task, %",
    ]  # fmt: skip
    return _shown(
        columns,
        rows,
        "An adapter that learned one task, then another; the old head stays.",
        "Both orders of the two tasks. A way that learns the new task less may lose "
        "less of the old: read the last column beside the third.",
    )


def _disturbed(records: Records) -> Table:
    rows = []
    for name, family in PLACED.items():
        own = of_alone(records, name, moved)
        rows.append(
            [
                family.title,
                _cell(own),
                _minus(own, of_alone(records, BASE, moved), name),
                *(
                    _cell(
                        of_alone(
                            records,
                            name,
                            lambda r, p=p: right(r.metrics["other"][p]),
                        )
                    )
                    for p in ("bare", "disturbed")
                ),
                _cell(of_alone(records, name, lambda r: right(r.metrics))),
            ]
        )
    columns = [
        "adapter", "other loss gained, nats / 100", "minus serial",
        "other task, bare, %", "other task, disturbed, %", "own task, %",
    ]  # fmt: skip
    return _shown(
        columns,
        rows,
        "A task that the adapter never saw, with the head of that task's probe.",
        "Bare: the same head on the frozen encoder.",
    )


def _merged(records: Records) -> Table:
    rows = []
    for name, family in PLACED.items():
        cells: list[Any] = [
            family.title,
            _cell(of_alone(records, name, lambda r: right(r.metrics))),
        ]
        for how in MERGES:
            own = records.where(kind="merge", method=name, merge=how)
            cells += [
                _cell(of_merge(records, name, how)),
                own[0].metrics["scale"] if len(own) else None,
            ]
        own, base = (kept(records, n, "together") for n in (name, BASE))
        rows.append([*cells, _cell(own), _minus(own, base, name)])
    columns = [
        "adapter", "each alone, %", "together, %", "scale", "average, %", "its scale",
        "together minus alone", "minus serial",
    ]  # fmt: skip
    return _shown(
        columns,
        rows,
        "Two tasks under both adapters, each with its own head.",
        "Together: both act at once, each scaled: products add up, parallel networks "
        "add up, serial ones stand behind each other, prefixes make one longer prefix. "
        "Average: one adapter with the mean of all numbers, at twice the scale shown. "
        "The adapters of both tasks start from one draw. Scales by validation loss on "
        "the first seed, as many for every way.",
    )


def _unseen(records: Records) -> Table:
    rows = []
    for name, family in PLACED.items():
        cells: list[Any] = [family.title]
        for where in ("seen", "unseen"):
            own, base = (of_domains(records, n, where) for n in (name, BASE))
            cells += [_cell(own), _minus(own, base, name)]
        rows.append(cells)
    columns = [
        "adapter", "seen, %", "minus serial, seen", "unseen, %", "minus serial, unseen",
    ]  # fmt: skip
    return _shown(
        columns,
        rows,
        "Sentiment: trained on three domains, scored on them and on the one left out.",
        "Domains are left out in turn; unseen is that one.",
    )


def _times(records: Records) -> Table:
    found = sorted(records.where(kind="time"), key=lambda r: r.config["batch"])
    names = ["bare"]
    for name, family in PLACED.items():
        names += [name, f"{name}-merged"] if family.dense else [name]
    rows = []
    for name in names:
        cells: list[Any] = [_title(name)]
        for record in found or [None]:
            own = None if record is None else record.metrics.get(name)
            if own is None:
                cells += [None, None]
                continue
            cells += [own["median_ms"], NONE if name == "bare" else _ratio(own)]
        rows.append(cells)
    heads = [_texts(record) for record in found] or ["a batch"]
    columns = ["layers", *(c for h in heads for c in (f"{h}, ms", f"{h}, over bare"))]
    return Table(
        columns,
        rows,
        caption="The adapted layers forwards, side by side in every round.",
        notes=[
            "Medians of rounds in fresh processes; ratios with 95 % bootstrap "
            "intervals over both. Each has weights of its own. The layers "
            "below are not adapted and not timed. Only what has plain weights merges."
        ],
        align="l" + "rl" * len(heads),
        digits=2,
    )


def _shown(
    columns: Sequence[str], rows: Sequence[Sequence[Any]], caption: str, note: str
) -> Table:
    notes = [
        f"{note} Means with 95 % bootstrap intervals over texts and seeds; differences "
        "paired. Three learning rates for every way and task, chosen on validation."
    ]
    align = "l" + "l" * (len(columns) - 1)
    digits = dict.fromkeys(columns, 1)
    return Table(
        columns, rows, caption=caption, notes=notes, align=align, digits=digits
    )


def _reduced(records: Records) -> str:
    own = list(records.where(kind="alone"))
    if not own:
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    return words.budget(own[0].config, LENGTHS["tasks"]) + f"Seeds {seeds}."
