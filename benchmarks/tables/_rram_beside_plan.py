"""Options of the table of what stands beside a chip; its net, data and chips."""

import dataclasses
import functools
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.chips import nets
from benchmarks.chips.nets import Net, Pair
from benchmarks.runner import Session
from benchmarks.tables._rram_healing_plan import TOTALS

PARTS = {"halora": "HaLoRA's setting", "merged": "merged adapters under faults"}
POINTS = {"chosen": "the chosen noise", "paper": "the paper's noise"}
METHODS = {"lora": "LoRA", "lori-d": "LoRI-D", "lori-s": "LoRI-S"}
TASKS = {
    "fashion": "Fashion-MNIST",
    "turned": "MNIST, turned by a quarter",
    "mnist": "MNIST",
}
RATES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
TUNING = 1000  # the training seed of all choices; none of the scored ones
SCORED = 1000  # images of one product

Splits = dict[str, tuple[Any, ...]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Options; each becomes a flag."""

    parts: tuple[str, ...] = tuple(PARTS)
    """Which parts of the table."""
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    """Seeds of the adapters' training."""
    chips: int = 20
    """Chips on which everything is scored."""
    tuning_chips: int = 4
    """Chips of every choice; none of them is scored."""
    valid: int = 2000
    """Validation images of every choice, for each task."""
    rates: tuple[float, ...] = RATES
    """Learning rates to choose from, as many for every way."""
    batch: int = 128
    """Images of a step."""
    points: tuple[str, ...] = tuple(POINTS)
    """Which noises of training: `chosen` on validation, `paper` for 0.01."""
    rank: int = 8
    """Rank of the LoRA under noise."""
    steps: int = 2000
    """Its training steps."""
    resample: int = 10
    """Steps that a chip lasts in training."""
    factors: tuple[float, ...] = (1e-3, 1e-2, 1e-1)
    """Factors of HaLoRA's penalty; the last is the paper's."""
    sigmas: tuple[float, ...] = (0.01, 0.03, 0.05, 0.07, 0.1, 0.12, 0.15, 0.2, 0.3)
    """Noises to choose from, relative to a tile's largest weight."""
    paper_sigma: float = 0.01
    """HaLoRA's own."""
    times: tuple[float, ...] = (0.0, 0.5, 1.0, 2.0)
    """Noises of the test, in units of that of the training."""
    noise_target: float = 0.1
    """Accuracy that twice the chosen noise should cost."""
    methods: tuple[str, ...] = tuple(METHODS)
    """Which adapters are merged."""
    merged_rank: int = 16
    """Rank of each."""
    density: float = 0.1
    """Share of B that LoRI-S keeps, by a mask from LoRI-D."""
    adapter_steps: int = 2000
    """Training steps of each."""
    weights: tuple[float, ...] = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)
    """Weights of the merge to choose from."""
    heal_rank: int = 8
    """Rank of the adapter that heals a chip."""
    heal_steps: int = 300
    """Training steps for each chip."""
    heal_batch: int = 64
    """Images of such a step, of each task."""
    totals: tuple[float, ...] = TOTALS
    """Shares of stuck cells to choose from."""
    fault_target: float = 0.2
    """Accuracy that the faults should cost the base."""
    synthetic: bool = False
    """Use small made-up twins of the images: no download."""

    def small(self) -> dict[str, Any]:
        """Values of a run of seconds."""
        return {
            "seeds": (0,),
            "chips": 1,
            "tuning_chips": 1,
            "valid": 200,
            "rates": (1e-2,),
            "points": ("chosen",),
            "methods": ("lori-s",),
            "batch": 16,
            "rank": 2,
            "steps": 6,
            "resample": 3,
            "sigmas": (0.1, 0.3),
            "merged_rank": 3,
            "adapter_steps": 6,
            "weights": (0.5, 1.0),
            "heal_rank": 2,
            "heal_steps": 6,
            "heal_batch": 8,
            "totals": (0.1, 0.3),
            "synthetic": True,
        }


class Base:
    """The frozen net with its data, and what every row's config says."""

    def __init__(self, config: Options, session: Session) -> None:
        """Loads nothing yet."""
        self.config, self.session = config, session

    @functools.cached_property
    def net(self) -> Net:
        """The MLP that knows MNIST."""
        session = self.session
        return nets.load(
            "mlp",
            "mnist",
            session.beside("chips"),
            synthetic=self.config.synthetic,
            log=session.log,
        )

    @functools.cached_property
    def params(self) -> Any:
        """Its weights."""
        return jax.tree.map(jnp.asarray, self.net.params)

    @functools.cached_property
    def tasks(self) -> dict[str, Splits]:
        """Images and labels of every task, by split: `train`, `valid`, `test`."""
        found = tasks(self.net, self.config.synthetic)
        few = slice(self.config.valid)
        return {
            name: {
                split: tuple(
                    jnp.asarray(p[few] if split == "valid" else p) for p in own
                )
                for split, own in splits.items()
            }
            for name, splits in found.items()
        }

    def shared(self) -> dict[str, Any]:
        """What every row's config says."""
        config = self.config
        names = ("chips", "tuning_chips", "valid", "rates", "batch", "synthetic")
        return {name: getattr(config, name) for name in names}


def tasks(net: Net, synthetic: bool) -> dict[str, dict[str, Pair]]:
    """Images and labels of the tasks, as the net wants them."""
    data = nets.DATASETS["fashion"](synthetic=synthetic)
    own = {"train": net.train, "valid": net.valid, "test": net.test}
    fashion = {
        name: (nets.images("mlp", part.x), np.asarray(part.y, np.int32))
        for name, part in data.splits.items()
    }
    turned = {name: (turn(x), y) for name, (x, y) in own.items()}
    return {"fashion": fashion, "turned": turned, "mnist": own}


def turn(x: np.ndarray) -> np.ndarray:
    """Square images in rows, turned by a quarter."""
    side = round(x.shape[1] ** 0.5)
    turned = np.rot90(x.reshape(-1, side, side), axes=(1, 2))
    return np.ascontiguousarray(turned).reshape(x.shape)


def chip_keys(kind: str, count: int) -> jax.Array:
    """Keys of the chips that are scored, or of those that choices see."""
    own = jax.random.fold_in(jax.random.key(0), zlib.crc32(kind.encode()))
    return jax.vmap(lambda i: jax.random.fold_in(own, i))(jnp.arange(count))


def replaced(tree: Mapping[str, Any], path: str, leaf: Any) -> dict[str, Any]:
    """A nested dict with another leaf at a path."""
    first, _, rest = path.partition("/")
    return {**tree, first: replaced(tree[first], rest, leaf) if rest else leaf}


def best(grid: Sequence[float], scores: Any) -> float:
    """The entry of a grid that scored best; what is not finite never does."""
    own = np.nan_to_num(np.asarray(scores, float), nan=-np.inf)
    return float(grid[int(np.argmax(own))])


def summary(own: np.ndarray) -> dict[str, float]:
    """What a record says of accuracies over chips."""
    return {
        "mean": float(own.mean()),
        "low": float(np.quantile(own, 0.05)),
        "worst": float(own.min()),
    }
