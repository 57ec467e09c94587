"""How many numbers heal a broken chip: MiniLM's encoder with converters, on two tasks.

A net that was fine-tuned on TREC questions or on movie reviews is programmed into a
crossbar with stuck cells: the six matrices of each of the last two of MiniLM's six
layers, in tiles of 128 rows, with 8-bit converters of inputs and of tile sums, and read
noise of 1 % of the largest conductance, fresh in each product. The four layers below,
biases, norms, attention and head are digital: the lower layers run once, on ideal
hardware. Then each of 20 chips is healed by each way, with the same labelled texts,
steps, batches and number of learning rates, and scored through the converters. Training
goes through the weights that the chip is known to hold, without converters and noise.
Every trained way also runs on chips without faults: further training is not healing.
A few ways run at another polarity of faults, and with fewer labelled texts.

Written down before the run. H1: a new head alone recovers less than half of the loss.
H2: LoRA of rank 8 recovers more than half. H3: the SVD of the known error, of the same
size, recovers less than a quarter. H4: weighted by the activations, it recovers more
than without. H5: LoRI-D of rank 8, with its A frozen, is not below LoRA of rank 2.
H6: the fault-aware mask is above the mask by calibration. H7: on chips without faults
no way gains as much as 2 points.

Command: python -m benchmarks run rram_healing_text
Paper: HaLoRA, arXiv:2502.19747, and AHWA-LoRA, arXiv:2411.17367, put LoRA beside an
    analog base, on other models and tasks: no number of theirs stands here.
Cost: 2 h on one core; `--tasks trec` and `--tasks sentiment_movie` can run at once
Rows: 116
"""

import dataclasses
import time
from typing import Any

import numpy as np

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.singles import Options
from benchmarks.tables import _rram_healing_text_report as reporting
from benchmarks.tables import _rram_healing_text_ways as ways
from benchmarks.tables._rram_healing_text_chips import CLEAN, Held
from benchmarks.tables._rram_healing_text_ways import FEW, TRAINED, WAYS
from benchmarks.tables._rram_healing_text_work import Net

CLEAN_WAYS = ("none", "head", *TRAINED)
RATES = {
    "lora": (1e-3, 3e-3, 1e-2),
    "digital": (1e-3, 3e-3, 1e-2),
    "subspace": (1e-2, 3e-2, 1e-1),
}
RETRAIN_RATES = (1e-4, 3e-4, 1e-3)


@dataclasses.dataclass(frozen=True)
class Config(Options):
    """Options; each becomes a flag. Those of a study decide the net that is broken."""

    seeds: tuple[int, ...] = (0,)
    """Seed of the fine-tuned net and of all chips."""
    tasks: tuple[str, ...] = ("trec", "sentiment_movie")
    """Tasks; each has a net of its own."""
    chips: int = 20
    """Chips that results are read off."""
    tuning: int = 2
    """Other chips, on which stuck rate and learning rates are chosen."""
    clean: int = 2
    """Chips without faults."""
    stuck: tuple[float, ...] = (0.005, 0.01, 0.02, 0.04, 0.08, 0.16)
    """Shares of stuck cells to choose from."""
    lrs: float = 0.5
    """Share of the stuck cells that are stuck at low resistance."""
    aim: tuple[float, float] = (0.1, 0.3)
    """What the chips are meant to lose, as a share of the texts."""
    bits: int = 8
    """Bits of the converters of inputs and of tile sums."""
    read: float = 0.01
    """Standard deviation of read noise, as a share of the largest conductance."""
    tile: int = 128
    """Rows of a tile."""
    density: float = 0.1
    """Share of B's entries that LoRI-S keeps."""
    heal_steps: int = 32
    """Steps of each trained way on each chip."""
    heal_rates: dict[str, tuple[float, ...]] = dataclasses.field(
        default_factory=lambda: dict(RATES)
    )
    """Peak learning rates to choose from, by what is trained: as many for each."""
    retrain_rates: tuple[float, ...] = RETRAIN_RATES
    """As many for retraining through the map, which moves every weight."""
    more_lrs: tuple[float, ...] = (5 / 6,)
    """Further shares of stuck cells at low resistance: points for a few ways."""
    fewer: tuple[int, ...] = (32,)
    """Smaller numbers of labelled texts, for a few ways."""
    labelled: int = 256
    """Labelled texts for new heads and for training."""
    texts: int = 128
    """Test texts, and as many validation texts."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        own = {
            "seeds": (0,),
            "tasks": ("trec",),
            "chips": 2,
            "tuning": 1,
            "clean": 1,
            "stuck": (0.05, 0.2),
            "tile": 8,
            "heal_steps": 2,
            "heal_rates": {name: (found[0],) for name, found in RATES.items()},
            "retrain_rates": RETRAIN_RATES[:1],
            "more_lrs": (),
            "fewer": (16,),
            "labelled": 32,
            "texts": 24,
        }
        return dataclasses.replace(self, **(self.tiny() | own))


def run(config: Config, session: Session) -> None:
    """Breaks and heals each task's net; finished chips and rows are kept."""
    for task in config.tasks:
        for label, own in points(config):
            net = Net(own, session, task, label)
            names = tuple(name for name in WAYS if not label or name in FEW)
            if missing := _missing(own, session, net, names):
                _task_rows(own, session, net, names, missing)


