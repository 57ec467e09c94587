"""ITT and its relatives: a net trained for one chip whose defects are known.

Accuracy on chips with stuck cells and with lognormal spread: of no action; fault-aware
pruning without training (FAP: a weight that touches a faulty cell counts as 0, which
takes a switch at each cell) and with it (FAP+T); weights programmed by the map, so that
each comes out as near as its cells allow; redundancy only (rows assigned, spare rows
among them, no training); retraining through the chip's map; and ITT: assignment, column
flips, programming by the map, reduce and freeze, a penalty and, for LeNet-5, layer-wise
stages and a few steps on the device. One-sided pairs, a scale for each column, 64
levels, 10 to 100 uS,
cells stuck at the ends of that range. Points are (stuck at low, at high resistance) in
per cent of cells. ITT follows the published abstract and figure, and notes on the
predecessor at DATE 2017; the paper's text is closed.

Written down before the run. I1: at (10, 10) ITT loses less than 1 point, for both nets
on MNIST. I2: under lognormal spread it loses less than 1.1 points, for both nets, up
to sigma 1. I3: at 20 % in all, cells stuck at low resistance cost no action more than
cells stuck at high resistance. I4: at (10, 10) redundancy alone loses more than a
point. I5: what ITT does beyond retraining is worth less than a point at (10, 10). I6:
with no fault, retraining gains less than half a point: more training is not healing.

Command: python -m benchmarks run rram_itt
Paper: ITT-RNA, DOI 10.1109/TCAD.2020.2989373, abstract: less than 1 % lost at 20 % of
stuck cells, less than 1.1 % under variation, for MLP and CNN. Split and spreads are not
known.
Cost: 3 h on 1 core, 2 h as two processes, one for each net
Rows: 255
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _rram_itt_plan as plan
from benchmarks.tables import _rram_itt_report as reporting


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    nets: tuple[str, ...] = tuple(plan.NETS)
    """Which nets: mlp, lenet."""
    datasets: tuple[str, ...] = tuple(plan.DATASETS)
    """Which data: mnist, fashion."""
    parts: tuple[str, ...] = ("points", "yield", "ablation", "budget", "overhead")
    """Which parts of the table."""
    methods: tuple[str, ...] = tuple(plan.METHODS)
    """Which methods."""
    points: tuple[str, ...] = tuple(plan.POINTS)
    """Points on MNIST."""
    lenet_points: tuple[str, ...] = tuple(plan.POINTS)
    """Those of them that LeNet-5 is at."""
    fashion_points: tuple[str, ...] = ("s00", "s20", "sigma1")
    """Points on Fashion-MNIST; no other part runs there."""
    yield_nets: tuple[str, ...] = ("mlp", "lenet")
    """Nets whose yield is taken at (10, 10)."""
    yield_methods: tuple[str, ...] = ("none", "retrain", "itt")
    """Methods whose yield is taken."""
    chips: int = 20
    """Chips of a point."""
    many: int = 100
    """Chips of a yield."""
    steps_mlp: int = 200
    """Training steps of the MLP for each chip."""
    steps_lenet: int = 150
    """Training steps of LeNet-5 for each chip."""
    batch: int = 128
    """Images of a step."""
    rates: tuple[float, ...] = (5e-4, 2e-3, 5e-3, 1.25e-2, 3e-2)
    """First learning rates to choose from, for each trained method, net and kind of
    point; they fall to zero as a cosine."""
    trials: int = 3
    """Chips that choices are made on; no result has them."""
    ablated: tuple[str, ...] = tuple(plan.PARTS)
    """Parts that ITT goes without, or with, one at a time."""
    budgets: tuple[int, ...] = (16, 32, 64, 128, 256)
    """Numbers of steps, each a run of its own, that are compared."""
    budget_chips: int = 20
    """Chips that these are compared on; no result and no choice has them."""
    valid: int = 2000
    """Validation images."""
    test: int = 10000
    """Test images."""
    spare_mlp: int = 20
    """Spare rows of each crossbar of the MLP."""
    spare_lenet: int = 8
    """Spare rows of each crossbar of LeNet-5's dense layers."""
    spare_conv: int = 0
    """Spare rows of each of its convolutions: `rram.permute` gives them none."""
    tolerance: float = 0.1
    """A weight is afflicted if it is off by more than this share of its column."""
    freeze: float = 0.2
    """Share of afflicted weights that ITT ends up freezing."""
    penalty: float = 1e-4
    """Factor of ITT's penalty."""
    device_steps: int = 10
    """Of the steps, those that ITT takes on the device, for LeNet-5."""
    device_rate: float = 0.02
    """Rate of those steps, plain gradient descent."""
    staged: float = 0.25
    """Share of the steps that ITT takes layer by layer, for LeNet-5."""
    importance: int = 2048
    """Training images that importance is measured on."""
    rounds: int = 20
    """Rounds of timing."""
    seed: int = 0
    """Seed of chips and of the order of batches."""
    synthetic: bool = False
    """Take a small made-up twin of the data."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            nets=("mlp",),
            datasets=("mnist",),
            methods=("none", "itt"),
            points=("s20", "sigma1"),
            yield_methods=("itt",),
            chips=2,
            many=2,
            steps_mlp=4,
            batch=16,
            rates=(2e-3,),
            trials=2,
            ablated=("freezing",),
            budgets=(4,),
            budget_chips=2,
            valid=100,
            test=100,
            importance=128,
            rounds=2,
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Runs the parts that are asked for; finished rows are kept."""
    from benchmarks.tables import _rram_itt_measure as measure
    from benchmarks.tables._rram_itt_rows import Work

    work = Work(config, session)
    for dataset in config.datasets:
        for net in config.nets:
            if "points" in config.parts:
                work.points(net, dataset)
            if dataset != "mnist":
                continue
            if "yield" in config.parts and net in config.yield_nets:
                work.yields(net, dataset)
            if "ablation" in config.parts:
                work.ablations(net, dataset)
            if "budget" in config.parts:
                measure.budgets(work, net, dataset)
            if "overhead" in config.parts:
                measure.overhead(work, net, dataset)


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
