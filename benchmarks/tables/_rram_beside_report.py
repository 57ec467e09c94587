"""What the table of what stands beside a chip shows."""

import functools
from typing import Any

import numpy as np

from benchmarks.blocks import Block, Figure, Heading, Table, Text
from benchmarks.figures import bars_with_intervals, curves
from benchmarks.record import Record, Records
from benchmarks.stats import bootstrap_interval
from benchmarks.tables import _rram_beside_claims as claims
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables._rram_beside_chips import HEALING, PLACES
from benchmarks.tables._rram_beside_claims import Scores

END = " *"  # marks a rate at an end of its grid
NONE = "–"
WAYS = {
    "clean": "the clean base",
    "resampled": "resampled chips",
    "halora-0.001": "resampled chips, penalty 0.001",
    "halora-0.01": "resampled chips, penalty 0.01",
    "halora-0.1": "resampled chips, penalty 0.1",
}
CURVES = {
    "clean": "clean base",
    "resampled": "resampled",
    "halora-0.001": "penalty 0.001",
    "halora-0.01": "penalty 0.01",
    "halora-0.1": "penalty 0.1",
}
TIMES = {"0": "no noise", "0.5": "half", "1": "once", "2": "twice"}
SHORT = {
    "single": "alone,\nno chip",
    "merged": "merged,\nno chip",
    "single-chip": "alone,\non chip",
    "on-chip": "merged,\non chip",
    "digital": "merged,\nbeside",
    "heads": "new\nheads",
    "healed": "one\nLoRA",
}


def blocks(records: Records) -> list[Block]:
    """Returns the blocks of the report; complete even for no records."""
    found: list[Block] = [
        Heading("Beside a chip"),
        claims.hypotheses(records),
        _choices(records),
        Heading("A digital LoRA on a noisy base", 3),
    ]
    if claims.noise(records, "chosen", "clean", "1") is not None:
        found.append(_noise_figure(records))
    found += [_noise(records), Heading("Merged adapters under faults", 3)]
    if any(claims.place(records, method, "merged") for method in plan.METHODS):
        found.append(_places_figure(records))
    return [*found, _places(records), Text(_reduced(records))]


def _choices(records: Records) -> Table:
    """The noise and the faults that validation chose."""
    rows: list[list[Any]] = []
    for name, title, number in (
        ("noise", "noise of training, of a tile's largest weight", "sigma"),
        ("fault", "stuck cells, half of them at low resistance, %", "total"),
    ):
        record = records.get(name)
        if record is None:
            rows.append([title, None, None, None])
            continue
        own, unit = record.metrics, 1 if name == "noise" else 100
        value = f"{unit * own[number]:g}"
        rows.append([title, value, 100 * own["lost"], bool(own["in_band"])])
    return Table(
        ("what", "chosen", "lost", "in band"),
        rows,
        caption="What validation chose, on chips that are not scored, and the points "
        "that it costs there.",
        align="lrrl",
        digits=1,
        notes=[
            "Noise: what twice of it costs a LoRA that was trained on the clean base, "
            "nearest to 10 points. Faults: what they cost the base on MNIST with fc1 "
            "on the chip, nearest to 20. In band: between 10 and 30 points are lost."
        ],
    )


def _percent(own: Scores | None) -> tuple[float, float, float] | None:
    """The mean in per cent with its interval over seeds and chips."""
    if own is None:
        return None
    value, low, high = bootstrap_interval(own.values, resamples=2000)
    return (100 * value, 100 * low, 100 * high)


def _noise(records: Records) -> Table:
    """Every way at every noise."""
    rows, sources = [], []
    for point, title in plan.POINTS.items():
        for way, what in WAYS.items():
            own = list(records.where(kind="halora", point=point, way=way))
            cells = [_percent(claims.noise(records, point, way, t)) for t in TIMES]
            sigma = own[0].config["sigma"] if own else None
            name = title if sigma is None else f"{title}, {sigma:g}"
            rows.append([name, what, *cells, _rate(own[0]) if own else None])
            sources.append(own or None)
    columns = ("noise of training", "LoRA trained on", *TIMES.values(), "rate")
    return Table(
        columns,
        rows,
        caption="Accuracy on Fashion-MNIST in per cent, by the noise of the test in "
        "units of that of the training.",
        align="llllllr",
        digits=1,
        sources=sources,
        notes=[
            "With 95 % bootstrap intervals over training seeds and chips. Rate: the "
            "one that was chosen on validation at the noise of training; * where it is "
            "the least or the largest that was tried."
        ],
    )


def _rate(record: Record) -> str:
    rate, grid = record.metrics["rate"], record.config["rates"]
    return f"{rate:g}{END * (rate in (min(grid), max(grid)))}"


