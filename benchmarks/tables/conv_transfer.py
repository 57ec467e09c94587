"""Which adapter for a convolutional network? Garments from few images of a class.

EfficientNet-Lite0, trained on ImageNet, is to tell the ten garments of Fashion-MNIST
apart from 500 labelled images, or from 2,000. All that is learned is above a cut: the
last three of 16 blocks and the last convolution. A head on the frozen network, full
fine-tuning, LoRA in its three published forms for convolutions, DoRA, LoHa, LoKr,
SHiRA, a factor for each feature, and the biases or the norms alone.

Most kernels are 1 x 1, and there two of the forms are the same two products, the third
has a core between them. They part on the depthwise kernels. A reshaped matrix of rank 1
holds more numbers there than the kernel itself, so that it has a partner of its own
size; the others are brought to about 20,000 numbers, but for those that have a size of
their own.

Written down before the run. C1: every trained way beats the head on the frozen network.
C2: no way of about 20,000 numbers is worse than full fine-tuning, but for a point. C3:
the three forms do not differ: two convolutions and Tucker at one size, the reshaped
matrix and two convolutions at the larger one, within a point. C4: a change of
depthwise kernels beside the 1 x 1 kernels gains nothing, but for a point. C5: tuning
the norms is not worse than LoRA, but for a point. C6: LoHa, LoKr and DoRA are no better
than LoRA, but for a point. The 2,000 images were added after the run of 500, in which
nothing could be told from the head; the hypotheses are the same.

Command: python -m benchmarks run conv_transfer
Paper: none; a question of those who adapt convolutional networks.
Cost: 75 min on 1 core
Rows: 153
"""

import dataclasses
import time

from benchmarks import stats
from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.study.scores import digits
from benchmarks.tables import _conv_transfer_report as reporting
from benchmarks.tables._conv_transfer_ways import WAYS
from benchmarks.tables._conv_transfer_work import Work


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    ways: tuple[str, ...] = tuple(WAYS)
    """Which ways."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds: each draws other labelled images, another start and another order."""
    shots: tuple[int, ...] = (50, 200)
    """Labelled images of each class."""
    blocks: int = 3
    """How many of the last blocks are adapted; those below run once."""
    side: int = 64
    """Height and width that the images are brought to."""
    steps: int = 80
    """Steps of a run for 50 labelled images; others have as many rounds."""
    batch: int = 16
    """Images of a step."""
    rank: int = 2
    """Rank of LoRA and DoRA on 1 x 1 kernels."""
    large_rank: int = 8
    """Rank of the row that is as large as the reshaped matrix."""
    loha_rank: int = 2
    """Rank of both pairs of LoHa."""
    lokr_rank: int = 8
    """Rank of LoKr."""
    sparse: float = 0.0103
    """Share of the entries that SHiRA trains."""
    head_rate: float = 1e-3
    """Peak learning rate of the head, the same for every way."""
    factors_rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    """Peak learning rates of low-rank changes."""
    direct_rates: tuple[float, ...] = (1e-3, 4e-3, 1.6e-2)
    """As many of biases, norms, factors of features and sparse changes."""
    full_rates: tuple[float, ...] = (5e-5, 2e-4, 8e-4)
    """As many of full fine-tuning."""
    valid: int = 500
    """Validation images, by which rates and the head's penalty are chosen."""
    test: int = 2_000
    """Test images."""
    timed: int = 20
    """Steps of a timing, which is a row of its own."""
    synthetic: bool = False
    """Use made-up images and a tiny random network: no download."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            ways=("probe", "lora-all", "tucker", "norms"),
            seeds=(0,),
            shots=(3,),
            blocks=1,
            side=28,
            steps=34,
            timed=2,
            batch=8,
            factors_rates=(1e-3, 1e-2),
            direct_rates=(1e-3, 1e-2),
            valid=20,
            test=30,
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Trains and scores every way with every seed; rows are kept."""
    works: list[Work] = []
    for shots in config.shots:
        works.append(Work(config, session, shots, *works[:1]))
    rows = [(w, name, s) for w in works for name in config.ways for s in config.seeds]
    with session.progress(len(rows), "runs") as bar:
        for work, name, seed in rows:
            _row(work, name, seed)
            bar.update()
    for name in config.ways:
        _time(works[0], name)


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)


def _row(work: Work, name: str, seed: int) -> None:
    """One run of one way."""
    given = work.given(kind="run", way=name, seed=seed, test=work.options.test)
    row = f"{name}{work.tag}-s{seed}"
    if work.session.row(row, **given) is not None:
        return
    begin = time.perf_counter()
    rate, tried = (0.0, []) if name == "probe" else work.rate(name)
    found = work.run(name, seed, rate)
    labels = {split: own.labels for split, own in work.parts.items()}
    guess = {split: work.logits(found, split).argmax(axis=1) for split in labels}
    metrics = {
        "rate": rate,
        "rates_tried": tried,
        "trained": found.trained,
        "accuracy": stats.accuracy(guess["test"], labels["test"]),
        "valid_accuracy": stats.accuracy(guess["valid"], labels["valid"]),
        "predictions": {
            "labels": digits(labels["test"]),
            "test": digits(guess["test"]),
        },
    }
    work.session.save(
        row,
        metrics,
        config=given,
        series={"loss": [float(x) for x in found.losses]},
        seconds=time.perf_counter() - begin,
        seed=seed,
    )


def _time(work: Work, name: str) -> None:
    """Processor time of a step of one way."""
    given = work.given(kind="time", way=name, timed=work.options.timed)
    given |= {"shots": 0, "steps": 0}  # it goes for any number of them
    if name == "probe" or work.session.row(f"time-{name}", **given) is not None:
        return
    begin = time.perf_counter()
    found = work.run(name, 0, 1e-4, work.options.timed)
    work.session.save(
        f"time-{name}",
        {"seconds_per_step": found.seconds, "trained": found.trained},
        config=given,
        seconds=time.perf_counter() - begin,
        seed=0,
    )
