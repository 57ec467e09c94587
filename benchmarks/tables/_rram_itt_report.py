"""What the table of ITT shows: claims judged, accuracies, yields, parts, overhead."""

from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Record, Records
from benchmarks.report import Block, Heading, Table, Text
from benchmarks.stats import Difference
from benchmarks.tables import _lori_words as words
from benchmarks.tables import _rram_itt_figures as drawings
from benchmarks.tables import _rram_itt_overhead as overhead
from benchmarks.tables._lori_words import NONE, Claim, Hypothesis
from benchmarks.tables._rram_itt_plan import (
    DATASETS,
    HARD,
    METHODS,
    NETS,
    POINTS,
    STUCK,
    VARIED,
    ablations,
    applies,
)

MILD = ("sigma0.5", "sigma1")
CHANCE = 0.15  # of ten classes, with some room


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    return [
        Heading("ITT and its relatives"),
        _hypotheses(records),
        _claims(records),
        *(_accuracies(records, net, dataset) for dataset in DATASETS for net in NETS),
        *drawings.sweeps(records),
        _yields(records),
        *drawings.yields(records),
        _parts(records),
        overhead.steps(records),
        *drawings.budgets(records),
        overhead.costs(records),
        overhead.rates(records),
        Text(_reduced(records)),
    ]


# What records say


def losses(record: Record | None) -> np.ndarray | None:
    """Points lost to the clean net, for each chip."""
    if record is None:
        return None
    return 100 * (record.metrics["clean"] - np.asarray(record.metrics["accuracies"]))


def point(
    records: Records, net: str, method: str, name: str, dataset: str = "mnist"
) -> Record | None:
    """The record of one method at one point."""
    return records.get(f"point-{net}-{dataset}-{method}-{name}")


def lost(record: Record | None) -> Difference | None:
    """Mean of the points lost, with its interval over chips."""
    own = losses(record)
    if own is None:
        return None
    value, low, high = stats.bootstrap_interval(own)
    return Difference(value, low, high, float("nan"))


def diverged(record: Record | None) -> bool:
    """Whether training left every chip near chance."""
    return record is not None and max(record.metrics["accuracies"]) < CHANCE


def gained(one: Record | None, two: Record | None) -> Difference | None:
    """What the first has over the second in points, paired over chips."""
    first, second = losses(one), losses(two)
    if first is None or second is None or first.shape != second.shape:
        return None
    return stats.paired_bootstrap(second, first)


def less(bound: float) -> words.Test:
    """Below a bound."""
    return lambda found: int(found.high < bound) - int(found.low >= bound)


def more(bound: float) -> words.Test:
    """Above a bound."""
    return lambda found: int(found.low > bound) - int(found.high <= bound)


# Tables


def expected(records: Records) -> list[Hypothesis]:
    """The hypotheses, in the words of the table, with their comparisons."""

    def loss(net: str, method: str, name: str) -> Difference | None:
        return lost(point(records, net, method, name))

    def over(net: str, one: tuple[str, str], two: tuple[str, str]) -> Any:
        return gained(point(records, net, *one), point(records, net, *two))

    return [
        Hypothesis(
            "I1",
            "at (10, 10) ITT loses less than 1 point",
            [Claim(NETS[n], loss(n, "itt", HARD), less(STUCK)) for n in NETS],
        ),
        Hypothesis(
            "I2",
            "up to sigma 1 ITT loses less than 1.1 points",
            [
                Claim(f"{NETS[n]}, {POINTS[p].title}", loss(n, "itt", p), less(VARIED))
                for n in NETS
                for p in MILD
            ],
        ),
        Hypothesis(
            "I3",
            "of 20 %, cells stuck at low resistance cost no action more",
            [
                Claim(
                    f"{NETS[n]}, (0, 20) minus (20, 0)",
                    over(n, ("none", "hrs20"), ("none", "lrs20")),
                    more(0),
                )
                for n in NETS
            ],
        ),
        Hypothesis(
            "I4",
            "at (10, 10) redundancy alone loses more than 1 point",
            [Claim(NETS[n], loss(n, "spare", HARD), more(STUCK)) for n in NETS],
        ),
        Hypothesis(
            "I5",
            "at (10, 10) ITT gains less than 1 point over retraining",
            [
                Claim(NETS[n], over(n, ("itt", HARD), ("retrain", HARD)), less(STUCK))
                for n in NETS
            ],
        ),
        Hypothesis(
            "I6",
            "with no fault, retraining gains less than half a point",
            [
                Claim(NETS[n], over(n, ("retrain", "s00"), ("none", "s00")), less(0.5))
                for n in NETS
            ],
        ),
    ]


