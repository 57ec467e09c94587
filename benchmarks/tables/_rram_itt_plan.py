"""What the table of ITT compares: methods, their parts, and points of the sweeps."""

from typing import NamedTuple


class Recipe(NamedTuple):
    """What is done to a net for one chip; equal recipes compile once.

    Attributes:
        trained: Whether the weights are trained through the chip's map.
        pruned: Whether weights that touch a faulty cell are bypassed: they count as 0.
        assigned: Whether rows are assigned to rows of the crossbar, spare ones too.
        flipped: Whether the signs of columns are chosen.
        mapped: Whether weights are programmed by the map, so that each comes out as
            near as its cells allow.
        freezing: Whether afflicted weights are reduced to zero and frozen.
        penalised: Whether weights that come out wrong are penalised.
        staged: Whether layers are adjusted one after another.
        on_device: Whether the last few steps run on the programmed chip.
    """

    trained: bool = False
    pruned: bool = False
    assigned: bool = False
    flipped: bool = False
    mapped: bool = False
    freezing: bool = False
    penalised: bool = False
    staged: bool = False
    on_device: bool = False


OFF = Recipe(
    trained=True,
    assigned=True,
    flipped=True,
    mapped=True,
    freezing=True,
    penalised=True,
)
# Stages are for deeper nets, steps on the device for convolutional ones.
FULL = {"mlp": OFF, "lenet": OFF._replace(staged=True, on_device=True)}

METHODS = {
    "none": "no action",
    "fap": "FAP",
    "spare": "redundancy only",
    "map": "programmed by the map",
    "fap+t": "FAP+T",
    "retrain": "retraining",
    "itt": "ITT",
}
PLAIN = {
    "none": Recipe(),
    "fap": Recipe(pruned=True),
    "spare": Recipe(assigned=True),
    "map": Recipe(mapped=True),
    "fap+t": Recipe(pruned=True, trained=True),
    "retrain": Recipe(trained=True),
}
PARTS = {
    "assigned": "assignment and spare rows",
    "flipped": "column flips",
    "mapped": "programming by the map",
    "freezing": "reduce and freeze",
    "penalised": "penalty",
    "staged": "layer-wise stages",
    "on_device": "on-device steps",
}
STUCK, VARIED = 1.0, 1.1  # points: the paper's claims
NETS = {"mlp": "MLP 784-512-10", "lenet": "LeNet-5"}
DATASETS = {"mnist": "MNIST", "fashion": "Fashion-MNIST"}


def recipe(method: str, net: str) -> Recipe:
    """The recipe of a method; `itt-PART` is ITT without that part, `itt+PART` with."""
    if method in PLAIN:
        return PLAIN[method]
    start, sign, part = method[:3], method[3:4], method[4:]
    known = sign in ("-", "+") and part in PARTS
    if start != "itt" or (sign and not known):
        raise ValueError(f"rram_itt: unknown method {method!r}: use {list(METHODS)}.")
    full = FULL[net]
    return full._replace(**{part: sign == "+"}) if part else full


def base(method: str) -> str:
    """The method whose learning rate it takes."""
    return "itt" if method.startswith("itt") else method


def ablations(net: str) -> dict[str, str]:
    """Methods that leave out one part each, or add stages, with their titles."""
    full = FULL[net]
    found = {
        f"itt-{part}": f"without {title}"
        for part, title in PARTS.items()
        if getattr(full, part)
    }
    more = {} if full.staged else {"itt+staged": f"with {PARTS['staged']}"}
    return found | more


class Point(NamedTuple):
    """A point of a sweep.

    Attributes:
        title: How it is shown.
        lrs: Share of cells stuck at low resistance (high conductance).
        hrs: Share of cells stuck at high resistance.
        sigma: Spread of the lognormal write noise.
    """

    title: str
    lrs: float = 0.0
    hrs: float = 0.0
    sigma: float = 0.0

    @property
    def varied(self) -> bool:
        """Whether cells vary rather than being stuck."""
        return self.sigma > 0


def _even(percent: float) -> Point:
    half = percent / 2
    return Point(f"({half:g}, {half:g})", half / 100, half / 100)


EVEN = {f"s{percent:02d}": percent for percent in (0, 5, 10, 15, 20, 30)}
SIGMAS = {f"sigma{value:g}": value for value in (0.5, 1.0, 1.5, 2.0)}
POINTS = {
    **{name: _even(percent) for name, percent in EVEN.items()},
    "hrs20": Point("(0, 20)", 0.0, 0.20),
    "lrs20": Point("(20, 0)", 0.20, 0.0),
    "chen-a": Point("(1.75, 9.04)", 0.0175, 0.0904),
    "chen-b": Point("(9.04, 1.75)", 0.0904, 0.0175),
    **{n: Point(f"sigma {value:g}", sigma=value) for n, value in SIGMAS.items()},
}
HARD = "s20"  # the paper's 20 %, at an equal split
SPREAD = "sigma1"
TUNED = {False: HARD, True: SPREAD}  # where a rate is chosen, for points with no
# spread and points with one


def applies(method: str, point: Point) -> bool:
    """Whether a method is of its own there: with no fault there is none to bypass."""
    stuck = point.lrs + point.hrs > 0
    return stuck or not method.startswith("fap")
