"""What the table of sequences shows: learning, and forgetting."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.study.methods import METHODS
from benchmarks.study.scores import gap, numbers, percent, signed
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis

TITLES = SUITES["tasks"]
NAMES = {
    name: METHODS[name].title.split(":")[0] for name in ("lora", "lori-d", "lori-s")
}
ORDERS = {"forward": "SMS spam first", "reversed": "SMS spam last"}


class Course(NamedTuple):
    """What a method gets right in sequences of one order, `[seeds, n]` by task.

    Attributes:
        tasks: In the order in which they are learned.
        learned: Right after a task's own stage.
        last: Right after the last stage.
        grid: Mean accuracy after each stage, by task; None before a task's own stage.
    """

    tasks: list[str]
    learned: dict[str, np.ndarray]
    last: dict[str, np.ndarray]
    grid: dict[str, list[float | None]]

    def forgotten(self) -> tuple[np.ndarray, np.ndarray]:
        """Right answers of all tasks but the last one: when learned, and at the end."""
        old = self.tasks[:-1]
        return _side_by_side(self.learned, old), _side_by_side(self.last, old)


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    found = {
        (name, order): course(list(own))
        for name in NAMES
        for order in ORDERS
        if len(own := records.where(method=name, order=order))
    }
    return [
        Heading("What is forgotten"),
        words.hypotheses(
            expected(found), "Sequences: the hypotheses written down before the run."
        ),
        _summary(found),
        *(_stages(found, order) for order in ORDERS),
        Text(_reduced(records)),
    ]


def course(records: Sequence[Record]) -> Course:
    """The sequences of one method and order, over seeds."""
    ordered = sorted(records, key=lambda record: record.seed)
    tasks = [stage["task"] for stage in ordered[0].metrics["stages"]]

    def right(stage: int, task: str) -> np.ndarray:
        kept = [record.metrics["predictions"] for record in ordered]
        return np.stack(
            [
                numbers(p[f"{stage}-{task}"]) == numbers(p[f"labels-{task}"])
                for p in kept
            ]
        )

    end = len(tasks) - 1
    grid = {
        task: [
            100 * float(right(stage, task).mean()) if stage >= i else None
            for stage in range(len(tasks))
        ]
        for i, task in enumerate(tasks)
    }
    return Course(
        tasks,
        {task: right(i, task) for i, task in enumerate(tasks)},
        {task: right(end, task) for task in tasks},
        grid,
    )


def _side_by_side(rights: dict[str, np.ndarray], tasks: Sequence[str]) -> np.ndarray:
    return np.concatenate([rights[task] for task in tasks], axis=1).astype(float)


def forgetting(one: Course) -> Difference:
    """Accuracy when learned minus accuracy at the end, over all tasks but the last."""
    return gap(*one.forgotten())


def _less(one: Course | None, two: Course | None) -> Difference | None:
    """Forgetting of one minus forgetting of two."""
    if one is None or two is None:
        return None
    (a, b), (c, d) = one.forgotten(), two.forgotten()
    return gap(a - b, c - d) if a.shape == c.shape else None


def _learned(one: Course | None, two: Course | None) -> Difference | None:
    """Accuracy when learned, of one minus of two, over all tasks."""
    if one is None or two is None:
        return None
    a, b = (_side_by_side(own.learned, own.tasks) for own in (one, two))
    return gap(a, b) if a.shape == b.shape else None


def expected(found: dict[tuple[str, str], Course]) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def claims(compare: Any, one: str, two: str, what: str) -> list[Claim]:
        return [
            Claim(
                f"{what}, {NAMES[one]} minus {NAMES[two]}, {title}",
                compare(found.get((one, order)), found.get((two, order))),
                words.below,
            )
            for order, title in ORDERS.items()
        ]

    return [
        Hypothesis(
            "H16",
            "LoRI-D forgets less than LoRA",
            claims(_less, "lori-d", "lora", "forgetting"),
        ),
        Hypothesis(
            "H17",
            "LoRI-S forgets less than LoRI-D",
            claims(_less, "lori-s", "lori-d", "forgetting"),
        ),
        Hypothesis(
            "H18",
            "what LoRI forgets less, it also learns less",
            [
                *claims(_learned, "lori-d", "lora", "learned"),
                *claims(_learned, "lori-s", "lora", "learned"),
            ],
        ),
    ]


def _summary(found: dict[tuple[str, str], Course]) -> Table:
    """Learning and forgetting of each method in both orders."""
    rows: list[list[Any]] = []
    for order, title in ORDERS.items():
        for name, method in NAMES.items():
            own = found.get((name, order))
            if own is None:
                rows.append([title, method, None, None, None])
                continue
            learned, last = (
                percent(_side_by_side(x, own.tasks)) for x in (own.learned, own.last)
            )
            rows.append([title, method, learned, last, signed(forgetting(own))])
    notes = [
        "`learned`: mean over tasks of the accuracy right after a task's own stage. "
        "`at the end`: after the last stage. `forgotten`: the difference over all "
        "tasks but the last one, paired. 95 % bootstrap intervals, over texts, seeds.",
        "One adapter; each task has its own head, frozen after its stage; LoRI keeps "
        "the A of the first stage; the masks of LoRI-S are the tasks' own.",
    ]
    columns = ("order", "method", "learned, %", "at the end, %", "forgotten, points")
    return Table(
        columns,
        rows,
        caption="Sequences: what is learned and what is forgotten.",
        align="lllll",
        digits=1,
        notes=notes,
    )


def _stages(found: dict[tuple[str, str], Course], order: str) -> Table:
    """Accuracy of every task after every stage."""
    tasks = list(TITLES)[:: 1 if order == "forward" else -1]
    rows: list[list[Any]] = []
    for name, method in NAMES.items():
        own = found.get((name, order))
        for task in tasks:
            cells = [None] * len(tasks) if own is None else own.grid[task]
            shown = [words.NONE if own and cell is None else cell for cell in cells]
            rows.append([method, TITLES[task], *shown])
    columns = ("method", "task", *(f"after {TITLES[task]}" for task in tasks))
    return Table(
        columns,
        rows,
        caption=f"Accuracy in per cent after each stage, {ORDERS[order]}.",
        align="ll" + "r" * len(tasks),
        digits=1,
    )


def _reduced(records: Records) -> str:
    """What was small."""
    own = [r for r in records if "order" in r.config]
    if not own:
        return "Not run."
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    return (
        words.budget(own[0].config, LENGTHS["tasks"])
        + f"Seeds {seeds}. A spam filter is a stand-in for safety training, no more."
    )
