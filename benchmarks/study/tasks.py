"""The two suites of text tasks, as hidden states at the cut and heads to start from."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from benchmarks import data
from benchmarks.runner import Session
from benchmarks.study.encoder import Cut, features, hidden_states
from benchmarks.tables._quickstart_probe import fit_probe

SUITES = {
    "tasks": {
        "sms_spam": "SMS spam",
        "trec": "TREC questions",
        "wordnet_topics": "WordNet glosses",
        "sentiment_movie": "movie reviews",
    },
    "domains": {
        "sentiment_movie": "movie reviews",
        "sentiment_amazon": "product reviews",
        "sentiment_tweets": "tweets",
        "sentiment_nyt": "newspaper comments",
    },
}
SUITE_TITLES = {"tasks": "four different tasks", "domains": "one task, four domains"}
LENGTHS = {"tasks": 20, "domains": 24}
CLASSES = 10  # of the task with most; logits of the others are padded


class Caps(NamedTuple):
    """The most texts of each kind that a task gives.

    Attributes:
        head: Training texts that only the head's start is fitted on.
        train: Training texts that adapters see; the heads have not seen them.
        valid: Texts that choices are made on.
        test: Texts that results are read off, once.
    """

    head: int
    train: int
    valid: int
    test: int


class Split(NamedTuple):
    """A split of all tasks of a suite, padded to one number of texts.

    Attributes:
        hidden: States at the cut `[tasks, n, length, width]`.
        mask: 1 at tokens `[tasks, n, length]`.
        labels: Class numbers `[tasks, n]`; -1 at padding.
    """

    hidden: Any
    mask: Any
    labels: Any


class Suite(NamedTuple):
    """A suite, ready to train on.

    Attributes:
        name: A key of `SUITES`.
        tasks: Names of the tasks, in order.
        splits: By name.
        classes: How many classes each task has.
        heads: Kernel and bias of each task's probe, `[tasks, width, CLASSES]` and
            `[tasks, CLASSES]`.
        facts: For each task what the report says of the data.
    """

    name: str
    tasks: tuple[str, ...]
    splits: dict[str, Split]
    classes: np.ndarray
    heads: tuple[Any, Any]
    facts: dict[str, dict[str, Any]]

    @property
    def valid(self) -> Any:
        """Which of the padded logits exist, `[tasks, CLASSES]`."""
        return jnp.arange(CLASSES)[None] < jnp.asarray(self.classes)[:, None]

    def labels(self, split: str, task: int) -> np.ndarray:
        """Class numbers of one task, without the padding."""
        found = np.asarray(self.splits[split].labels[task])
        return found[found >= 0]


def load_suite(
    name: str, cut: Cut, caps: Caps, store: Session, *, synthetic: bool
) -> Suite:
    """Reads a suite's texts, runs the frozen layers once, and fits the probes.

    Each split, which is shuffled, is cut to its first examples. The probes are logistic
    regressions on the frozen encoder's pooled outputs, their strengths chosen on
    validation data.
    """
    length, names = LENGTHS[name], tuple(SUITES[name])
    found = [data.load(task, synthetic=synthetic) for task in names]
    facts: dict[str, dict[str, Any]] = {}
    places = {
        "head": ("train", slice(0, caps.head)),
        "train": ("train", slice(caps.head, caps.head + caps.train)),
        "valid": ("valid", slice(caps.valid)),
        "test": ("test", slice(caps.test)),
    }
    splits = {}
    for split, (source, place) in places.items():
        parts = []
        for task, whole in zip(names, found, strict=True):
            used = whole.splits[source].take(place)
            given = {"cut": cut.name, "length": length, "place": str(place)}
            row, given = f"hidden-{task}-{length}-{split}", {**given, "of": source}
            kept = store.load_arrays(row, config=given)
            if kept is None:
                tokens = data.encode(used.x, cut.tokenizer, length)
                hidden, mask = hidden_states(cut, tokens, length)
                kept = {"hidden": hidden, "mask": mask}
                store.save_arrays(row, kept, config=given)
            parts.append((kept["hidden"], kept["mask"], used.y))
            own = facts.setdefault(task, {"classes": list(whole.classes), "sizes": {}})
            own["sizes"][split] = {"used": len(used), "of": len(whole.splits[source])}
            own |= {"licence": whole.licence, "source": whole.source}
        splits[split] = _stacked(parts)
    classes = np.array([len(whole.classes) for whole in found])
    bare = Suite(name, names, splits, classes, ((), ()), facts)
    given = {"cut": cut.name, "length": length, **caps._asdict(), "tasks": list(names)}
    heads = store.load_arrays(f"heads-{name}", config=given)
    if heads is None:
        kernels, biases = _probes(cut, bare)
        heads = {"kernels": kernels, "biases": biases}
        store.save_arrays(f"heads-{name}", heads, config=given)
    return bare._replace(
        heads=(jnp.asarray(heads["kernels"]), jnp.asarray(heads["biases"]))
    )


def _stacked(parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]]) -> Split:
    """All tasks side by side; short ones are padded with label -1."""
    most = max(len(labels) for *_, labels in parts)

    def pad(array: np.ndarray, fill: int = 0) -> np.ndarray:
        extra = [(0, most - len(array))] + [(0, 0)] * (array.ndim - 1)
        return np.pad(array, extra, constant_values=fill)

    hidden, mask, labels = zip(*parts, strict=True)
    return Split(
        jnp.asarray(np.stack([pad(x) for x in hidden])),
        jnp.asarray(np.stack([pad(x) for x in mask])),
        jnp.asarray(np.stack([pad(np.asarray(x, np.int32), -1) for x in labels])),
    )


def _probes(cut: Cut, suite: Suite) -> tuple[Any, Any]:
    """The probe's weights of each task."""
    kernels, biases = [], []
    for i in range(len(suite.tasks)):
        parts = {}
        for split in ("head", "valid"):
            own, labels = suite.splits[split], suite.labels(split, i)
            pooled = features(cut, cut.params, own.hidden[i], own.mask[i])
            parts[split] = (pooled[: len(labels)], labels)
        number = int(suite.classes[i])
        probe = fit_probe(parts["head"], parts["valid"], number, outputs=CLASSES)
        kernels.append(probe.head.kernel)
        biases.append(probe.head.bias)
    return jnp.asarray(np.stack(kernels)), jnp.asarray(np.stack(biases))