def _noise_figure(records: Records) -> Figure:
    """Accuracy against noise."""
    series = {}
    for way, what in CURVES.items():
        own = records.where(kind="halora", point="chosen", way=way)
        found = {t: _percent(claims.noise(records, "chosen", way, t)) for t in TIMES}
        known = {t: value for t, value in found.items() if value is not None}
        if known:
            x = [float(t) * own[0].config["sigma"] for t in known]
            parts = [[value[i] for value in known.values()] for i in range(3)]
            series[what] = (x, *parts)
    ends = "; ".join(
        f"{n}: {y[0]:.0f} to {y[-1]:.0f} %" for n, (_, y, *_) in series.items()
    )
    return Figure(
        functools.partial(
            curves, series, xlabel="noise of the test", ylabel="accuracy, %"
        ),
        "Accuracy on Fashion-MNIST against the noise of the test, relative to a tile's "
        "largest weight, by what the LoRA was trained on. Bands are 95 % intervals "
        "over training seeds and chips.",
        f"From no noise to twice that of training: {ends}",
        "beside-noise",
    )


def _places(records: Records) -> Table:
    """Every method at every place."""
    rows, sources = [], []
    for method, title in plan.METHODS.items():
        for name, what in PLACES.items():
            kind = claims.KINDS[name]
            own = list(records.where(kind=kind, method=method))
            cells = [
                _percent(claims.place(records, method, name, task))
                for task in (*plan.TASKS, "")
            ]
            rows.append([title, what, *cells, _back(records, method, name)])
            sources.append(own or None)
    return Table(
        ("adapter", "place", *plan.TASKS.values(), "mean", "brought back, %"),
        rows,
        caption="Accuracy in per cent of three adapters over one base, each with its "
        "own head: alone, merged, on a chip, and healed.",
        align="llllllr",
        digits=1,
        sources=sources,
        notes=[
            "With 95 % bootstrap intervals over training seeds and chips. Brought "
            "back: of what the chip takes from the merged adapter beside it, mean over "
            "tasks; above 100 where training for the chip also undoes what the merge "
            "cost. The last two rows show that training by itself: the same images, on "
            "chips without faults."
        ],
    )


def _back(records: Records, method: str, name: str) -> str | None:
    """The share of the chip's loss that comes back."""
    if name not in HEALING:
        return NONE
    own = [claims.place(records, method, n) for n in (name, "digital", "merged")]
    means = [one.values.mean() for one in own if one is not None]
    if len(means) < len(own):
        return None
    lost = means[2] - means[1]
    return f"{100 * (means[0] - means[1]) / lost:.0f}" if lost > 0 else NONE


def _places_figure(records: Records) -> Figure:
    """The mean over tasks by place."""
    series = {
        title: [_percent(claims.place(records, method, name)) for name in SHORT]
        for method, title in plan.METHODS.items()
    }
    known = {
        title: {n: v[0] for n, v in zip(SHORT, own, strict=True) if v is not None}
        for title, own in series.items()
    }
    words = "; ".join(
        f"{title}: " + ", ".join(f"{PLACES[n]} {v:.0f} %" for n, v in own.items())
        for title, own in known.items()
    )
    return Figure(
        functools.partial(
            bars_with_intervals, list(SHORT.values()), series, ylabel="accuracy, %"
        ),
        "Mean accuracy over three tasks by where the adapters stand. Lines are 95 % "
        "intervals over training seeds and chips.",
        words,
        "beside-places",
    )


def _reduced(records: Records) -> str:
    """What was small, in words."""
    text = []
    for kind in ("halora", "healing"):
        own = list(records.where(kind=kind))
        if not own:
            text.append(f"{'HaLoRA' if kind == 'halora' else 'Merges'}: not run.")
            continue
        c, seeds = own[0].config, len({r.seed for r in own})
        first = (
            f"One base, {seeds} training seeds, {c['chips']} chips; {len(c['rates'])} "
            f"learning rates for every way, chosen on {c['valid']} validation images"
        )
        if kind == "halora":
            text.append(
                f"HaLoRA: {first} and {c['tuning_chips']} other chips; "
                f"{c['steps']:,} steps of {c['batch']} images, a new chip every "
                f"{c['resample']}; rank {c['rank']}."
            )
            continue
        mean = np.mean([r.metrics["weight"] for r in own])
        text.append(
            f"Merges: {first} of each task; adapters of rank {c['merged_rank']}, "
            f"{c['adapter_steps']:,} steps of {c['batch']} images; one of "
            f"{len(c['weights'])} weights of the merge (mean of those chosen: "
            f"{mean:.2f}); LoRI-S keeps {100 * c['density']:g} % of B. Healing: rank "
            f"{c['heal_rank']}, {c['heal_steps']} steps of {c['heal_batch']} images of "
            f"each task for each chip, rates chosen on {c['tuning_chips']} other chips "
            "and another training seed."
        )
    return "\n\n".join(text)
