"""The timing of subspaces: contenders that agree, its report."""

import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.speed import _subspace_measure as measure
from benchmarks.speed import _subspace_report as report
from benchmarks.speed import subspace
from lowrank.linalg import hadamard

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def params():
    return {"w0": jnp.ones((5, 4)), "w1": jnp.ones((4, 3))}


def test_butterflies_are_the_transform():
    x = jnp.sin(jnp.arange(16.0))
    np.testing.assert_allclose(jax.jit(measure.butterflies)(x), hadamard(x), atol=1e-5)


def test_passes_move_the_weights_as_products_do(params):
    txs = measure.transforms(6, 3)
    state = txs["fastfood"].init(jax.random.key(0), params)
    assert measure._difference(txs, state, params, 6) < measure.TOLERANCE
    other = txs["fastfood"].init(jax.random.key(1), params)
    moved = measure.by_passes().apply(other.fixed, jnp.ones(6), {"w0": 20, "w1": 12})
    own = lrk.subspace.fastfood().apply(state.fixed, jnp.ones(6), {"w0": 20, "w1": 12})
    assert float(jnp.abs(moved["w0"] - own["w0"]).max()) > 0.1


def test_a_stepper_trains_and_keeps_its_state(params):
    tx = measure.transforms(6, 3)["sparse"]
    call = measure._stepper(tx, params, jnp.ones((2, 5)), jax.random.key(0))
    first = np.asarray(call()[0]["subspace"]["z"])
    second = np.asarray(call()[0]["subspace"]["z"])
    assert np.abs(first).max() > 0
    assert np.abs(second).max() > np.abs(first).max()


def _record(row, config, **metrics):
    return Record(
        "speed/subspace", row, config, "", 0, metrics, {}, 1.0, "2026-01-01", "",
        versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def test_the_report_judges_and_finds_exponents():
    def contender(ms, ratio):
        return {"median_ms": ms, "ratio": ratio, "ratio_low": 1.2, "ratio_high": 1.4}

    steps = {"fastfood": contender(2.0, 1.6), "fastfood_stacked": contender(1.0, 1.3)}
    times = {f"fastfood 2^{n}": {"median_ms": 2.0**n * n} for n in (16, 20)}
    growth = _record("growth", {"bits": [16, 20]}, contenders=times)
    config = {"d": 8, "dense_d": 4}
    step = _record("step", config, weights=100, contenders=steps)
    goals = report.goals(Records([step, growth]))
    assert [goal.verdict() for goal in goals] == ["not met", "met"]
    found = report.exponent(growth, "fastfood", 20)
    assert found == pytest.approx(1 + math.log2(20 / 16) / 4)


def test_the_report_stands_without_records():
    tables = [b for b in subspace.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 3
    assert "<!-- records:speed/subspace -->" in (DOCS / "speed.md").read_text()
