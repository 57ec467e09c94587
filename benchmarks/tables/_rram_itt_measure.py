"""What ITT costs: seconds of a step, accuracy against the number of steps, counts."""

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax

from benchmarks.tables import _rram_itt_chips as chips
from benchmarks.tables import _rram_itt_plan as plan
from benchmarks.tables._rram_itt_plan import HARD, Recipe
from benchmarks.tables._rram_itt_rows import Work, numbers
from benchmarks.tables._rram_itt_train import Lab
from benchmarks.timing import compare
from lowrank import rram

TIMED = 10  # steps of one timing, so that starting an optimizer does not count
WAYS = {"clean": None, "retrain": "retrain", "itt": "itt"}
POSITIONS = {"conv1/kernel": 24 * 24, "conv2/kernel": 8 * 8}  # of LeNet-5's kernels
TILE = 128


def budgets(work: Work, net: str, dataset: str) -> None:
    """Validation accuracy at (10, 10) after whole runs of more and more steps.

    Chips are those of no result and no choice.
    """
    c = work.config
    for method in ("retrain", "itt"):
        rate = work.rate(net, dataset, method, HARD)
        given = work.given(
            net, dataset, kind="budget", method=method, point=HARD, rate=rate,
            budgets=c.budgets, chips=c.budget_chips,
        )  # fmt: skip
        row = f"budget-{net}-{dataset}-{method}-{HARD}"
        if work.session.row(row, **given) is not None:
            continue
        begin = time.perf_counter()
        start = "spare" if method == "itt" else "none"
        fresh = {"kind": "budget", "count": c.budget_chips}
        found = [work.validated(net, dataset, start, HARD, 0.0, **fresh)]
        for steps in c.budgets:
            found.append(
                work.validated(net, dataset, method, HARD, rate, steps, **fresh)
            )
        metrics = {"clean": work.lab(net, dataset).clean("valid")}
        series = {"steps": [0, *c.budgets], "accuracies": np.stack(found)}
        spent = time.perf_counter() - begin
        work.session.save(
            row, metrics, config=given, series=series, seconds=spent, seed=c.seed
        )


def overhead(work: Work, net: str, dataset: str) -> None:
    """A step through the map and a step of ITT, beside a clean one; and the counts."""
    c = work.config
    given = work.given(net, dataset, kind="overhead", rounds=c.rounds)
    row = f"overhead-{net}-{dataset}"
    if work.session.row(row, **given) is not None:
        return
    begin, lab = time.perf_counter(), work.lab(net, dataset)
    calls = {name: _timed(work, lab, net, dataset, way) for name, way in WAYS.items()}
    compared = compare(calls, c.rounds, baseline="clean")
    metrics: dict[str, Any] = {"steps": compared.metrics()}
    for own in metrics["steps"].values():
        own["median_ms"] /= TIMED
        own["median_cpu_ms"] /= TIMED
    metrics["costs"] = costs(lab)
    spent = time.perf_counter() - begin
    work.session.save(row, metrics, config=given, seconds=spent, seed=c.seed)


def _timed(
    work: Work, lab: Lab, net: str, dataset: str, way: str | None
) -> Callable[[], Any]:
    """Some steps of one way to train, on one chip at (10, 10), ready to be timed."""
    own = numbers(HARD)
    recipe = Recipe() if way is None else plan.recipe(way, net)
    assigned, _ = work.rows(net, dataset, way or "none", HARD, "valid", 1)
    rows = {path: own_rows[0] for path, own_rows in assigned.items()}
    key = lab.keys("valid", 1)[0]
    given = lab.given(lab.batches(TIMED, work.config.batch), "valid")
    chip = jax.jit(functools.partial(lab.chip, recipe))(own, given, key, rows)

    @jax.jit
    def parts(given: Any, chip: Any) -> Any:
        deploy = lab.deployment(recipe, own, chip)
        return lab.parts(recipe, deploy, chip, given, given.params, TIMED)

    more = parts(given, chip)

    @jax.jit
    def run(params: Any, chip: Any, batches: Any, more: Any) -> Any:
        through = lab.deployment(recipe, own, chip) if way else (lambda tree: tree)
        done = rram.retrain(
            lab.loss, params, through, batches, optax.adam(1e-3), **more
        )
        return done.params

    return lambda: run(given.params, chip, given.batches, more)


def costs(lab: Lab) -> dict[str, Any]:
    """What one image costs on the chip: counts, without constants."""
    layout = lab.layout
    uses = {path: n for path, n in POSITIONS.items() if path in layout.shapes}
    card = rram.cost_card(
        lab.net.params, tile=TILE, uses=uses, select=chips.on_chip, axes=layout.axes
    )
    spare = sum(2 * layout.spare[p] * cols for p, (_, cols) in layout.shapes.items())
    return {
        "tile": TILE,
        "cells": card.total.cells,
        "spare_cells": spare,
        "conversions": card.total.conversions,
        "multiply_adds": card.total.multiply_adds,
        "bytes_moved": card.total.bytes_moved,
    }
