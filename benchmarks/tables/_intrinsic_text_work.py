"""What the table of text's intrinsic dimension runs."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lowrank as lrk
from benchmarks.runner import Session
from benchmarks.study.singles import Singles
from benchmarks.study.subspaces import (
    Plan,
    Runner,
    did,
    everything,
    lora,
    part,
    said,
    subspace_rates,
)
from benchmarks.study.texts import KERNELS, Texts, group, is_head
from benchmarks.study.trials import Cell, Trials

SPLITS = ("train", "valid", "test")
Rated = tuple[Cell, Sequence[float]]


def runner(block: int, ranks: Sequence[int]) -> Runner:
    """The ways of the table."""
    projection = lrk.subspace.fastfood_stacked(block)
    ways = {
        "full": part("all weights", everything),
        "head": part("head alone", is_head),
        "did": did(projection),
        "said": said(projection, group),
        "lora": lora(KERNELS, is_head),
    }
    largest = {"full": 1, "head": 1, "did": block, "said": block, "lora": max(ranks)}
    return Runner(ways, largest)


def suite_texts(work: Singles, tasks: Sequence[str]) -> Texts:
    """Tasks of the suite as a bench."""
    parts = {task: _splits(work, task) for task in tasks}
    numbers = {t: int(work.suite.classes[work.task(t)]) for t in tasks}
    return Texts(work.cut, lambda task: parts[task], numbers)


def _splits(work: Singles, task: str) -> dict[str, Mapping[str, Any]]:
    """A task's arrays without the suite's padding."""
    found, i = {}, work.task(task)
    for name in SPLITS:
        own, number = work.suite.splits[name], len(work.suite.labels(name, i))
        parts = {"hidden": own.hidden, "mask": own.mask, "labels": own.labels}
        found[name] = {key: x[i, :number] for key, x in parts.items()}
    return found


def trials(config: Any, session: Session, texts: Texts) -> Trials:
    """The bench and its ways, ready to run."""
    names = ("layers", "train", "valid", "test", "head", "synthetic")
    given = {name: getattr(config, name) for name in names}
    return Trials(
        texts,
        runner(config.block, config.ranks),
        session,
        Plan(config.steps, config.batch),
        given,
    )


def cells(config: Any, own: Texts) -> list[Rated]:
    """Every cell of the bench, with its rates."""
    sizes = {
        "full": (1,),
        "head": (1,),
        "did": config.ds,
        "said": config.ds,
        "lora": config.ranks,
    }
    found = [
        Cell(way, weights, task, size)
        for way in config.ways
        for weights in config.weights
        for task in config.tasks
        for size in sizes[way]
    ]
    return [(cell, rates(config, cell, own.total)) for cell in found]


def rates(config: Any, cell: Cell, total: Callable[[str], int]) -> Sequence[float]:
    """As many learning rates for every cell."""
    moves = {"did": config.moves, "said": config.said_moves}
    if cell.way in moves:
        return subspace_rates(moves[cell.way], total(cell.task), cell.size)
    own = {"full": config.full_rates, "head": config.head_rates, "lora": config.rates}
    return own[cell.way]
