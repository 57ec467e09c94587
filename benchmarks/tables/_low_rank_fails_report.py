"""What the table of failing ranks shows."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, curves, spread
from benchmarks.study.needed import first, shown
from benchmarks.study.rate_ends import rate_ends
from benchmarks.study.scores import gap, percent, signed
from benchmarks.tables import _lori_words as words
from benchmarks.tables._low_rank_fails_shares import (
    BASE,
    PROBLEMS,
    in_percent,
    of_gain,
    of_score,
    scores,
    share,
)
from benchmarks.tables._low_rank_fails_verdicts import (
    TASKS,
    compared,
    hypotheses,
    rights,
)

RANKS = (1, 2, 4, 8, 16, 64)
DS = (300, 1000, 3000, 10_000, 30_000)
WAYS = {
    ("full", 1): "all weights",
    ("lora", 1): "LoRA, rank 1",
    ("lora", 8): "LoRA, rank 8",
    ("wide", 128): "LoRA, rank 128",
    ("last", 1): "last layer",
    ("bias", 1): "biases",
    ("head", 1): "head alone",
}

TRAINED = {
    "full": "all weights",
    "did": "DID",
    "lora": "LoRA",
    "wide": "LoRA, rank 128",
    "last": "last layer",
    "bias": "biases",
    "head": "head alone",
}


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("When does a very low rank fail?"),
        hypotheses(records),
        words.hypotheses(compared(records), "F6 and F7, written down before the run."),
        _needed(records),
        _ranks(records),
        Figure(
            lambda: _figure(records),
            "Share of the gain of training all weights, against LoRA's rank.",
            "One curve for each problem.",
            name="low-rank-fails",
        ),
        Heading("What to train with the same steps"),
        _ways(records),
        rate_ends(records, TRAINED),
        Text(_reduced(records)),
    ]


def _needed(records: Records) -> Table:
    rows: list[list[Any]] = []
    for task, title in PROBLEMS.items():
        ranks, ds = (_most(records, way, task) for way in ("lora", "did"))
        full, base = (_score(records, way, task) for way in ("full", BASE[task]))
        score = of_score(records, "did", task)
        rows.append(
            [
                title,
                base,
                full,
                first(of_gain(records, "lora", task), ranks),
                shown(of_gain(records, "lora", task), ranks),
                shown(of_gain(records, "did", task), ds),
                "–" if task == "dialogue" else shown(score, ds),
            ]
        )
    return Table(
        [
            "problem", "head or start", "all weights", "rank, tested", "rank",
            "d90, of the gain", "d90, of the accuracy",
        ],
        rows,
        caption="The rank and the dimensions that are needed.",
        notes=[
            "Head or start, all weights: accuracy in per cent (of the training texts "
            "for random labels), held-out nats a character for the decoder; mean "
            "[min…max] over seeds. Rank and d90 of the gain: for 90 % of what "
            "training all weights gains over the head alone, or the start; "
            "interpolated, with 95 % bootstrap intervals over seeds. DID has the head "
            "within its d numbers."
        ],
        align="lllrlll",
    )  # fmt: skip


def _most(records: Records, way: str, task: str) -> int | None:
    own = [r.config["size"] for r in records.where(way=way, task=task)]
    return max(own) if own else None


def _score(records: Records, way: str, task: str, size: int | None = None) -> Any:
    own = records.where(way=way, task=task)
    own = own if size is None else own.where(size=size)
    if task == "dialogue":
        return spread(own.values("loss"))
    return spread([100 * x for x in own.values("accuracy")], 1)


def _ranks(records: Records) -> Table:
    rows: list[list[Any]] = []
    for way, title, usual in (("lora", "rank ", RANKS), ("did", "d = ", DS)):
        sizes = sorted({r.config["size"] for r in records.where(way=way)}) or usual
        for size in sizes:
            cells = [
                _with_share(records, way, size, task)
                or ("–" if len(records.where(way=way, task=task)) else None)
                for task in PROBLEMS
            ]
            rows.append([f"{title}{size:,}", *cells])
    return Table(
        ["trained", *PROBLEMS.values()],
        rows,
        caption="Every rank and dimension.",
        notes=[
            "Accuracy in per cent, or held-out nats a character, mean [min…max] over "
            "seeds; then the share of what training all weights gains, on the seeds "
            "that both have, with a 95 % bootstrap interval over seeds and texts (the "
            "decoder: seeds)."
        ],
        align="lllll",
    )


def _with_share(records: Records, way: str, size: int, task: str) -> str | None:
    own, part = (
        _score(records, way, task, size),
        share(records, way, size, task),
    )
    return own if own is None or part is None else f"{own}; {in_percent(part)}"


def _ways(records: Records) -> Table:
    best = rights(records, "lora", 8)
    rows: list[list[Any]] = []
    for (way, size), title in WAYS.items():
        own = rights(records, way, size)
        trained = [r.metrics["trained"] for r in records.where(way=way, size=size)
                   if r.config["task"] in TASKS]  # fmt: skip
        if own is None:
            rows.append([title, *[None] * (len(TASKS) + 4)])
            continue
        cells = [percent(own.tasks[t]) if t in own.tasks else None for t in TASKS]
        pair = words.aligned(own, best)
        same = bool(pair) and pair[0].tasks.keys() == pair[1].tasks.keys()
        minus = signed(gap(*(x.pooled() for x in pair))) if same else None
        decoder = _score(records, way, "dialogue", size)
        rows.append(
            [
                title,
                trained[0],
                percent(own.pooled()),
                "–" if (way, size) == ("lora", 8) else minus,
                *cells,
                "–" if way in ("head", "wide") else decoder,
            ]
        )
    columns = [
        "trained", "numbers", "mean, %", "minus LoRA, rank 8",
        *(f"{title}, %" for title in TASKS.values()), "decoder, nats",
    ]  # fmt: skip
    return Table(
        columns,
        rows,
        caption="All weights, LoRA, and parts of the weights, with equal steps.",
        notes=[
            "Test accuracy with 95 % bootstrap intervals over texts and seeds; "
            "differences paired, in points. Numbers: with a head of ten classes, which "
            "all of them train. Three learning rates for every way and task, four "
            "with the decoder. The decoder has no biases: the scales of its norms "
            "stand for them."
        ],
        align="lr" + "l" * (len(columns) - 2),
        digits=dict.fromkeys(columns, 1),
    )


def _figure(records: Records) -> Any:
    lines = {}
    for task, title in PROBLEMS.items():
        own = scores(records, "lora", task)
        parts = [share(records, "lora", n, task) for n in own.sizes] if own else []
        known = [part.value for part in parts if part is not None]
        if own is not None and len(known) == len(own.sizes):
            short = title.partition(",")[0]  # all must fit into one legend
            lines[short] = (list(own.sizes), known)
    return curves(lines, xlabel="rank", ylabel="share of the gain", logx=True)


def _reduced(records: Records) -> str:
    own = records.where(way="lora")
    if not len(own):
        return "Not run."
    seeds = {r.config["task"]: r.config for r in own}
    titles = TASKS | PROBLEMS
    c: Sequence[str] = [
        f"{titles.get(task, task)}: {x['steps']} steps of {x['batch']}"
        for task, x in seeds.items()
    ]
    hours = sum(r.seconds for r in records) / 3600
    made_up = any(x.get("synthetic") for x in seeds.values())
    net = "tiny random nets and made-up texts" if made_up else (
        "the last two of MiniLM's six layers, and a decoder of 0.1 million weights"
    )  # fmt: skip
    cells = Counter(r.row.rpartition("-s")[0] for r in records)
    few, many = min(cells.values()), max(cells.values())
    return (
        f"*Reduced*: {net}. {'; '.join(c)}. A row has {few} to {many} seeds. The rows "
        f"took {hours:.2g} h."
    )
