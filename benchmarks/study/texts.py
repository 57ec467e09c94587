"""Text classification above the cut as a bench: head and layers are one tree."""

import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import lowrank as lrk
from benchmarks import stats
from benchmarks.study.encoder import PROJECTIONS, Cut, features
from benchmarks.study.scores import digits
from benchmarks.study.subspaces import Problem, cross_entropy
from benchmarks.study.train import nll
from benchmarks.study.trials import Cell

STD = 0.02  # of fresh weights, as BERT's
HEAD = "head"
KERNELS = lrk.matching(rf"^layer/\d+/({'|'.join(PROJECTIONS)})/kernel$")
WEIGHTS = ("pretrained", "fresh")
Part = Mapping[str, Any]  # hidden states, masks and labels of one split


def is_head(path: str, leaf: Any) -> bool:
    """Selects the head."""
    del leaf
    return path.startswith(f"{HEAD}/")


def group(path: str) -> str:
    """The transformer layer of a leaf, or the head: SAID's groups."""
    return path if is_head(path, None) else "/".join(path.split("/")[:2])


class Texts:
    """Tasks on hidden states at the cut, from pretrained or fresh layers above it."""

    def __init__(
        self,
        cut: Cut,
        splits: Callable[[str], Mapping[str, Part]],
        classes: Mapping[str, int],
        std: float = STD,
    ) -> None:
        """Takes the encoder, `splits(task)` by name, and how many classes tasks have.

        Args:
            cut: The encoder.
            splits: `splits(task)`: arrays `hidden`, `mask` and `labels` of `train`,
                `valid` and `test`.
            classes: Number of classes by task.
            std: Standard deviation of the head's start.
        """
        self.cut, self._splits, self.classes = cut, splits, classes
        self.std = std

    def problem(self, cell: Cell) -> Problem:
        """The training texts of a task."""
        own = self._splits(cell.task)["train"]
        return Problem(self._loss, dict(own), len(own["labels"]))

    def _loss(self, params: Any, data: Any, rows: Any) -> jax.Array:
        hidden, mask = data["hidden"][rows], data["mask"][rows]
        pooled = self.cut.pool(params, hidden, mask)
        head = params[HEAD]
        logits = pooled @ head["kernel"] + head["bias"][None]
        return cross_entropy(logits, data["labels"][rows])

    def start(self, cell: Cell, seed: int) -> Any:
        """Layers, pretrained or drawn anew, with a head drawn anew."""
        key = jax.random.key(seed)
        shape = (self.cut.width, self.classes[cell.task])
        kernel = self.std * jax.random.normal(jax.random.fold_in(key, 7), shape)
        head = {"kernel": kernel, "bias": jnp.zeros(shape[1])}
        own = self.cut.params
        if cell.weights == "fresh":
            own = fresh(jax.random.fold_in(key, 8), own)
        return {**own, HEAD: head}

    def total(self, task: str) -> int:
        """How many weights the layers and the head of a task have."""
        cell = Cell("", WEIGHTS[0], task, 0)
        return sum(x.size for x in jax.tree.leaves(self.start(cell, 0)))

    def logits(self, task: str, params: Any, split: str) -> np.ndarray:
        """Logits `[n, classes]` of a split under plain weights."""
        own, layers = self._splits(task)[split], {"layer": params["layer"]}
        pooled = features(self.cut, layers, own["hidden"], own["mask"])
        head = params[HEAD]
        return pooled @ np.asarray(head["kernel"]) + np.asarray(head["bias"])

    def valid(self, cell: Cell, params: Any) -> float:
        """Mean validation loss, in nats."""
        own = np.asarray(self._splits(cell.task)["valid"]["labels"])
        return nll(self.logits(cell.task, params, "valid"), own)

    def test(self, cell: Cell, params: Any) -> dict[str, Any]:
        """Test accuracy, and which texts are right, as digits."""
        labels = np.asarray(self._splits(cell.task)["test"]["labels"])
        guess = self.logits(cell.task, params, "test").argmax(axis=1)
        right = digits((guess == labels).astype(int))
        return {"accuracy": stats.accuracy(guess, labels), "right": right}


def fresh(key: jax.Array, params: Any) -> Any:
    """Weights as BERT starts: normal kernels, biases 0, scales 1."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(params)
    drawn = []
    for i, (keys, leaf) in enumerate(flat):
        name = re.sub(r"\W", "", str(keys[-1]))
        if name == "kernel":
            own = jax.random.fold_in(key, i)
            drawn.append(STD * jax.random.normal(own, leaf.shape, leaf.dtype))
        else:
            drawn.append(jnp.full_like(leaf, float(name == "scale")))
    return jax.tree.unflatten(treedef, drawn)
