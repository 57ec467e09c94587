"""What the table of sizes shows."""

from collections.abc import Sequence
from typing import Any

from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, curves, spread
from benchmarks.study.needed import first, shown
from benchmarks.study.rate_ends import rate_ends
from benchmarks.tables._sizes_curves import (
    effective,
    gains,
    lasts,
    level,
    local,
    most,
    of_middle,
    order,
    overall,
    percents,
    scaled,
    weights,
)
from benchmarks.tables._sizes_verdicts import hypotheses

NONE = "–"
TRAINED = {"full": "all weights", "did": "DID", "lora": "LoRA"}


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("The bigger the model, the smaller the change?"),
        hypotheses(records),
        _sizes(records),
        _checkpoints(records),
        _ranks(records),
        _losses(records),
        rate_ends(records, TRAINED),
        Figure(
            lambda: _figure(records),
            "Share of the gain of training all weights, against the dimension.",
            "Curves that rise with d, one for each decoder.",
            name="sizes",
        ),
        Text(_reduced(records)),
    ]


def _sizes(records: Records) -> Table:
    names = lasts(records)
    loss = level(records, names[0]) if names else None
    rows: list[list[Any]] = []
    for name in names or [""]:
        did, rank = gains(records, "did", name), gains(records, "lora", name)
        one, two = local(records, "did", name), overall(records, "did", name, loss)
        share = scaled(one, weights(records, name))
        rows.append(
            [
                weights(records, name),
                _loss(records, "start", name),
                _loss(records, "full", name),
                first(one, most(did)),
                shown(one, most(did)),
                percents([share]),
                shown(two, most(did)),
                first(local(records, "lora", name), most(rank)),
                first(overall(records, "lora", name, loss), most(rank)),
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
                order(name)[1] if name else None,
                _loss(records, "start", name, "loss_novels"),
                _loss(records, "start", name),
                _loss(records, "full", name),
                shown(local(records, "did", name), most(did)),
                shown(overall(records, "did", name, loss), most(did)),
                first(local(records, "lora", name), most(rank)),
                first(overall(records, "lora", name, loss), most(rank)),
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
                _join(effective(records, way, name, kind))
                for kind in ("effective", "stable", "relative")
            ]
            when = ", ".join(map(str, steps)) or None
            rows.append([weights(records, name), title, when, *cells])
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
    columns = ["trained", *(f"{weights(records, n):,} weights" for n in names)]
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
            title = f"{weights(records, name):,} weights"
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
        f"steps of {c['batch']}; four learning rates for every way, start and size, "
        f"chosen on {c['valid']} held-out windows, scores on {c['test']} others; seeds "
        f"{seeds}. Intervals cover the seeds of adaptation (projection, factors, order "
        "of examples) only: each size was pretrained once. The rows took "
        f"{hours:.2g} h."
    )
