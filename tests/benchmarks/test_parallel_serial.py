"""Parallel and serial adapters: how they merge, and the report."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.runner import Session
from benchmarks.study.family_runs import FamilyRuns, Run
from benchmarks.study.placed import PLACED, Placed
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _parallel_serial_report as reporting
from benchmarks.tables import parallel_serial

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
TASKS = ("trec", "sentiment_movie")


# --- merging -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def placed(tmp_path_factory):
    """Adapters as they were drawn, moved a little: nothing is trained."""
    options = dataclasses.replace(Options(), **Options().tiny())
    session = Session("parallel_serial", tmp_path_factory.mktemp("r"), smoke=True)
    runs = FamilyRuns(Singles(options, session, "tasks"), PLACED, one_start=True)
    found = Placed(runs)
    for name in ("lora-two", "serial", "prefix"):
        for i, task in enumerate(TASKS):
            _, state = runs.start(name, task, 0)
            moved = jax.tree.map(lambda x, i=i: x + 0.1 * (i + 1), state.trainable)
            head, none = (np.zeros(0), np.zeros(0)), np.zeros(0)
            run = Run(state._replace(trainable=moved), head, none, 0, 0.0, 0.0)
            found._singles[name, task, 0] = run
    return found


def forms(placed, name):
    """Plain weights of both adapters, and of the bare encoder."""
    tx, params = placed.runs.transform(name), placed.work.cut.params
    states = [placed.single(name, task, 0).state for task in TASKS]
    return params, [lrk.materialize(tx.apply(params, s)) for s in states]


def test_products_together_add_up(placed):
    params, (one, two) = forms(placed, "lora-two")
    (_, tx, dense), at = placed.merged("together", "lora-two", TASKS, 0)
    both = lrk.materialize(tx.apply(params, at(0.5)))
    assert dense
    jax.tree.map(
        lambda w, x, y, z: np.testing.assert_allclose(
            z - w, 0.5 * (x - w + y - w), atol=1e-5
        ),
        params, one, two, both,
    )  # fmt: skip


def test_serial_adapters_stand_behind_each_other(placed):
    (_, tx, dense), at = placed.merged("together", "serial", TASKS, 0)
    op = tx.apply(placed.work.cut.params, jax.tree.map(jnp.asarray, at(1.0)))
    leaf = next(iter(op["layer"].values()))["output"]["dense"]["kernel"]
    assert not dense
    assert isinstance(leaf, lrk.operators.Bottleneck)
    assert isinstance(leaf.w, lrk.operators.Bottleneck)
    assert not isinstance(leaf.w.w, lrk.Operator)


def test_prefixes_together_are_one_longer_prefix(placed):
    (_, tx, _), at = placed.merged("together", "prefix", TASKS, 0)
    states = [placed.single("prefix", task, 0).state for task in TASKS]
    joined = at(1.0)
    for path, own in joined.trainable.items():
        rows = [state.trainable[path]["rows"] for state in states]
        assert np.array_equal(own["rows"], np.concatenate(rows))
    tree = tx.apply(placed.work.cut.params, jax.tree.map(jnp.asarray, joined))
    added = next(iter(tree["layer"].values()))["attention"]["self"]["key"]["prefix"]
    assert len(added) == len(TASKS) * placed.runs.size("prefix")


def test_an_average_has_the_mean_of_all_numbers(placed):
    (_, tx, _), at = placed.merged("average", "serial", TASKS, 0)
    one, two = (placed.single("serial", task, 0).state for task in TASKS)
    for path, own in at(0.5).trainable.items():
        for name, x in own.items():
            mean = (one.trainable[path][name] + two.trainable[path][name]) / 2
            np.testing.assert_allclose(x, mean, rtol=1e-6)
        assert float(at(0.5).fixed[path]["scale"]) == float(one.fixed[path]["scale"])
    assert tx is placed.runs.transform("serial")


# --- the report ----------------------------------------------------------------------


def _marks(share, loss):
    right = round(200 * share)
    test = "1" * right + "0" * (200 - right)
    predictions = {"labels": "1" * 200, "test": test}
    wobble = 0.01 * (np.arange(200) % 5)
    return {"predictions": predictions, "losses": (loss + wobble).tolist()}


def _record(row, metrics, **config):
    extra = {"layers": 1, "rank": 2, "synthetic": True, "steps": 1, "batch": 1}
    extra |= {"train": 1, "head": 1, "valid": 1, "test": 1}
    return Record(
        "parallel_serial", row, extra | config, "", config.get("seed", 0), metrics, {},
        1.0, "2026-01-01", "", versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def _rows(name, gained, merged, unseen, ratio=1.2):
    found = []
    for task in TASKS:
        where = {"method": name, "task": task, "seed": 0}
        other = {"bare": _marks(0.8, 0.5), "disturbed": _marks(0.7, 0.5 + gained)}
        alone = {**_marks(0.9, 0.3), "other": other, "trained": 10}
        found.append(_record(f"alone-{name}-{task}", alone, kind="alone", **where))
        after = {
            "before": _marks(0.9, 0.3),
            "after": _marks(0.8, 0.3 + gained),
            "new": _marks(0.9, 0.3),
        }
        found.append(_record(f"after-{name}-{task}", after, kind="after", **where))
    tasks = {task: _marks(merged, 0.4) for task in TASKS}
    found.append(
        _record(
            f"merge-{name}", {"scale": 0.5, "tasks": tasks},
            kind="merge", merge="together", method=name, seed=0,
        )
    )  # fmt: skip
    domains = {"movie": _marks(unseen, 0.4), "tweets": _marks(0.9, 0.4)}
    found.append(
        _record(
            f"unseen-{name}", {"domains": domains},
            kind="unseen", left="movie", method=name, seed=0,
        )
    )  # fmt: skip
    return found, {name: _times(ratio)}


def _times(ratio):
    return {
        "median_ms": ratio,
        "ratio": ratio,
        "ratio_low": ratio - 0.01,
        "ratio_high": ratio + 0.01,
    }


def _records(lora, parallel, serial, merged):
    rows, times = [], {"lora-two-merged": _times(merged)}
    for name, own in (("lora-two", lora), ("parallel", parallel), ("serial", serial)):
        found, time = _rows(name, *own)
        rows, times = rows + found, times | time
    return Records([*rows, _record("time-b1", times, kind="time", batch=1)])


@pytest.mark.parametrize(
    ("records", "wanted"),
    [
        (
            _records((0.1, 0.88, 0.9), (0.2, 0.86, 0.9), (0.5, 0.6, 0.5), 1.0),
            ["supported"] * 5,
        ),
        (
            _records((0.5, 0.5, 0.4), (0.6, 0.5, 0.4), (0.1, 0.8, 0.8), 1.3),
            ["contradicted"] * 5,
        ),
    ],
    ids=["as guessed", "the other way round"],
)
def test_verdicts_follow_the_records(records, wanted):
    assert [h.verdict() for h in reporting.expected(records)] == wanted


def test_losses_gained_are_told_in_hundredths_of_a_nat():
    records = _records((0.1, 0.9, 0.9), (0.2, 0.9, 0.9), (0.5, 0.9, 0.9), 1.0)
    table = next(
        b
        for b in parallel_serial.report(records)
        if isinstance(b, Table) and "numbers" in b.columns and "adapter" in b.columns
    )
    cells = {row[0]: row for row in table.rows}
    assert cells[reporting.PLACED["serial"].title][2][0] == pytest.approx(50)
    assert cells[reporting.PLACED["parallel"].title][3].startswith("-30.0")
    assert cells[reporting.PLACED["prefix"].title][2] is None


def test_the_report_stands_without_records():
    blocks = parallel_serial.report(Records([]))
    tables = [block for block in blocks if isinstance(block, Table)]
    assert len(tables) == 6
    assert [h.verdict() for h in reporting.expected(Records([]))] == ["not run"] * 5
    page = (DOCS / "parallel_serial.md").read_text()
    assert "<!-- records:parallel_serial -->" in page
