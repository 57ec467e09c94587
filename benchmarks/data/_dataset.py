"""What a loader returns: three splits of examples, and where they come from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np


class Row(NamedTuple):
    """One labelled text as a file has it; `group` is a review, an article, or ''."""

    text: str
    label: str
    group: str = ""


@dataclass(frozen=True, eq=False)
class Split:
    """Examples and their labels, in an order that is already shuffled.

    Because of that order the first `n` examples are a fair sample.

    Attributes:
        x: Images `[n, height, width]` of uint8, or a list of `n` texts.
        y: Class numbers `[n]`, int32.
        groups: For texts, one name per example: examples of one group (one review,
            one article, texts that share four fifths of their words) are always in
            one split. None for images.
    """

    x: Any  # one of two types, which each loader fixes
    y: np.ndarray
    groups: tuple[str, ...] | None = None

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.y)

    def take(self, index: Sequence[int] | np.ndarray | slice) -> "Split":
        """The examples at `index` (positions or a slice), in that order."""
        rows = np.arange(len(self))[index]
        if isinstance(self.x, np.ndarray):
            x = self.x[rows]
        else:
            x = [self.x[i] for i in rows]
        groups = None if self.groups is None else tuple(self.groups[i] for i in rows)
        return Split(x, self.y[rows], groups)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A labelled data set in three splits.

    Attributes:
        name: The name by which `load` knows it.
        train: What to train on.
        valid: What to choose hyperparameters on.
        test: What to report.
        classes: Names of the classes, in the order of their numbers.
        licence: The licence as its publisher states it.
        source: The package that carried the files, and whom to cite.
        synthetic: Whether this is the small made-up twin.
        dropped: Examples left out, by reason, as `{"repeated": 15}`.
    """

    name: str
    train: Split
    valid: Split
    test: Split
    classes: tuple[str, ...]
    licence: str
    source: str
    synthetic: bool = False
    dropped: Mapping[str, int] = field(default_factory=dict)

    @property
    def splits(self) -> dict[str, Split]:
        """The three splits by name."""
        return {"train": self.train, "valid": self.valid, "test": self.test}

    def counts(self) -> dict[str, dict[str, int]]:
        """Examples of every class in every split: `counts()["train"]["spam"]`."""
        return {
            name: dict(
                zip(
                    self.classes,
                    np.bincount(split.y, minlength=len(self.classes)).tolist(),
                    strict=True,
                )
            )
            for name, split in self.splits.items()
        }

    def describe(self) -> str:
        """A few lines for people: sizes, classes, what was dropped, the licence."""
        lines = [f"{self.name}{' (synthetic)' if self.synthetic else ''}"]
        for name, counts in self.counts().items():
            total = f"  {name:5s} {sum(counts.values()):6d}"
            if len(counts) <= 10:
                total += "  " + " ".join(f"{c}={n}" for c, n in counts.items())
            lines.append(total)
        if any(self.dropped.values()):
            reasons = ", ".join(f"{n} {why}" for why, n in self.dropped.items() if n)
            lines.append(f"  dropped: {reasons}")
        lines.append(f"  licence: {self.licence}")
        lines.append(f"  source: {self.source}")
        return "\n".join(lines)