def points(config: Config) -> list[tuple[str, Config]]:
    """The main point, then others for a few ways, each with a label for its rows."""
    found = [("", config)]
    for share in config.more_lrs:
        found.append((f"lrs{100 * share:.0f}", dataclasses.replace(config, lrs=share)))
    for count in config.fewer:
        found.append((f"n{count}", dataclasses.replace(config, labelled=count)))
    return found


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


Rows = dict[str, dict[str, Any]]


def _rows(config: Config, net: Net, names: tuple[str, ...]) -> Rows:
    """The config of each row of a task, by its name."""
    found = {}
    for name in names:
        given = {**net.given(), **net.more(name), "way": name, "test": config.texts}
        found[f"{net.label}-{name}"] = {**given, "chips": config.chips, "faults": True}
        if name in CLEAN_WAYS:
            clean = {**given, "chips": config.clean, "faults": False}
            found[f"{net.label}-clean-{name}"] = clean
    return found


def _missing(
    config: Config, session: Session, net: Net, names: tuple[str, ...]
) -> Rows:
    """The rows that must run."""
    rows = _rows(config, net, names)
    return {r: own for r, own in rows.items() if session.row(r, **own) is None}


def _task_rows(
    config: Config, session: Session, net: Net, every: tuple[str, ...], missing: Rows
) -> None:
    """Goes through the chips, each with all ways that lack rows, then writes these."""
    wanted = {given["way"] for given in missing.values()}
    names = tuple(name for name in every if name in wanted)
    trained = [name for name in names if name in TRAINED]
    rates = {name: 0.0 for name in names}
    marks: dict[str, Any] = {name: {} for name in names}
    with session.progress(len(trained), f"{net.label}: learning rates") as bar:
        for name in sorted(trained, key=_masked_last):
            marks[name], rates[name] = net.rates(name), net.rate_of(name)
            bar.update()
    found: dict[str, dict[str, list[float]]] = {}
    runs = [(True, i) for i in range(config.chips)]
    runs += [(False, CLEAN + i) for i in range(config.clean)]
    with session.progress(len(runs), f"{net.label}: chips") as bar:
        for faults, number in runs:
            for name, own in _chip(net, faults, number, rates).items():
                row = f"{net.label}-{'' if faults else 'clean-'}{name}"
                kept = found.setdefault(row, {})
                for key, value in own.items():
                    kept.setdefault(key, []).append(float(value))
            bar.update()
    params, head = net.start
    whole = net.score(params, head)
    for row, given in missing.items():
        name = given["way"]
        tuned = {"rate": rates[name], "valid_loss_by_rate": marks[name]}
        metrics = _metrics(config, net, given, found[row], whole) | tuned
        session.save(
            row,
            metrics,
            config=given,
            series=found[row],
            seconds=sum(found[row]["seconds"]),
            seed=config.seeds[0],
        )


def _chip(
    net: Net, faults: bool, number: int, rates: dict[str, float]
) -> dict[str, dict[str, float]]:
    """Accuracy, loss and seconds of each way on one chip; kept on disk."""
    stuck = float(net.choice["rate"]) if faults else 0.0
    given = {**net.given(), "rates": rates, "number": number, "stuck_rate": stuck}
    row = f"chip-{net.label}-{number}"
    kept = net.session.load_arrays(row, config=given)
    if kept is None:
        held, kept = net.hold(stuck, number), {}
        # LoRI-S by calibration needs LoRI-D's run: it comes first, and is not repeated.
        order = sorted(rates, key=_masked_last)
        for name in [n for n in order if faults or n in CLEAN_WAYS]:
            kept[name] = _healed(net, name, held, rates[name])
        net.session.save_arrays(row, kept, config=given)
    return kept


def _masked_last(name: str) -> bool:
    """Sorts ways with a mask behind those that it may come from."""
    return bool(WAYS[name].mask)


def _healed(net: Net, name: str, held: Held, rate: float) -> dict[str, np.ndarray]:
    """One way on one chip."""
    begin = time.perf_counter()
    right, loss, training = net.heal(name, held, rate)
    own = {
        "accuracy": right,
        "loss": loss,
        "healing_seconds": training,
        "seconds": time.perf_counter() - begin,
    }
    return {key: np.array(value) for key, value in own.items()}


def _metrics(
    config: Config,
    net: Net,
    given: dict[str, Any],
    found: dict[str, list[float]],
    whole: float,
) -> dict[str, Any]:
    """What a record says of one way, over the chips."""
    right = np.array(found["accuracy"])
    stuck = float(net.choice["rate"]) if given["faults"] else 0.0
    used = net.device(stuck)
    names = ("p_lrs", "p_hrs", "g_min", "g_max", "read")
    trains_head = given["way"] == "head" or given["way"] in TRAINED
    size = (net.cut.width + 1) * net.classes
    return {
        "whole": whole,
        "accuracy": stats.bootstrap_interval(right)._asdict(),
        "fifth": float(np.percentile(right, 5)),
        "worst": float(right.min()),
        "cost": ways.cost(given["way"], net.cut, config.rank, config.density)._asdict(),
        "head": size if trains_head else 0,
        "device": {name: float(getattr(used, name)) for name in names},
        "lost_by_rate": {
            f"{rate:g}": float(lost)
            for rate, lost in zip(net.choice["tried"], net.choice["lost"], strict=True)
        },
        "data": net.singles.suite.facts[net.name],
    }
