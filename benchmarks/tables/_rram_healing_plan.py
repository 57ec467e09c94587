"""What the table of healing runs: ways and sizes, fault points, parts."""

import dataclasses
from typing import Any

from benchmarks.chips.methods import GROUPS, Way, parse

NETS = {"mlp": "MLP 784-512-10", "lenet": "LeNet-5"}
PARTS = ("main", "clean", "labels", "dimension", "resampled")
POINTS = {"mlp": ("lrs", "hrs", "equal"), "lenet": ("lrs", "equal")}
SHAPES = {
    "mlp": {"fc1": (784, 512), "fc2": (512, 10)},
    "lenet": {
        "conv1": (25, 6), "conv2": (150, 16), "fc1": (256, 120), "fc2": (120, 84),
        "fc3": (84, 10),
    },
}  # fmt: skip
"""Kernels as matrices, rows by columns."""
WIDTHS = {net: max(min(own) for own in found.values()) for net, found in SHAPES.items()}
HELD_OUT = {
    "mlp": ("equal-low", "equal-high", "equal-clusters", "equal-clusters-low"),
    "lenet": ("equal-low",),
}
"""Points that no factor is fitted on. A low rate loses less, so that what a rank of 1
leaves is a larger share: there the ranks that suffice lie inside those that are run."""
SHIFT = {
    "equal-low": 0.5,
    "equal-high": 1.5,
    "equal-clusters": 1.0,
    "equal-clusters-low": 0.5,
}
CLUSTER = 8.0  # cells


def _sized(kind: str, *sizes: int) -> tuple[str, ...]:
    return tuple(f"{kind}-{size}" for size in sizes)


WAYS = {
    "mlp": (
        "none",
        *_sized("svd", 1, 2, 4, 8, 16, 32, 64, 128, 256),
        *_sized("svdw", 1, 2, 4, 8, 16, 32, 64),
        *_sized("patch", 100, 1_000, 10_000, 100_000),
        *_sized("patchw", 100, 1_000, 10_000, 100_000),
        "head",
        "bias",
        *_sized("lora", 1, 2, 4, 8, 16, 32),
        *_sized("lori-d", 1, 4, 16, 32, 64, 128),
        *_sized("lori-s", 200, 2_000, 8_000),
        *_sized("lori-f", 200, 2_000, 8_000),
        *_sized("subspace", 16, 64, 256, 1_024, 4_096),
        "retrain",
        "itt",
    ),
    "lenet": (
        "none",
        *_sized("svd", 1, 4, 16, 64),
        *_sized("svdw", 1, 4, 16),
        *_sized("patch", 1_000, 10_000),
        *_sized("patchw", 100, 1_000, 10_000),
        "head",
        "bias",
        *_sized("lora", 1, 2, 4, 8, 16),
        *_sized("lori-d", 2, 8, 32),
        "lori-s-2000",
        "lori-f-2000",
        *_sized("subspace", 16, 128, 1_024),
        "retrain",
        "itt",
    ),
}
ONE_SIZE = ("head", "bias", "lora-8", "lori-d-16", "lori-s-2000", "subspace-1024")
ONE_SIZE += ("retrain",)
LABELS = (10, 100, 1_000)
RATES = (1.25e-3, 5e-3, 2e-2, 8e-2, 0.2, 0.4)  # of adapters, heads and biases
WEIGHT_RATES = (6e-5, 2.5e-4, 1e-3, 5e-3, 2e-2, 8e-2)  # of what moves every weight
TOTALS = (
    0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.125, 0.15, 0.175, 0.2,
    0.225, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6,
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Options; each becomes a flag. Parts may run side by side: rows are files."""

    nets: tuple[str, ...] = ("mlp", "lenet")
    """Which nets."""
    parts: tuple[str, ...] = PARTS
    """Which parts of the table."""
    points: tuple[str, ...] = ("lrs", "hrs", "equal")
    """Which fault points; LeNet-5 has two of them."""
    groups: tuple[str, ...] = tuple(GROUPS)
    """Which groups of ways: each is one compiled call."""
    ways: tuple[str, ...] = ()
    """Which ways, such as `lora-8`; none: all of the plan."""
    chips: int = 100
    """Chips of the MLP."""
    lenet_chips: int = 20
    """Chips of LeNet-5."""
    wide_chips: int = 25
    """Chips of the MLP for random subspaces, whose every step forms all weights."""
    few_chips: int = 20
    """Chips of held-out points and of few labels; 5 for a clean chip."""
    tuning_chips: int = 4
    """Chips on which the learning rate is chosen; none of them is scored."""
    steps: int = 300
    """Training steps of every way on the MLP."""
    lenet_steps: int = 100
    """Training steps of every way on LeNet-5."""
    batch: int = 128
    """Images of a step."""
    rates: tuple[float, ...] = RATES
    """Learning rates of adapters to choose from, for every way, size and point."""
    weight_rates: tuple[float, ...] = WEIGHT_RATES
    """As many for retraining, ITT and subspaces, which move every weight."""
    labels: tuple[int, ...] = LABELS
    """Numbers of labelled images, beside all."""
    totals: tuple[float, ...] = TOTALS
    """Shares of stuck cells to choose from."""
    target: float = 0.2
    """Accuracy that a fault point should cost."""
    valid: int = 2000
    """Validation images for every choice."""
    norm_penalty: float = 0.1
    """Factor of HaLoRA's regulariser."""
    resample: int = 10
    """Steps that a chip lasts in training on resampled chips."""
    synthetic: bool = False
    """Use a small made-up twin of the images: no download."""

    def rates_of(self, group: str) -> tuple[float, ...]:
        """The learning rates of a group."""
        return self.rates if group == "low" else self.weight_rates

    def small(self) -> dict[str, Any]:
        """Values of a run of seconds."""
        return {
            "nets": ("mlp",),
            "parts": ("main", "clean"),
            "points": ("equal",),
            "ways": ("none", "svd-1", "patchw-100", "head", "lora-2", "retrain"),
            "chips": 3,
            "wide_chips": 3,
            "few_chips": 2,
            "tuning_chips": 2,
            "steps": 8,
            "batch": 32,
            "rates": (5e-3, 2e-2),
            "weight_rates": (1e-3, 5e-3),
            "labels": (10,),
            "totals": (0.1, 0.3),
            "valid": 50,
            "resample": 2,
            "synthetic": True,
        }

    def chosen(self, net: str, *, only: tuple[str, ...] = ()) -> list[list[Way]]:
        """The ways of a net, by group; of those in `only`, if there are any."""
        names = [
            name
            for name in WAYS[net]
            if (not self.ways or name in self.ways) and (not only or name in only)
        ]
        if self.ways and not only:
            names += [n for n in self.ways if n not in names]
        ways = [parse(name) for name in names]
        found = [[way for way in ways if way.group == group] for group in self.groups]
        return [group for group in found if group]


def dimension_ways(net: str) -> tuple[str, ...]:
    """The ways that the hypothesis on dimensions compares, and the spectrum."""
    kinds = ("lora", "subspace")
    return ("none", "svd-1", *(n for n in WAYS[net] if n.rpartition("-")[0] in kinds))
