"""What the table of convolutional transfer shows."""

import dataclasses
from typing import Any

import numpy as np

from benchmarks.record import Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.study.scores import percent, right
from benchmarks.tables import _lori_words as words
from benchmarks.tables._conv_transfer_ways import WAYS
from benchmarks.tables._conv_transfer_work import FEWEST
from benchmarks.tables._lori_words import Claim, Hypothesis, Rights

BASE = "probe"
SMALL = ("lora", "lora-all", "tucker", "dora", "loha", "lokr", "shira", "norms")


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    found: list[Block] = [Heading("Adapters for a convolutional network")]
    times, runs = (records.where(kind=kind) for kind in ("time", "run"))
    for shots in sorted({r.config["shots"] for r in runs}) or [FEWEST]:
        own = runs.where(shots=shots)
        verdicts = words.hypotheses(
            expected(own),
            f"{shots} images of a class: the hypotheses written down before the run.",
        )
        notes = [note.replace("over texts", "over images") for note in verdicts.notes]
        found.append(dataclasses.replace(verdicts, notes=notes))
        found += [_table(own, times, shots), Text(_budget(own))]
    return found


def rights(records: Records, name: str) -> Rights | None:
    """Which test images a way gets right, by seed; None where it was not run."""
    own = records.where(way=name)
    if not len(own):
        return None
    seeds = tuple(sorted(record.seed for record in own))
    return Rights(seeds, {"fashion_mnist": right(own)})


def expected(records: Records) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def minus(one: str, two: str) -> Difference | None:
        return words.difference(rights(records, one), rights(records, two))

    def claims(pairs: Any, test: words.Test) -> list[Claim]:
        return [
            Claim(f"{_short(one)} minus {_short(two)}", minus(one, two), test)
            for one, two in pairs
        ]

    trained = [name for name in WAYS if name != BASE]
    return [
        Hypothesis(
            "C1",
            "every trained way beats the head on the frozen network",
            claims([(name, BASE) for name in trained], words.above),
        ),
        Hypothesis(
            "C2",
            "no way of about 20,000 numbers is worse than full fine-tuning",
            claims([(name, "full") for name in SMALL], words.no_cost),
        ),
        Hypothesis(
            "C3",
            "the three forms of LoRA do not differ at one size",
            claims([("lora-all", "tucker"), ("loralib", "lora-large")], words.within),
        ),
        Hypothesis(
            "C4",
            "a change of depthwise kernels beside the 1 x 1 kernels gains nothing",
            claims([("lora-all", "lora"), ("tucker", "lora")], words.no_gain),
        ),
        Hypothesis(
            "C5",
            "tuning the norms is not worse than LoRA",
            claims([("norms", "lora")], words.no_cost),
        ),
        Hypothesis(
            "C6",
            "LoHa, LoKr and DoRA are no better than LoRA",
            claims([(n, "lora") for n in ("loha", "lokr", "dora")], words.no_gain),
        ),
    ]


def _short(name: str) -> str:
    return "head alone" if name == BASE else WAYS[name].title


def _table(records: Records, times: Records, shots: int) -> Table:
    rows: list[list[Any]] = []
    sources: list[Any] = []
    base, lora = rights(records, BASE), rights(records, "lora")
    for name, way in WAYS.items():
        own, found = records.where(way=name), rights(records, name)
        sources.append(list(own))
        if found is None:
            rows.append([way.title, way.where, *[None] * 6])
            continue
        gaps = [
            words.NONE if name == other else words.written(words.difference(found, of))
            for other, of in ((BASE, base), ("lora", lora))
        ]
        metrics = own[0].metrics
        rates = words.NONE if name == BASE else _rate(metrics)
        rows.append(
            [
                way.title,
                way.where,
                metrics["trained"],
                percent(found.pooled()),
                *gaps,
                words.NONE if name == BASE else _milliseconds(times.where(way=name)),
                rates,
            ]
        )
    columns = (
        "trained", "kernels", "numbers", "accuracy, %", "minus head alone",
        "minus LoRA", "ms a step", "rate",
    )  # fmt: skip
    return Table(
        columns,
        rows,
        caption=f"Fashion-MNIST from {shots} labelled images of a class, by what is "
        "trained.",
        notes=[
            "Over all test images, with 95 % bootstrap intervals over images and "
            "seeds, each of which draws other labelled images; differences paired, in "
            "points. Numbers: of the adapter, the head left out. Three learning rates "
            "for every way, chosen on validation images; a star marks an end of the "
            "grid, where a better rate may lie outside. Time: processor time, the "
            "median over some steps."
        ],
        align="llrlllrr",
        digits=dict.fromkeys(columns, 1),
        sources=sources,
    )


def _rate(metrics: Any) -> str:
    best = int(np.argmax(metrics["rates_tried"]))
    end = best in (0, len(metrics["rates_tried"]) - 1)
    return f"{metrics['rate']:g}{'*' * end}"


def _milliseconds(times: Records) -> float | None:
    return 1e3 * times[0].metrics["seconds_per_step"] if len(times) else None


def _budget(records: Records) -> str:
    if not len(records):
        return "Not run."
    c = records[0].config
    net = (
        "a tiny random network, and made-up images"
        if c["synthetic"]
        else f"EfficientNet-Lite0 (Apache-2.0), last {c['blocks']} of 16 blocks"
    )
    seeds = ", ".join(map(str, sorted({r.seed for r in records})))
    return (
        f"Small data and short runs: {net}; images brought to {c['side']} x "
        f"{c['side']}; {c['shots']} labelled images of each class, {c['steps']} steps "
        f"of {c['batch']}; choices on {c['valid']} validation images, scores on "
        f"{c['test']} test images. Seeds {seeds}."
    )