def _hypotheses(records: Records) -> Table:
    rows = [
        [f"{h.name}: {h.text}", h.verdict(), h.figures()] for h in expected(records)
    ]
    notes = [
        "On MNIST, in points of test accuracy, with 95 % bootstrap intervals over "
        "chips; differences are paired over chips. Supported: every interval bears the "
        "hypothesis out. Contradicted: at least one speaks against it. Not supported: "
        "neither."
    ]
    return Table(
        ("hypothesis", "verdict", "numbers"),
        rows,
        caption="The hypotheses written down before the run.",
        align="lll",
        notes=notes,
    )


def _claims(records: Records) -> Table:
    """The paper's claims against what ITT loses at every point."""
    rows: list[list[Any]] = []
    sources = []
    for net, title in NETS.items():
        for name, own in POINTS.items():
            record = point(records, net, "itt", name)
            sources.append(record)
            bound = VARIED if own.varied else STUCK
            found, each = lost(record), losses(record)
            if found is None or each is None:
                rows.append([title, own.title, None, None, bound, None])
                continue
            mark = less(bound)(found)
            met = {1: "met", -1: "not met", 0: "undecided"}[mark]
            if diverged(record):
                met += ": diverged"
            shown = (found.difference, found.low, found.high)
            rows.append([title, own.title, shown, float(each.max()), bound, met])
    notes = [
        "The paper's abstract: less than 1 % lost at 20 % of stuck cells, less than "
        "1.1 % under variation. How its 20 % divide, and its spreads, are not known: "
        "(10, 10) is the point that is judged, the others stand beside it. `met`: the "
        "whole interval lies below the bound. Diverged: every chip ends near chance."
    ]
    columns = ("net", "point", "ITT loses, points", "worst chip", "bound", "")
    return Table(
        columns,
        rows,
        caption="ITT on MNIST against the bounds that the paper claims.",
        align="lllrrl",
        digits={"ITT loses, points": 2, "worst chip": 2, "bound": 1},
        notes=notes,
        sources=sources,
    )


def summary(record: Record | None) -> str | None:
    """Mean, 5th percentile and worst chip, in per cent."""
    if record is None:
        return None
    own = 100 * np.asarray(record.metrics["accuracies"])
    return f"{own.mean():.1f} / {np.quantile(own, 0.05):.1f} / {own.min():.1f}"


def _accuracies(records: Records, net: str, dataset: str) -> Table:
    """Every method at every point of one net."""
    here = records.where(kind="point", net=net, dataset=dataset)
    shown = {r.config["point"] for r in here}
    names = [p for p in POINTS if p in shown or (dataset == "mnist")]
    rows: list[list[Any]] = []
    for name in names:
        cells = [
            summary(here.get(f"point-{net}-{dataset}-{method}-{name}"))
            if applies(method, POINTS[name])
            else NONE
            for method in METHODS
        ]
        rows.append([POINTS[name].title, *cells])
    clean = here[0].metrics["clean"] if len(here) else None
    of = "" if clean is None else f" The net itself: {100 * clean:.2f} %."
    count = here[0].config["chips"] if len(here) else 0
    notes = [
        f"Test accuracy in per cent: mean / 5th percentile / worst of {count} chips. "
        "Points: cells stuck at (low, high) resistance in per cent, or the spread of "
        "lognormal write noise." + spare_rows(here)
    ]
    return Table(
        ("point", *METHODS.values()),
        rows or [[NONE, *[None] * len(METHODS)]],
        caption=f"{NETS[net]} on {DATASETS[dataset]}.{of}",
        align="l" * (1 + len(METHODS)),
        notes=notes,
    )


