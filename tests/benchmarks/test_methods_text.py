"""All adapter families: sizes at a budget, how some train, the report."""

import dataclasses
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.runner import Session
from benchmarks.study import recipes
from benchmarks.study.encoder import load_cut
from benchmarks.study.families import FAMILIES, fitted, numbers
from benchmarks.study.family_runs import FamilyRuns
from benchmarks.study.singles import Options, Singles
from benchmarks.tables import _methods_text_report as reporting
from benchmarks.tables import methods_text

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
TASK = "trec"


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Tiny runs on made-up texts."""
    options = dataclasses.replace(Options(), **Options().tiny() | {"steps": 8})
    session = Session("methods_text", tmp_path_factory.mktemp("r"), smoke=True)
    return FamilyRuns(Singles(options, session, "tasks"))


# --- sizes ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lora-fa", "lokr", "randlora", "houlsby"])
def test_sizes_come_nearest_to_the_budget(name):
    cut, family = load_cut(1, synthetic=True), FAMILIES[name]
    budget = numbers(FAMILIES["lora"], cut, 2)
    size = fitted(family, cut, budget)
    gaps = {}
    for other in (size - 1, size, size + 1):
        try:
            gaps[other] = abs(numbers(family, cut, other) - budget)
        except ValueError:
            continue
    assert min(gaps, key=lambda s: (gaps[s], s != size)) == size


def test_what_has_no_size_keeps_its_own():
    cut = load_cut(1, synthetic=True)
    assert fitted(FAMILIES["ia3"], cut, 10**6) == 0
    assert fitted(FAMILIES["vera"], cut, 10**6) == FAMILIES["vera"].most


# --- training ------------------------------------------------------------------------


def test_adalora_ends_with_its_share_of_triplets(runs):
    found = runs.run("adalora", TASK, 0, 1e-2)
    kept = sum(
        np.count_nonzero(own["lambda"]) for own in found.state.trainable.values()
    )
    total = sum(own["lambda"].size for own in found.state.trainable.values())
    assert kept == round(2 / 3 * total)
    assert found.trained < lrk.count(found.state)[0]


def test_lora_fa_corrects_the_gradient_of_b_alone():
    a = 2 * jnp.eye(3, 2)
    own, slope = {"w": {"a": a, "b": a.T}}, {"w": {"a": a, "b": a.T}}
    found = recipes.LORA_FA.gradient(slope, own, {"w": {"scale": jnp.float32(0.5)}})
    assert not np.any(found["w"]["a"])
    np.testing.assert_allclose(found["w"]["b"], a.T, rtol=1e-5)  # 1 / (4 * 0.25)


def test_lora_plus_takes_longer_steps_in_b():
    own = {"w": {"a": jnp.ones(2), "b": jnp.ones(2)}}
    found = recipes.LORA_PLUS.update(own)
    assert float(found["w"]["b"][0] / found["w"]["a"][0]) == recipes.RATIO


def test_eva_starts_from_directions_of_the_inputs(runs):
    state = runs.start("eva", TASK, 0)[1]
    for own in state.trainable.values():
        gram = own["a"].T @ own["a"]
        np.testing.assert_allclose(gram, np.eye(len(gram)), atol=1e-5)


def test_grids_have_one_number_of_rates(runs):
    assert {len(runs.grid(name)) for name in FAMILIES} == {len(runs.work.options.rates)}


# --- the report ----------------------------------------------------------------------


def _record(name, task, seed, right):
    labels = "1" * 200
    guess = "1" * right + "0" * (200 - right)
    config = {"method": name, "task": task, "grid": [0.1, 0.2, 0.3], "layers": 1}
    config |= {"rank": 2, "synthetic": True, "steps": 1, "batch": 1, "train": 1}
    config |= {"head": 1, "valid": 1, "test": 1}
    metrics = {
        "predictions": {"labels": labels, "test": guess},
        "rate": 0.3,
        "rates_tried": [3.0, 2.0, 1.0],
        "trained": 10,
        "seconds_per_step": {"wall": 0.2, "processor": 0.1},
    }
    return Record(
        "methods_text", f"{name}-{task}-s{seed}", config, "", seed, metrics, {}, 1.0,
        "2026-01-01", "", versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def _records(**right):
    return Records(
        [
            _record(name.replace("_", "-"), task, seed, number)
            for name, number in right.items()
            for task in reporting.TASKS
            for seed in (0, 1)
        ]
    )


def _verdicts(records):
    cells = {
        name: reporting.words.of_singles(records.where(method=name), reporting.TASKS)
        for name in FAMILIES
    }
    return {h.name: h.verdict() for h in reporting.expected(cells)}


def test_verdicts_follow_the_records():
    small = dict.fromkeys(reporting.SMALL, 120)
    good = _verdicts(_records(lora=180, full=180, **small))
    assert (good["M2"], good["M4"]) == ("supported", "supported")
    assert good["M1"] == "not run"
    bad = _verdicts(_records(lora=150, full=180, **dict.fromkeys(small, 190)))
    assert (bad["M2"], bad["M4"]) == ("contradicted", "contradicted")


def test_a_rate_at_an_end_of_the_grid_is_marked():
    table = methods_text.report(_records(lora=180))[2]
    row = next(row for row in table.rows if row[1] == "LoRA")
    assert row[-1] == "0.3*, 0.3*"
    assert row[2] == 10


def test_the_report_stands_without_records():
    tables = [b for b in methods_text.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 2
    assert len(tables[1].rows) == len(FAMILIES) + 1
    assert "<!-- records:methods_text -->" in (DOCS / "methods_text.md").read_text()


def test_a_rate_inside_the_grid_is_not_marked():
    inside = _record("lora", "trec", 0, 180)
    inside.metrics["rates_tried"] = [3.0, 1.0, 2.0]
    assert reporting.words.rates(Records([inside]), ["trec"]) == "0.3"
    inside.metrics["rates_tried"] = []  # nothing was chosen
    assert reporting.words.rates(Records([inside]), ["trec"]) is None
