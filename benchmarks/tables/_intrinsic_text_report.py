"""What the table of text's intrinsic dimension shows."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Figure, Heading, Table, Text, curves
from benchmarks.study.needed import (
    SHARE,
    Curve,
    curve,
    fewer,
    first,
    needed,
    over,
    right,
    shown,
    verdict,
)
from benchmarks.study.rate_ends import rate_ends
from benchmarks.study.scores import percent
from benchmarks.study.tasks import LENGTHS, SUITES
from benchmarks.study.texts import WEIGHTS
from benchmarks.tables._sizes_rules import no_more
from lowrank.subspace import IntrinsicDimension

TASKS = ("trec", "sentiment_movie")
TITLES = SUITES["tasks"]
WAYS = {"did": "DID", "said": "SAID"}
TRAINED = {"full": "all weights", **WAYS, "lora": "LoRA", "head": "head alone"}
START = {"pretrained": "pretrained", "fresh": "drawn anew"}
FEW = 0.001  # I3: share of all weights
Found = IntrinsicDimension | None


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("Intrinsic dimension of text tasks"),
        _hypotheses(records),
        _needed(records),
        _ranks(records),
        _curves(records),
        rate_ends(records, TRAINED),
        Figure(
            lambda: _figure(records),
            "Test accuracy against the dimension, pretrained and fresh layers.",
            "Curves of accuracy against d by way and start.",
        ),
        Text(_reduced(records)),
    ]


def cell(records: Records, way: str, weights: str, task: str) -> Curve | None:
    """The curve of a way from some weights on a task."""
    return curve(records.where(way=way, weights=weights, task=task))


def local(records: Records, way: str, weights: str, task: str) -> Found:
    """By all weights from the same start."""
    own = cell(records, way, weights, task)
    return needed(own, cell(records, "full", weights, task))


def overall(records: Records, way: str, weights: str, task: str) -> Found:
    """By all weights from the pretrained start, one number for a task."""
    own = cell(records, way, weights, task)
    return needed(own, cell(records, "full", "pretrained", task))


def of_gain(records: Records, way: str, weights: str, task: str) -> Found:
    """By 90 % of what training all weights gains over the head alone."""
    own, head, full = (
        cell(records, name, weights, task) for name in (way, "head", "full")
    )
    if own is None or head is None or full is None:
        return None
    gains = over(own, head), over(full, head)
    return needed(*gains)


def _trained(records: Records, way: str, weights: str, task: str, size: int) -> Any:
    """How many numbers a size trains."""
    own = records.where(way=way, weights=weights, task=task, size=size)
    return own[0].metrics["trained"] if len(own) else None


def _at_most(found: Found, bound: float) -> int | None:
    """Whether an interval lies below a bound, above it, or holds it."""
    if found is None:
        return None
    if found.high <= bound:
        return 1
    return -1 if found.low > bound else 0


def _hypotheses(records: Records) -> Table:
    local_ = {
        (way, weights, task): local(records, way, weights, task)
        for way in WAYS
        for weights in WEIGHTS
        for task in TASKS
    }
    shares = []
    for task in TASKS:
        total = _trained(records, "full", "pretrained", task, 1)
        found = local_["did", "pretrained", task]
        shares.append(None if total is None else _at_most(found, FEW * total))
    ranks = [local(records, "lora", "pretrained", task) for task in TASKS]
    did = [local_["did", "pretrained", task] for task in TASKS]
    said = [local_["said", "pretrained", task] for task in TASKS]
    both = [
        (local_[way, "pretrained", task], local_[way, "fresh", task])
        for way in WAYS
        for task in TASKS
    ]
    rows = [
        ["I1: pretrained layers need fewer dimensions than fresh ones",
         verdict([fewer(*pair) for pair in both]), _pairs(both)],
        ["I2: SAID needs no more dimensions than DID",
         no_more(list(zip(said, did, strict=True))),
         _pairs(list(zip(said, did, strict=True)))],
        ["I3: DID's d90 is below 0.1 % of all weights",
         verdict(shares), _list(did)],
        ["I4: LoRA of rank 1 reaches 90 % of full fine-tuning",
         verdict([_at_most(f, 1) for f in ranks]), _list(ranks)],
        ["I5: two classes need fewer dimensions than six",
         verdict([fewer(did[1], did[0])]), _pairs([(did[1], did[0])])],
    ]  # fmt: skip
    return Table(
        ["hypothesis", "verdict", "numbers"],
        rows,
        caption="The hypotheses written down before the run.",
        notes=[
            "By the local baseline: 90 % of training all weights from the same start. "
            "Supported: every interval lies on the side that the hypothesis says; "
            "contradicted: at least one lies on the other; not supported: neither. I2 "
            "is supported where SAID's intervals lie below DID's, not contradicted "
            "where they meet, and undecided where neither is reached."
        ],
        align="lll",
    )


def _list(found: Sequence[Found]) -> str | None:
    known = [shown(own) for own in found if own is not None]
    return "; ".join(str(own) for own in known) or None


def _pairs(pairs: Sequence[tuple[Found, Found]]) -> str | None:
    known = [
        f"{shown(one)} and {shown(two)}"
        for one, two in pairs
        if one is not None and two is not None
    ]
    return "; ".join(known) or None


def _needed(records: Records) -> Table:
    rows: list[list[Any]] = []
    for task in TASKS:
        for weights in WEIGHTS:
            rank, gain = (
                read(records, "lora", weights, task) for read in (local, of_gain)
            )
            for way, title in WAYS.items():
                own = cell(records, way, weights, task)
                most = None if own is None else own.sizes[-1]
                one = local(records, way, weights, task)
                two = overall(records, way, weights, task)
                rows.append(
                    [
                        TITLES[task],
                        START[weights],
                        title,
                        _trained(records, "full", weights, task, 1),
                        first(one, most),
                        shown(one, most),
                        first(two, most),
                        shown(two, most),
                        first(rank),
                        first(gain),
                    ]
                )
    columns = (
        "task", "layers", "way", "all weights", "local, tested", "local",
        "overall, tested", "overall", "LoRA's rank", "LoRA's rank, of the gain",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption="The numbers that reach 90 % of training all weights.",
        notes=[
            "Smallest tested d, and where straight lines between means over seeds "
            "cross the threshold, with a 95 % bootstrap interval over the few seeds. "
            "Local: of training all weights "
            "from the same start; overall: of training all pretrained weights. LoRA's "
            "rank: smallest tested, by the local baseline; of the gain: 90 % of what "
            "training all weights gains over the head alone. LoRA trains the head "
            "whole, DID and SAID have it within d."
        ],
        align="lllrrlrlrr",
    )


def _ranks(records: Records) -> Table:
    """LoRA beside the head alone and all weights."""
    rows: list[list[Any]] = []
    for weights in WEIGHTS:
        sizes = _sizes(records, "lora", (1, 2, 4, 16))
        named = [("head", 1, "head alone"), ("full", 1, "all weights")]
        named[1:1] = [("lora", size, f"LoRA, rank {size}") for size in sizes]
        for way, size, title in named:
            rows.append(
                [
                    START[weights],
                    title,
                    _trained(records, way, weights, TASKS[0], size),
                    *(_percent(records, way, weights, t, size) for t in TASKS),
                ]
            )
    columns = ("layers", "trained", "numbers", *(f"{TITLES[t]}, %" for t in TASKS))
    return Table(
        columns,
        rows,
        caption="LoRA of few ranks, the head alone, and all weights.",
        notes=[
            "Test accuracy with 95 % bootstrap intervals over texts and seeds. "
            f"Numbers: trained, the head of {TITLES[TASKS[0]]} included."
        ],
        align="llrll",
        digits=1,
    )


def _curves(records: Records) -> Table:
    rows: list[list[Any]] = []
    sizes = _sizes(records, "did", (50, 100, 200, 400, 800, 1600, 3200))
    for weights in WEIGHTS:
        for size in sizes:
            cells = [
                _percent(records, way, weights, task, size)
                for task in TASKS
                for way in WAYS
            ]
            rows.append([START[weights], size, *cells])
    columns = ("layers", "d", *(f"{TITLES[t]}, {w}, %" for t in TASKS for w in WAYS))
    titled = [c.replace("did", "DID").replace("said", "SAID") for c in columns]
    return Table(
        titled,
        rows,
        caption="Accuracy against the number of dimensions.",
        notes=["Test accuracy with 95 % bootstrap intervals over texts and seeds."],
        align="lrllll",
        digits=1,
    )


def _sizes(records: Records, way: str, usual: Sequence[int]) -> list[int]:
    return sorted({r.config["size"] for r in records.where(way=way)}) or list(usual)


def _percent(records: Records, way: str, weights: str, task: str, size: int) -> Any:
    own = records.where(way=way, weights=weights, task=task, size=size)
    return percent(right(own)) if len(own) else None


def _figure(records: Records) -> Any:
    lines = {}
    for task in TASKS:
        for weights in WEIGHTS:
            for way, title in WAYS.items():
                own = cell(records, way, weights, task)
                if own is not None:
                    name = f"{TITLES[task]}, {title}, {START[weights]}"
                    means = 100 * np.asarray(own.scores).mean(axis=1)
                    lines[name] = (list(own.sizes), means.tolist())
    return curves(lines, xlabel="d", ylabel="test accuracy, %", logx=True)


def _reduced(records: Records) -> str:
    if not len(records):
        return "Not run."
    c = records[0].config
    encoder = (
        "a tiny random encoder, and made-up texts"
        if c["synthetic"]
        else f"all-MiniLM-L6-v2 (Apache-2.0), last {c['layers']} of 6 layers"
    )
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    hours = sum(r.seconds for r in records) / 3600
    return (
        f"*Reduced*: {encoder}; texts cut to {LENGTHS['tasks']} tokens; {c['steps']} "
        f"steps of {c['batch']} of {c['train']:,} training texts; three learning rates "
        f"for every way, task, start and size, chosen on {c['valid']} validation "
        f"texts; {100 * SHARE:g} % of the baseline; seeds {seeds}. The rows took "
        f"{hours:.2g} h. The paper trains whole encoders for many epochs: only orders "
        "compare."
    )
