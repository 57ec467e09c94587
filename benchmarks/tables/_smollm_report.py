"""What the table of the fine-tuned language model shows."""

import math
from typing import Any

from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table
from benchmarks.tables._smollm_data import CORPORA
from benchmarks.tables._smollm_numbers import (
    TITLES,
    gap,
    hypotheses,
    losses,
    perplexity,
    rows_of,
)
from benchmarks.tables._smollm_work import METHODS, PROMPTS

NONE = "–"
HELD = {"float32": "float32", "bfloat16": "bfloat16", "int8": "int8", "nf4": "NF4"}
WAYS = ("base", *METHODS, "full", "qlora")


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("A real language model, fine-tuned"),
        _verdicts(records),
        *(_corpus(records, name) for name in CORPORA),
        _costs(records),
        _held(records),
        *(_samples(records, name) for name in CORPORA),
        _used(records),
    ]


def _verdicts(records: Records) -> Table:
    rows = [[h.name, h.text, h.verdict(), h.figures()] for h in hypotheses(records)]
    return Table(
        ["", "written down before the run", "verdict", "how far above the threshold"],
        rows,
        caption="The hypotheses, in nats per token unless said otherwise, with 95 % "
        "bootstrap intervals over examples and seeds.",
        align="llll",
        notes=[
            "`holds`: every interval lies above zero. `fails`: one lies below. `open`: "
            "neither. Not corrected for the number of comparisons."
        ],
    )


def _corpus(records: Records, corpus: str) -> Table:
    """What each way makes of the corpus that it was trained on, and of the other."""
    (other,) = (name for name in CORPORA if name != corpus)
    base = rows_of(records, "base")
    rows: list[list[Any]] = []
    links: list[Any] = []
    for way in WAYS:
        found = base if way == "base" else rows_of(records, way, corpus)
        if way in ("full", "qlora") and not found and corpus != "dialogue":
            continue
        links.append(found or None)
        if not found:
            rows.append([TITLES[way], *[None] * 7])
            continue
        own, far = (losses(found, where) for where in (corpus, other))
        gains = [gap(found, base, where) for where in (corpus, other)]
        untrained = way == "base"
        rows.append(
            [
                TITLES[way],
                NONE if untrained else found[0].metrics["trained"],
                NONE if untrained else _rate(found[0]),
                NONE if untrained else len(found),
                perplexity(own),
                NONE if untrained else gains[0],
                perplexity(far),
                NONE if untrained else gains[1],
            ]
        )
    columns = [
        "trained", "numbers", "rate", "seeds", "perplexity", "change, nats",
        f"perplexity, {CORPORA[other]}", f"change, {CORPORA[other]}, nats",
    ]  # fmt: skip
    return Table(
        columns,
        rows,
        caption=f"Trained on {CORPORA[corpus]}: perplexity of held-out completions, "
        "and of those of the other corpus, which shows what is forgotten.",
        align="lrlrllll",
        digits={columns[4]: 2, columns[6]: 2},
        sources=links,
        notes=[
            "With 95 % bootstrap intervals over examples and seeds; changes are paired "
            "with the model as published, in nats per token, negative where the loss "
            "falls. Rates were chosen from three on validation examples of the first "
            "seed; LoRA over NF4 has LoRA's."
        ],
    )


def _rate(record: Record) -> str:
    """The rate, and those that it was chosen from."""
    tried = record.metrics["rates_tried"]
    rate = f"{record.metrics['rate']:g}"
    return f"{rate} of {', '.join(tried)}" if len(tried) > 1 else rate


