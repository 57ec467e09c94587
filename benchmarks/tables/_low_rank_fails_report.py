"""What the table of failing ranks shows."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, curves, spread
from benchmarks.study.needed import (
    SHARE,
    Curve,
    curve,
    first,
    needed,
    over,
    right,
    shown,
    verdict,
)
from benchmarks.study.scores import gap, percent, signed
from benchmarks.study.tasks import SUITES
from benchmarks.tables import _lori_words as words
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights
from lowrank.subspace import IntrinsicDimension

PROBLEMS = {
    "trec": "TREC, 6 classes",
    "files": "definitions, 45 classes",
    "random": "random labels, by heart",
    "dialogue": "decoder, novels to dialogue",
}
TASKS = SUITES["tasks"]
RANKS = (1, 2, 4, 8, 16, 64)
DS = (100, 300, 1000, 3000, 10_000, 30_000)
WAYS = {
    ("full", 1): "all weights",
    ("lora", 1): "LoRA, rank 1",
    ("lora", 8): "LoRA, rank 8",
    ("last", 1): "last layer",
    ("bias", 1): "biases",
    ("head", 1): "head alone",
}
BASE = {"trec": "head", "files": "head", "random": "start", "dialogue": "start"}
Found = IntrinsicDimension | None


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("When does a very low rank fail?"),
        _hypotheses(records),
        words.hypotheses(compared(records), "F6 and F7, written down before the run."),
        _needed(records),
        _ranks(records),
        Figure(
            lambda: _figure(records),
            "Share of the gain of training all weights, against LoRA's rank.",
            "One curve for each problem.",
        ),
        Heading("What to train with the same steps"),
        _ways(records),
        Text(_reduced(records)),
    ]


def scores(records: Records, way: str, task: str) -> Curve | None:
    """Accuracy against size; for the decoder held-out losses, negative."""
    path, sign = ("loss", -1.0) if task == "dialogue" else ("accuracy", 1.0)
    return curve(records.where(way=way, task=task), path, sign)


def gains(records: Records, way: str, task: str) -> Curve | None:
    """What a way gains over the head alone or, where there is none, the start."""
    own, base = (scores(records, name, task) for name in (way, BASE[task]))
    return None if own is None or base is None else over(own, base)


def of_gain(records: Records, way: str, task: str) -> Found:
    """The size that gives 90 % of what training all weights gains."""
    return needed(gains(records, way, task), gains(records, "full", task))


def of_score(records: Records, way: str, task: str) -> Found:
    """The size that gives 90 % of the accuracy of training all weights."""
    if task == "dialogue":
        return None
    return needed(scores(records, way, task), scores(records, "full", task))


def share(records: Records, way: str, size: int, task: str) -> float | None:
    """The share of the gain that a size gives, of means over seeds."""
    own, full = gains(records, way, task), gains(records, "full", task)
    if own is None or full is None or size not in own.sizes:
        return None
    total = float(full.scores.mean())
    return own.mean(size) / total if total > 0 else None


def _fails(records: Records, rank: int, task: str) -> int | None:
    """1 if a rank gives less than 90 % of the gain, else -1."""
    own = share(records, "lora", rank, task)
    return None if own is None else (1 if own < SHARE else -1)


def _hypotheses(records: Records) -> Table:
    def marks(*given: tuple[int, str, int]) -> list[int | None]:
        found = [(_fails(records, rank, task), sign) for rank, task, sign in given]
        return [None if own is None else sign * own for own, sign in found]

    def cells(*given: tuple[int, str]) -> str | None:
        known = [
            f"rank {rank}: {100 * own:.0f} %"
            for rank, task in given
            if (own := share(records, "lora", rank, task)) is not None
        ]
        return "; ".join(known) or None

    rows = [
        ["F1: on TREC rank 1 does not fail", verdict(marks((1, "trec", -1))),
         cells((1, "trec"))],
        ["F2: on 45 classes rank 1 fails and rank 64 does not",
         verdict(marks((1, "files", 1), (64, "files", -1))),
         cells((1, "files"), (64, "files"))],
        ["F3: on random labels rank 1 fails", verdict(marks((1, "random", 1))),
         cells((1, "random"))],
        ["F4: on the decoder rank 1 fails", verdict(marks((1, "dialogue", 1))),
         cells((1, "dialogue"))],
        ["F5: ranks and dimensions agree on the easiest and the hardest problem",
         *_fifth(records)],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="F1 to F5, written down before the run.",
        notes=[
            "Shares of what training all weights gains over the head alone or, for "
            "random labels and the decoder, over the start; of means over seeds. A "
            "rank fails below 90 %."
        ],
        align="lll",
    )


def _fifth(records: Records) -> tuple[str | None, str | None]:
    pairs = {}
    for task in PROBLEMS:
        rank, d = of_gain(records, "lora", task), of_gain(records, "did", task)
        if rank is not None and d is not None:
            pairs[task] = (rank.interpolated, d.interpolated)
    if len(pairs) < len(PROBLEMS):
        return None, None
    ranks, ds = zip(*pairs.values(), strict=True)
    agree = [
        1 if ds[ranks.index(pick(ranks))] == pick(ds) else -1 for pick in (min, max)
    ]
    numbers = "; ".join(
        f"{PROBLEMS[t]}: rank {r:.3g}, d {d:,.0f}" for t, (r, d) in pairs.items()
    )
    return verdict(list(agree)), numbers


def compared(records: Records) -> list[Hypothesis]:
    """F6 and F7, which paired intervals of accuracy decide."""
    best = rights(records, "lora", 8)

    def minus(way: str) -> Any:
        return words.difference(rights(records, way, 1), best)

    six = Claim("all weights minus LoRA", minus("full"), words.within)
    seven = [
        Claim(f"{title} minus LoRA", minus(way), words.no_gain)
        for way, title in (("bias", "biases"), ("last", "last layer"))
    ]
    return [
        Hypothesis("F6", "LoRA of rank 8 is as good as all weights", [six]),
        Hypothesis(
            "F7", "biases or the last layer are no better than LoRA of rank 8", seven
        ),
    ]


def rights(records: Records, way: str, size: int) -> Rights | None:
    """Which test texts of the four tasks are right, on common seeds."""
    by = {}
    for task in TASKS:
        rows = records.where(way=way, size=size, task=task)
        by[task] = {r.seed: r for r in rows}
    known = {task: own for task, own in by.items() if own}
    seeds = sorted(set.intersection(*map(set, known.values()))) if known else []
    if not seeds:
        return None
    found = {
        task: right(Records([own[s] for s in seeds])) for task, own in known.items()
    }
    return Rights(tuple(seeds), found)


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
            "seeds; then the share of what training all weights gains."
        ],
        align="lllll",
    )


def _with_share(records: Records, way: str, size: int, task: str) -> str | None:
    own, part = (
        _score(records, way, task, size),
        share(records, way, size, task),
    )
    return own if own is None or part is None else f"{own}; {100 * part:.0f} %"


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
                "–" if way == "head" else decoder,
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
            "all of them train. Three learning rates for every way and task. The "
            "decoder has no biases: the scales of its norms stand for them."
        ],
        align="lr" + "l" * (len(columns) - 2),
        digits=dict.fromkeys(columns, 1),
    )


def _figure(records: Records) -> Any:
    lines = {}
    for task, title in PROBLEMS.items():
        own = scores(records, "lora", task)
        parts = [share(records, "lora", n, task) for n in own.sizes] if own else []
        if own is not None and None not in parts:
            lines[title] = (list(own.sizes), parts)
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
