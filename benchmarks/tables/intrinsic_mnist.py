"""The intrinsic dimension of MNIST: how few random directions are enough.

Accuracy of nets that train `d` numbers in one random subspace, against `d`, and the
smallest `d` that reaches 90 % of a baseline: of direct training (local), and of 1
(overall). Beside it shuffled pixels, random labels, the dense projection as a check, a
toy problem whose answer is known, and a bound on the true error from the bits that the
trained numbers take.

Command: python -m benchmarks run intrinsic_mnist
Paper: Li et al. 2018, arXiv:1804.08838, and its authors' notebooks. FC 784-200-200-10
(D = 199,210): direct .980 to .982; at d = 100, 300, 500, 750, 1000, 1500 .58 to .61,
.82, .862 to .869, .891 to .900, .902 to .916, .923 to .930; d90 published 750, from the
notebooks 625 local and 850 overall. LeNet-5 (D = 44,426): published 290, 275 local and
290 overall. Shuffled pixels: 750 and 1,400. Random labels on 100, 50, 10 % of the
images, FC 5 x 400: 190,000, 130,000, 90,000. Toy problem: 10.
Written down before the run: see docs/intrinsic.md, M1 to M9.
Cost: about 3 h on 1 core, without the search
Of that main 37 min for fc and 20 for lenet, dense 43, pixels 15 and 20, labels 20,
epochs 10.
"""

import dataclasses

from benchmarks.record import Records
from benchmarks.report import Block
from benchmarks.runner import Session
from benchmarks.tables import _intrinsic_plan as plan
from benchmarks.tables import _intrinsic_report as reporting


@dataclasses.dataclass(frozen=True)
class Config:
    """Options; each becomes a flag."""

    nets: tuple[str, ...] = tuple(plan.NETS)
    """Which nets: fc, lenet."""
    parts: tuple[str, ...] = plan.PARTS
    """Which parts: toy, main, dense, pixels, labels, epochs, search, bound."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Seeds of the curves: start, projection and order of images."""
    seeds_fc: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the FC net's curve, and of the search that adds to it."""
    ds: tuple[int, ...] = ()
    """Of a part's dimensions only these; none: all of them."""
    ds_fc: tuple[int, ...] = tuple(plan.AUTHORS)
    """Dimensions of the FC net's curve."""
    ds_lenet: tuple[int, ...] = (100, 200, 300, 400, 600)
    """Dimensions of LeNet-5's curve."""
    ds_pixels_fc: tuple[int, ...] = (500, 750, 1000)
    """Dimensions of the FC net with shuffled pixels."""
    ds_pixels_lenet: tuple[int, ...] = (300, 600, 1000, 1500, 2000)
    """Dimensions of LeNet-5 with shuffled pixels."""
    ds_dense: tuple[int, ...] = (300,)
    """Dimensions at which the dense projection is a check."""
    ds_labels: tuple[int, ...] = (250, 500, 1000, 2000, 3000, 4500, 6500, 10000, 15000)
    """Dimensions with random labels."""
    seeds_dense: tuple[int, ...] = (0, 1, 2)
    """Seeds of the dense projection."""
    projection: str = "fastfood"
    """The projection of all parts but the dense one: fastfood, sparse or gather."""
    epochs: int = 100
    """Epochs of a run of the FC net."""
    epochs_lenet: int = 40
    """Epochs of a run of LeNet-5: reduced."""
    epochs_dense: int = 100
    """Epochs with the dense projection."""
    batch: int = 128
    """Images of a step."""
    rate: float = 1e-3
    """Adam's learning rate; it is the paper's, so no data choose it."""
    b2: float = 0.99
    """Adam's second decay, the authors' default."""
    l2: float = 1e-4
    """Factor of the squared norm of all kernels, as in the authors' scripts."""
    train: int = 50_000
    """Training images."""
    test: int = 10_000
    """Test images."""
    scores: int = 10
    """How often a run is scored on test images; only the last score counts."""
    fractions: tuple[float, ...] = (1.0, 0.5, 0.1)
    """Shares of the images with random labels that are learnt by heart."""
    label_images: int = 2000
    """All images with random labels; the paper has 50,000."""
    label_steps: int = 8000
    """Steps with random labels, whatever the number of images."""
    label_epochs: int = 500
    """Epochs with random labels where all shares have as many, as in the paper."""
    label_rate: float = 1e-3
    """Learning rate with random labels; the paper has 1e-4 for 195,000 steps."""
    shuffle_seed: int = 17
    """Seed of the order of pixels and of random labels."""
    search_fc: tuple[int, int] = (500, 1000)
    """Between which dimensions d90 of the FC net is searched."""
    search_lenet: tuple[int, int] = (100, 400)
    """The same for LeNet-5."""
    ratio: float = 1.08
    """Ratio of neighbours on the grid of the search."""
    levels: tuple[int, ...] = (3, 5, 9, 17, 33, 65)
    """Numbers of levels that trained numbers are rounded to, for the bound."""
    delta: float = 0.05
    """Probability that a bound fails."""
    choices: int = 4096
    """Settings that the bound pays for: more than all dimensions, seeds and levels."""
    ds_toy: tuple[int, ...] = tuple(range(1, 16))
    """Dimensions of the toy problem."""
    seeds_toy: tuple[int, ...] = tuple(range(10))
    """Seeds of the toy problem."""
    synthetic: bool = False
    """Take a small made-up twin of the data, and of the FC net."""

    def smoke(self) -> "Config":
        """Returns options that take seconds and need no network."""
        return dataclasses.replace(
            self,
            nets=("fc",),
            parts=("toy", "main", "pixels", "search", "bound"),
            seeds=(0, 1),
            seeds_fc=(0, 1),
            ds_fc=(10, 20),
            ds_pixels_fc=(20,),
            ds_dense=(10,),
            seeds_dense=(0,),
            ds_labels=(20,),
            epochs=2,
            epochs_lenet=2,
            epochs_dense=2,
            batch=32,
            train=100,
            test=50,
            fractions=(1.0,),
            label_images=40,
            label_steps=4,
            label_epochs=2,
            search_fc=(10, 20),
            ratio=1.5,
            levels=(3,),
            ds_toy=(9, 10),
            seeds_toy=(0, 1),
            synthetic=True,
        )


def run(config: Config, session: Session) -> None:
    """Runs the parts that are asked for; finished rows are kept."""
    from benchmarks.tables._intrinsic_rows import Work

    work = Work(config, session)
    if "toy" in config.parts:
        work.toy()
    for part in ("main", "pixels", "search", "bound"):
        for net in config.nets:
            if part in config.parts:
                getattr(work, part)(net)
    if "fc" in config.nets and "dense" in config.parts:
        work.dense()
    if "fc" in config.nets and "labels" in config.parts:
        work.labels()
    if "fc" in config.nets and "epochs" in config.parts:
        work.epochs()


def report(records: Records) -> list[Block]:
    """Returns the blocks of the report."""
    return reporting.blocks(records)