def _costs(records: Records) -> Table:
    """Bytes and speed of a training step of each way."""
    rows: list[list[Any]] = []
    links: list[Any] = []
    for way in WAYS[1:]:
        found = rows_of(records, way, "dialogue")
        links.append(found or None)
        if not found:
            rows.append([TITLES[way], *[None] * 6])
            continue
        cost = found[0].metrics["cost"]
        sizes = ("trainable", "fixed", "optimizer", "arguments", "temporaries")
        speeds = sorted(record.metrics["cost"]["speed"] for record in found)
        rows.append(
            [
                TITLES[way],
                *(_mib(cost[name]) for name in sizes),
                speeds[len(speeds) // 2],
            ]
        )
    return Table(
        [
            "trained", "trained, MiB", "fixed, MiB", "optimiser, MiB",
            "step is given, MiB", "step needs besides, MiB", "tokens/s",
        ],
        rows,
        caption="What a training step costs: the compiled program's own account of its "
        "memory, and tokens in a second, padding included (median over steps and "
        "seeds).",
        align="lrrrrrr",
        digits=1,
        sources=links,
    )  # fmt: skip


def _held(records: Records) -> Table:
    """The base held in four ways."""
    plain = rows_of(records, "memory-float32")
    rows: list[list[Any]] = []
    links: list[Any] = []
    for kind, title in HELD.items():
        found = rows_of(records, f"memory-{kind}")
        links.append(found or None)
        if not found:
            rows.append([title, *[None] * 9])
            continue
        metrics = found[0].metrics
        cells: list[Any] = [
            title,
            _mib(metrics["bytes"]),
            _mib(metrics["linear"]),
            _mib(metrics["cost"]["temporaries"]),
            metrics["cost"]["speed"],
            metrics["forward"],
        ]
        for corpus in CORPORA:
            cells.append(perplexity(losses(found, corpus)))
            same = kind == "float32"
            cells.append(NONE if same else gap(found, plain, corpus))
        rows.append(cells)
    columns = ["base", "MiB", "linear maps, MiB", "LoRA step needs besides, MiB"]
    columns += ["training, tokens/s", "forward, tokens/s"]
    for title in CORPORA.values():
        columns += [f"perplexity, {title}", f"minus float32, {title}, nats"]
    return Table(
        columns,
        rows,
        caption="The frozen base held in four ways, under a LoRA that is not trained "
        "yet: its bytes, a compiled LoRA step, perplexity of held-out completions.",
        align="lrrrrrllll",
        digits={name: 1 for name in columns[:6]}
        | {columns[6]: 2, columns[8]: 2, columns[7]: 4, columns[9]: 4},
        sources=links,
        notes=[
            "The published file holds 4-bit numbers already (Q4_1; embeddings Q8_0), "
            "which float32 repeats exactly: int8 and NF4 round them once more. "
            "Under int8 and NF4 the embeddings, which give the logits too, and the "
            "norms are bfloat16."
        ],
    )


def _samples(records: Records, corpus: str) -> Table:
    """What was written, before and after."""
    rows: list[list[Any]] = []
    for number, prompt in enumerate(PROMPTS[corpus]):
        for way in WAYS:
            found = rows_of(records, way, "" if way == "base" else corpus)
            if way in ("full", "qlora") and not found:
                continue
            said = _said(found[0], corpus, number) if found else (None, None)
            rows.append([prompt if way == "base" else "", TITLES[way], *said])
    return Table(
        ["prompt", "trained", "likeliest", "drawn"],
        rows,
        caption=f"What is written after prompts of our own, trained on "
        f"{CORPORA[corpus]}, first seed; not chosen.",
        align="llll",
    )


def _said(record: Record, corpus: str, number: int) -> tuple[str, str]:
    said = record.metrics["samples"][corpus]
    one, two = (" ".join(said[kind][number].split()) for kind in ("greedy", "drawn"))
    return one or "(nothing)", two or "(nothing)"


def _used(records: Records) -> Table:
    """How little was trained on and scored, and the check text."""
    base, check = records.get("base"), records.get("check")
    rows: list[list[Any]] = []
    links: list[Any] = []
    for name, title in CORPORA.items():
        facts = base.metrics["data"][name] if base else None
        found = [own for way in METHODS for own in rows_of(records, way, name)]
        tokens = found[0].metrics["tokens"] if found else None
        rows.append(
            [
                f"{title}: tokens of one training, padding left out; in the loss",
                f"{tokens['used']:,}; {tokens['counted']:,}" if tokens else None,
            ]
        )
        rows.append(
            [
                f"{title}: scored examples, of so many; tokens that count",
                f"{facts['scored']:,} of {facts['there']['test']:,}; "
                f"{facts['counted']:,}"
                if facts
                else None,
            ]
        )
        links += [found[0] if found else None, base]
    loss = check.metrics["nll"] if check else None
    rows.append(
        [
            "the test suite's text on a lighthouse keeper: nats per token; perplexity",
            None if loss is None else f"{loss:.4f}; {math.exp(loss):.2f}",
        ]
    )
    return Table(
        ["what", "how much"],
        rows,
        caption="What was used, and a text whose likelihood the test suite compares "
        "with that of another implementation.",
        align="ll",
        sources=[*links, check],
    )


def _mib(size: int) -> float:
    return size / 2**20
