"""Nets on chips: a fine-tuned encoder programmed into arrays, and scored there."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks import stats
from benchmarks.runner import Session
from benchmarks.study.encoder import kernels
from benchmarks.study.singles import Singles
from benchmarks.study.train import Trainer
from benchmarks.tables._quickstart_probe import fit_probe
from lowrank import rram

START = "lora"  # how the net is fine-tuned before it is deployed
TUNING = 1_000_000  # number of the first chip that choices are made on
CLEAN = 2_000_000  # number of the first chip without faults
BATCH = 64
NO_NOISE = jax.random.key(0)  # programmed weights have no fresh noise
STRENGTHS = (1e-3, 1e-2, 1e-1, 1.0)  # of the new head; one is chosen

Head = tuple[np.ndarray, np.ndarray]


class Held(NamedTuple):
    """A chip with a net programmed into it.

    Attributes:
        number: Number of the chip; its key, and that of all that is drawn for it.
        analog: The tree with `Crossbar` operators: what scores are read from.
        plain: The tree with the weights that the cells stand for, for training.
        head: A head fitted on the features of this chip.
        stuck: Share of its cells that are stuck.
    """

    number: int
    analog: Any
    plain: Any
    head: Head
    stuck: float


class Chips:
    """One task's fine-tuned net, and the chips that hold it."""

    def __init__(
        self, config: Any, session: Session, task: str, label: str = ""
    ) -> None:
        """Nothing is loaded or trained before it is asked for; rows have the label."""
        self.config, self.session, self.name = config, session, task
        self.label = f"{task}-{label}" if label else task
        self.singles = Singles(config, session, "tasks")
        self._svds: dict[int, Any] = {}
        self._transforms: dict[Any, Any] = {}
        self._masks: dict[tuple[str, int], Any] = {}

    @functools.cached_property
    def cut(self) -> Any:
        """The encoder before it was fine-tuned."""
        return self.singles.cut

    @functools.cached_property
    def number(self) -> int:
        """The task's number in its suite."""
        return self.singles.task(self.name)

    @functools.cached_property
    def classes(self) -> int:
        """How many classes the task has."""
        return int(self.singles.suite.classes[self.number])

    @functools.cached_property
    def start(self) -> tuple[Any, Head]:
        """The fine-tuned weights, a LoRA merged into them, and their head."""
        single = self.singles.single(START, self.name, self.config.seeds[0])
        tx, state = self.singles.transform(START), self.singles.state(START, single)
        return self.singles.trainer.form(START, tx, state), single.head

    @functools.cached_property
    def trainer(self) -> Trainer:
        """Trains on the weights of any chip: its encoder is set before each run."""
        return Trainer(self.cut, self.singles.suite)

    def labels(self, split: str) -> np.ndarray:
        """Class numbers of the texts that are used of a split."""
        most = self.config.texts if split != "train" else self.config.labelled
        return self.singles.suite.labels(split, self.number)[:most]

    def device(self, rate: Any) -> rram.Device:
        """The device at a share of stuck cells."""
        c = self.config
        return rram.Device(
            p_lrs=c.lrs * rate,
            p_hrs=(1 - c.lrs) * rate,
            read=c.read,
            dac=rram.Converter(c.bits),
            adc=rram.Converter(c.bits),
        )

    def hold(self, rate: float, number: int) -> Held:
        """Samples a chip, programs the net into it, and fits a head on it."""
        key = self._key(number)
        analog, plain = self._hold(jnp.float32(rate), self.start[0], key)
        bare = Held(number, analog, plain, self.start[1], rate)
        train, valid = (
            (self.features(analog, split), self.labels(split))
            for split in ("train", "valid")
        )
        outputs = self.start[1][1].shape[0]
        probe = fit_probe(train, valid, self.classes, STRENGTHS, outputs)
        return bare._replace(head=(probe.head.kernel, probe.head.bias))

    @functools.cached_property
    def _hold(self) -> Any:
        """The jitted call that samples and programs; one for all rates."""

        def run(rate: Any, params: Any, key: Any) -> tuple[Any, Any]:
            tx = self._cells(rate)
            for_chip, for_noise = jax.random.split(key)
            analog = tx.apply(params, tx.init(for_chip, params), key=for_noise)
            return analog, programmed(analog)

        return jax.jit(run)

    def features(self, adapted: Any, split: str) -> np.ndarray:
        """Pooled outputs of the texts of a split; read noise is fresh in each batch."""
        number = len(self.labels(split))
        own = self.singles.suite.splits[split]
        hidden, mask = own.hidden[self.number], own.mask[self.number]
        rounds = -(-number // BATCH)
        index = jnp.arange(rounds * BATCH) % number
        found = self._pooled(adapted, hidden[index], mask[index])
        return np.asarray(found)[:number]

    @functools.cached_property
    def _pooled(self) -> Any:
        """The jitted loop over batches of the lifted encoder."""

        def many(params: Any, hidden: Any, mask: Any) -> Any:
            parts = [x.reshape(-1, BATCH, *x.shape[1:]) for x in (hidden, mask)]
            found = jax.lax.map(lambda own: self.cut.pool(params, *own), tuple(parts))
            return found.reshape(hidden.shape[0], -1)

        return jax.jit(lrk.lift(many))

    def logits(self, adapted: Any, head: Head, split: str) -> np.ndarray:
        """Logits of the texts of a split."""
        kernel, bias = head
        return (self.features(adapted, split) @ kernel + bias)[:, : self.classes]

    def score(self, adapted: Any, head: Head, split: str = "test") -> float:
        """Accuracy on the texts of a split."""
        guess = self.logits(adapted, head, split).argmax(axis=1)
        return stats.accuracy(guess, self.labels(split))

    def _cells(self, rate: Any) -> lrk.Transform:
        """The crossbar at a share of stuck cells."""
        return rram.crossbar(
            self.device(rate), tile=self.config.tile, select=self._on_chip
        )

    def _key(self, number: int) -> jax.Array:
        """The key of a chip: its cells, then its noise."""
        return jax.random.fold_in(jax.random.key(self.config.seeds[0]), number)

    @property
    def _on_chip(self) -> Any:
        return kernels(self.cut)

    def _analog(self, rate: float, number: int) -> Any:
        """A chip alone, without a head of its own."""
        return self._hold(jnp.float32(rate), self.start[0], self._key(number))[0]


def programmed(tree: Any) -> Any:
    """The weights that cells stand for, in the place of operators."""
    kind = lrk.operators.Crossbar
    return jax.tree.map(
        lambda x: x.programmed_weight() if isinstance(x, kind) else x,
        tree,
        is_leaf=lambda x: isinstance(x, kind),
    )