def spare_rows(records: Records) -> str:
    """What spare rows the chips of some records have, in words."""
    found = sorted(
        {
            (c["spare"], c.get("spare_conv", c["spare"]))
            for c in (record.config for record in records)
            if "spare" in c
        }
    )
    if not found:
        return ""
    lenet = all(record.config["net"] == "lenet" for record in records)
    words = [
        f"{dense} of each dense layer, {conv} of each convolution"
        if lenet
        else f"{dense} of each layer"
        for dense, conv in found
    ]
    return f" Spare rows: {'; '.join(words)}."


def _yields(records: Records) -> Table:
    rows: list[list[Any]] = []
    for net, title in NETS.items():
        found = records.where(kind="yield", net=net)
        for method in ("none", "retrain", "itt"):
            record = found.get(f"yield-{net}-mnist-{method}-{HARD}")
            own = losses(record)
            if own is None:
                rows.append([title, METHODS[method], None, None, None])
                continue
            good = stats.wilson(int((own <= STUCK).sum()), len(own))
            share = tuple(100 * end for end in good)
            rows.append([title, METHODS[method], len(own), share, float(own.max())])
    return Table(
        ("net", "method", "chips", "within 1 point, %", "worst loses, points"),
        rows,
        caption="Yield at (10, 10) on MNIST, with Wilson's interval.",
        align="llrlr",
        digits={"within 1 point, %": 0, "worst loses, points": 2},
    )


def _parts(records: Records) -> Table:
    """ITT with one part less, or more, at a time."""
    rows: list[list[Any]] = []
    sources = []
    for net, title in NETS.items():
        whole = point(records, net, "itt", HARD)
        rows.append([title, "ITT", _interval(lost(whole)), NONE])
        sources.append(whole)
        for method, words_ in ablations(net).items():
            own = records.get(f"ablation-{net}-mnist-{method}-{HARD}")
            sources.append(own)
            gap = _interval(gained(whole, own))
            rows.append([title, words_, _interval(lost(own)), gap])
        plain = point(records, net, "retrain", HARD)
        gap = _interval(gained(whole, plain))
        rows.append([title, "retraining alone", _interval(lost(plain)), gap])
        sources.append(plain)
    notes = [
        "At (10, 10) on MNIST, the same chips, steps and, but for retraining alone, "
        "rate. `ITT gains`: ITT minus that row, paired over chips."
    ]
    columns = ("net", "method", "loses, points", "ITT gains, points")
    return Table(
        columns,
        rows,
        caption="What each part of ITT is worth.",
        align="llll",
        digits=2,
        notes=notes,
        sources=sources,
    )


def _interval(found: Difference | None) -> tuple[float, float, float] | None:
    return None if found is None else (found.difference, found.low, found.high)


def _reduced(records: Records) -> str:
    """What a run is, in words."""
    own = [r for r in records if r.config.get("kind") == "point"]
    if not own:
        return "Not run."
    c = own[0].config
    source = "a made-up twin of the data" if c["synthetic"] else "all of the data"
    steps = {r.config["net"]: r.config["steps"] for r in own}
    counts = ", ".join(f"{NETS[n]} {s}" for n, s in steps.items())
    return (
        f"Nets trained on {source}; {c['test']:,} test images; {c['chips']} chips a "
        f"point; steps of {c['batch']} images for each chip and trained method: "
        f"{counts}. Rates from three, on chips and images that no result has; seed "
        f"{c['seed']}. ITT's other numbers were set before the run, after a few trials "
        "of the MLP on validation chips, and are the same for both nets."
    )
