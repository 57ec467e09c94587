"""What the table of sizes shows."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, curves, spread
from benchmarks.study.needed import (
    SHARE,
    Curve,
    curve,
    fewer,
    first,
    needed,
    over,
    shown,
    verdict,
)
from lowrank.subspace import IntrinsicDimension, intrinsic_dimension

WAYS = {"did": "d90", "lora": "LoRA's rank"}
NONE = "–"
Found = IntrinsicDimension | None


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("The bigger the model, the smaller the change?"),
        _hypotheses(records),
        _sizes(records),
        _checkpoints(records),
        _ranks(records),
        _losses(records),
        Figure(
            lambda: _figure(records),
            "Share of the gain of training all weights, against the dimension.",
            "Curves that rise with d, one for each decoder.",
        ),
        Text(_reduced(records)),
    ]


# What was measured.


def starts(records: Records) -> list[str]:
    """Checkpoints that were started from, by size and step."""
    return sorted({r.config["weights"] for r in records.where(way="start")}, key=_order)


def _order(name: str) -> tuple[int, int]:
    width, step = name[1:].split("x")[0], name.rpartition("-step")[2]
    return int(width), int(step)


def lasts(records: Records) -> list[str]:
    """The last checkpoint of each size, from small to large."""
    by: dict[int, str] = {}
    for name in starts(records):
        by[_order(name)[0]] = name
    return list(by.values())


def of_middle(records: Records) -> list[str]:
    """The checkpoints of the size that has several, in order."""
    names = starts(records)
    widths = [_order(name)[0] for name in names]
    several = [w for w in dict.fromkeys(widths) if widths.count(w) > 1]
    return [n for n in names if several and _order(n)[0] == several[0]]


def losses(records: Records, way: str, name: str) -> Curve | None:
    """Held-out losses of a way, negative so that higher is better."""
    return curve(records.where(way=way, weights=name), "loss", -1.0)


def gains(records: Records, way: str, name: str) -> Curve | None:
    """What a way gains over the start, in nats a character."""
    own, begin = losses(records, way, name), losses(records, "start", name)
    if own is None or begin is None:
        return None
    every = np.repeat(begin.scores[:, :1], len(own.seeds), axis=1)
    return over(own, Curve(begin.sizes, own.seeds, every))


def local(records: Records, way: str, name: str) -> Found:
    """By 90 % of what training all weights gains from the same start."""
    return needed(gains(records, way, name), gains(records, "full", name))


def level(records: Records, name: str) -> float | None:
    """The loss at which a start has 90 % of its own gain."""
    begin, full = losses(records, "start", name), gains(records, "full", name)
    if begin is None or full is None:
        return None
    return -float(begin.scores[0, 0]) - SHARE * float(full.scores[0].mean())


def overall(records: Records, way: str, name: str, loss: float | None) -> Found:
    """By one loss for all; 0 where the start has it already."""
    own, begin = losses(records, way, name), losses(records, "start", name)
    if own is None or begin is None or loss is None:
        return None
    first_row = np.repeat(begin.scores[:, :1], len(own.seeds), axis=1)
    scores = np.concatenate([first_row, own.scores]) + loss  # reached at or above 0
    return intrinsic_dimension((0, *own.sizes), 1 + scores, 1.0, share=1.0)


def _weights(records: Records, name: str) -> int | None:
    own = records.where(way="start", weights=name)
    return own[0].metrics["weights"] if len(own) else None


def _most(own: Curve | None) -> int | None:
    return None if own is None else own.sizes[-1]


# The hypotheses.


def _scaled(found: Found, by: float | None) -> Found:
    """The same dimension as a share of all weights."""
    if found is None or by is None:
        return None
    return IntrinsicDimension(
        found.tested / by, found.interpolated / by, found.low / by, found.high / by,
        found.threshold,
    )  # fmt: skip


def _falls(found: Sequence[Found]) -> list[int | None]:
    """For each pair of neighbours whether the later one is smaller."""
    if len(found) < 2:
        return [None]
    pairs = zip(found[1:], found, strict=False)
    return [fewer(later, earlier) for later, earlier in pairs]


def _hypotheses(records: Records) -> Table:
    names, middle = lasts(records), of_middle(records)
    dims = [local(records, "did", name) for name in names]
    shares = [
        _scaled(d, _weights(records, name)) for d, name in zip(dims, names, strict=True)
    ]
    ranks = [local(records, "lora", name) for name in names]
    ends = [dims[0], dims[-1]] if len(dims) > 1 else []
    rank_ends = [ranks[0], ranks[-1]] if len(ranks) > 1 else []
    grows = fewer(*rank_ends) if rank_ends else None
    loss = level(records, middle[-1]) if middle else None
    along = [overall(records, "did", name, loss) for name in middle]
    rows = [
        ["S1: as a share of all weights, d90 falls from each size to the next",
         verdict(_falls(shares)), _percents(shares)],
        ["S2: d90 falls from the smallest decoder to the largest",
         verdict(_falls(ends)), _list(ends)],
        ["S3: LoRA's needed rank does not rise from the smallest to the largest",
         verdict([None if grows is None else (-1 if grows > 0 else 1)]),
         _list(rank_ends)],
        ["S4: by one loss, d90 falls along pretraining",
         verdict(_falls(along)), _list(along)],
        ["S5: adaptation's change has a lower effective rank than pretraining's",
         *_fifth(records)],
        ["S6: the effective rank of adaptation's change rises along training",
         *_sixth(records)],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="The hypotheses written down before the run.",
        notes=[
            "S1 to S4 by 95 % bootstrap intervals over seeds, which lie apart "
            "(supported), the other way round (contradicted) or meet (not supported); "
            "S3 is contradicted only where they lie apart. S5 and S6 by means over "
            "kernels and seeds."
        ],
        align="lll",
    )


def _fifth(records: Records) -> tuple[str | None, str | None]:
    marks, words = [], []
    for name in lasts(records):
        one, two = (
            _effective(records, "ranks", name),
            _effective(records, "pretraining ranks", name),
        )
        if one is None or two is None:
            continue
        marks.append(1 if one[-1] < two[-1] else -1)
        words.append(f"{one[-1]:.2f} and {two[-1]:.2f}")
    return verdict(marks or [None]), "; ".join(words) or None


def _sixth(records: Records) -> tuple[str | None, str | None]:
    marks, words = [], []
    for name in lasts(records):
        own = _effective(records, "ranks", name)
        if own is None:
            continue
        marks.append(1 if all(np.diff(own) > 0) else -1)
        words.append(" ".join(f"{x:.2f}" for x in own))
    return verdict(marks or [None]), "; ".join(words) or None


def _effective(
    records: Records, way: str, name: str, kind: str = "effective"
) -> list[float] | None:
    """Means over seeds at each look."""
    own = [r.series[kind] for r in records.where(way=way, weights=name)]
    return np.mean(own, axis=0).tolist() if own else None


def _list(found: Sequence[Found]) -> str | None:
    known = [str(shown(own)) for own in found if own is not None]
    return "; ".join(known) or None


def _percents(found: Sequence[Found]) -> str | None:
    def one(value: float) -> str:
        return f"{100 * value:.2f}" if math.isfinite(value) else "not reached"

    known = [
        f"{one(f.interpolated)} [{one(f.low)}, {one(f.high)}] %"
        for f in found
        if f is not None
    ]
    return "; ".join(known) or None


# The tables.


def _sizes(records: Records) -> Table:
    names = lasts(records)
    loss = level(records, names[0]) if names else None
    rows: list[list[Any]] = []
    for name in names or [""]:
        did, rank = gains(records, "did", name), gains(records, "lora", name)
        one, two = local(records, "did", name), overall(records, "did", name, loss)
        share = _scaled(one, _weights(records, name))
        rows.append(
            [
                _weights(records, name),
                _loss(records, "start", name),
                _loss(records, "full", name),
                first(one, _most(did)),
                shown(one, _most(did)),
                _percents([share]),
                shown(two, _most(did)),
                first(local(records, "lora", name), _most(rank)),
                first(overall(records, "lora", name, loss), _most(rank)),
            ]
        )
    return Table(
        [
            "weights", "start", "all weights", "d90, tested", "d90", "share",
            "d90, overall", "LoRA's rank", "LoRA's rank, overall",
        ],
        rows,
        caption="Decoders of four sizes, from novels to film dialogue.",
        notes=[
            "Start, all weights: held-out nats a character of dialogue, mean "
            "[min…max] over seeds. d90: the dimensions that give 90 % of what "
            "training all weights gains over the start; tested, and interpolated with "
            "its 95 % bootstrap interval over seeds; share: of all weights. Overall: "
            "by the loss at which the smallest decoder has 90 % of its gain; 0 where "
            "a start has it already. Ranks: smallest tested."
        ],
        align="rllrlllrr",
    )  # fmt: skip


def _checkpoints(records: Records) -> Table:
    names = of_middle(records)
    loss = level(records, names[-1]) if names else None
    rows: list[list[Any]] = []
    for name in names or [""]:
        did, rank = gains(records, "did", name), gains(records, "lora", name)
        rows.append(
            [
                _order(name)[1] if name else None,
                _loss(records, "start", name, "loss_novels"),
                _loss(records, "start", name),
                _loss(records, "full", name),
                shown(local(records, "did", name), _most(did)),
                shown(overall(records, "did", name, loss), _most(did)),
                first(local(records, "lora", name), _most(rank)),
                first(overall(records, "lora", name, loss), _most(rank)),
            ]
        )
    return Table(
        [
            "steps of pretraining", "novels", "start", "all weights", "d90",
            "d90, overall", "LoRA's rank", "LoRA's rank, overall",
        ],
        rows,
        caption="One decoder along its pretraining.",
        notes=[
            "Novels: held-out nats a character of the text of pretraining. 0 steps: "
            "random weights. Overall: by the loss at which the last checkpoint has 90 "
            "% of its gain. The local gain of random weights is that of learning to "
            "spell: its 90 % is another loss."
        ],
        align="rlllllrr",
    )  # fmt: skip


def _ranks(records: Records) -> Table:
    rows: list[list[Any]] = []
    steps: list[int] = []
    for name in lasts(records) or [""]:
        for way, title in (("pretraining ranks", "pretraining"), ("ranks", "dialogue")):
            own = records.where(way=way, weights=name)
            steps = own[0].series["steps"] if len(own) else []
            cells = [
                _join(_effective(records, way, name, kind))
                for kind in ("effective", "stable", "relative")
            ]
            when = ", ".join(map(str, steps)) or None
            rows.append([_weights(records, name), title, when, *cells])
    return Table(
        ["weights", "change", "after steps", "effective rank", "stable rank", "size"],
        rows,
        caption="The rank of the change along training, all weights trained.",
        notes=[
            "Ranks as shares of the narrower side, means over the kernels of all "
            "layers and over seeds. Size: Frobenius norm over that of the start's."
        ],
        align="rlllll",
    )


def _join(values: Sequence[float] | None) -> str | None:
    return None if values is None else ", ".join(f"{x:.2f}" for x in values)


def _losses(records: Records) -> Table:
    names = lasts(records)
    columns = ["trained", *(f"{_weights(records, n):,} weights" for n in names)]
    rows: list[list[Any]] = []
    for way, title in (("did", "d = "), ("lora", "rank ")):
        sizes = sorted({r.config["size"] for r in records.where(way=way)})
        for size in sizes:
            cells = [
                spread(records.where(way=way, weights=n, size=size).values("loss"), 4)
                for n in names
            ]
            rows.append([f"{title}{size:,}", *[c or NONE for c in cells]])
    if not rows:
        columns, rows = ["trained", "loss"], [["d, rank", None]]
    return Table(
        columns,
        rows,
        caption="Held-out nats a character of dialogue, by what is trained.",
        notes=["Mean [min…max] over seeds."],
        align="l" * len(columns),
    )


def _loss(records: Records, way: str, name: str, path: str = "loss") -> str | None:
    return spread(records.where(way=way, weights=name).values(path))


def _figure(records: Records) -> Any:
    lines = {}
    for name in lasts(records):
        own, full = gains(records, "did", name), gains(records, "full", name)
        if own is not None and full is not None:
            shares = own.scores.mean(axis=1) / full.scores.mean()
            title = f"{_weights(records, name):,} weights"
            lines[title] = (list(own.sizes), shares.tolist())
    return curves(lines, xlabel="d", ylabel="share of the gain", logx=True)


def _reduced(records: Records) -> str:
    own = records.where(way="did")
    if not len(own):
        return "Not run."
    c = own[0].config
    seeds = ", ".join(map(str, sorted({r.seed for r in own})))
    hours = sum(r.seconds for r in records) / 3600
    text = "made-up texts" if c["synthetic"] else "Jane Austen's novels"
    return (
        f"*Reduced*: tiny decoders over characters, {c['context']} at a time, "
        f"pretrained once on {text} for {c['pretraining']:,} steps of "
        f"{c['pretraining_batch']} examples at one rate, adapted for {c['steps']} "
        f"steps of {c['batch']}; three learning rates for every way, start and size, "
        f"chosen on {c['valid']} held-out windows, scores on {c['test']} others; seeds "
        f"{seeds}. The rows took {hours:.2g} h."
    )
