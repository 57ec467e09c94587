"""What stands beside a chip: noise in tiles, adapters of tasks, rows, verdicts."""

import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import runner
from benchmarks.chips import nets
from benchmarks.record import Record, Records, read_folder
from benchmarks.report import Figure, Report, Table, update_markdown
from benchmarks.tables import _rram_beside_claims as claims
from benchmarks.tables import _rram_beside_plan as plan
from benchmarks.tables import rram_beside
from benchmarks.tables._rram_beside_chips import HEALING, PLACES
from benchmarks.tables._rram_beside_noise import noisy
from tests.benchmarks.small_net import tiny_net

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
SMALL = dataclasses.replace(
    rram_beside.Config(),
    seeds=(0, 1),
    chips=2,
    tuning_chips=2,
    valid=64,
    rates=(0.01, 0.05),
    batch=8,
    points=("chosen",),
    rank=2,
    steps=6,
    resample=3,
    factors=(0.1,),
    sigmas=(0.05, 0.3),
    methods=("lori-s",),
    merged_rank=2,
    density=0.5,
    adapter_steps=6,
    weights=(0.5, 1.0),
    heal_rank=1,
    heal_steps=6,
    heal_batch=8,
    totals=(0.02, 0.3),
)
PARTS = (
    dataclasses.replace(SMALL, parts=("halora",), rates=(0.05,), tuning_chips=1),
    dataclasses.replace(SMALL, parts=("merged",)),
)
"""Numbers that repeat, so that few shapes are compiled."""


# Noise


def test_noise_is_relative_to_the_largest_weight_of_a_tile():
    w = np.full((96, 80), 0.1, np.float32)
    w[0, 0], w[70, 0], w[0, 70], w[70, 70] = 4.0, -2.0, 1.0, 0.5
    params = {"fc": {"kernel": jnp.asarray(w), "bias": jnp.ones(80)}}
    noise = jax.jit(lambda s, k: noisy(params, ["fc/kernel"], s, k))
    found = noise(0.1, jax.random.key(0))
    gap = np.asarray(found["fc"]["kernel"]) - w
    tiles = {4.0: gap[:64, :64], 2.0: gap[64:, :64], 1.0: gap[:64, 64:]}
    tiles[0.5] = gap[64:, 64:]
    for largest, own in tiles.items():
        error = 0.1 * largest / np.sqrt(own.size)
        assert abs(own.mean()) < 4 * error
        assert abs(own.std() - 0.1 * largest) < 4 * error
    assert (np.asarray(found["fc"]["bias"]) == 1).all()
    clean = noise(0.0, jax.random.key(0))["fc"]["kernel"]
    np.testing.assert_allclose(clean, w, atol=2e-5)
    other = noise(0.1, jax.random.key(1))["fc"]["kernel"]
    assert not np.allclose(other, found["fc"]["kernel"])


# Rows


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        net = tiny_net()
        patch.setattr(nets, "load", lambda *_, **__: net)
        x, y = net.train

        def tasks(*_):
            turned = {"fashion": (y + 1) % 4, "turned": (y + 2) % 4, "mnist": y}
            splits = ("train", "valid", "test")
            return {n: {s: (x, own) for s in splits} for n, own in turned.items()}

        patch.setattr(plan, "tasks", tasks)
        found = runner.Session("rram_beside", tmp_path_factory.mktemp("results"))
        again = runner.Session("rram_beside", found.folder.parents[1])
        for config in PARTS:
            rram_beside.run(config, found)
            rram_beside.run(config, again)
        assert not again.written
        yield found


@pytest.fixture(scope="module")
def rows(session):
    return {record.row: record for record in read_folder(session.folder)[0]}


def test_rows_are_as_many_as_the_docstring_says(rows):
    config = rram_beside.Config()
    ways, seeds = 2 + len(config.factors), len(config.seeds)
    total = 1 + len(config.points) * (1 + ways * seeds)
    total += 2 + 2 * len(config.methods) * seeds
    assert runner.find("rram_beside").rows == total
    assert len(rows) == 1 + (1 + 3 * 2) + 2 + 2 * 2  # of the small one


def test_rows_under_noise_say_what_they_are(rows):
    noise = rows["noise"]
    assert noise.metrics["sigma"] in SMALL.sigmas
    for way in ("clean", "resampled", "halora-0.1"):
        record = rows[f"halora-chosen-{way}-s1"]
        assert record.config["sigma"] == noise.metrics["sigma"]
        assert record.metrics["rate"] in SMALL.rates
        assert {t: len(own) for t, own in record.series.items()} == {
            "0": 1, "0.5": 2, "1": 2, "2": 2,
        }  # fmt: skip
    trials = rows["rates-chosen"].metrics["trials"]
    assert set(trials) == {"clean", "resampled", "halora-0.1"}
    (tried,) = {len(own) for own in trials.values()}
    assert tried == len(PARTS[0].rates)


def test_rows_of_merges_say_what_they_are(rows):
    placed, healed = (rows[f"{n}-lori-s-s0"] for n in ("places", "healing"))
    assert placed.metrics["weight"] in SMALL.weights
    found = {name.split("/")[0] for name in (*placed.series, *healed.series)}
    assert found == set(PLACES)
    assert set(healed.metrics["rates"]) == set(HEALING)
    assert len(placed.series["merged/fashion"]) == 1
    assert len(placed.series["on-chip/turned"]) == 2
    assert len(healed.series["healed/mnist"]) == 2
    assert rows["fault"].metrics["total"] in SMALL.totals


def test_adapters_train_what_their_method_trains(session):
    found = session.load_arrays("adapters-s0")
    own = {(m, n): found[m]["turned"][n] for m in plan.METHODS for n in "ab"}
    np.testing.assert_array_equal(own["lori-d", "a"], own["lori-s", "a"])
    assert not np.array_equal(own["lora", "a"], own["lori-d", "a"])
    kept = own["lori-s", "b"] != 0
    assert kept.sum() == int(SMALL.density * kept.size)
    threshold = np.sort(np.abs(own["lori-d", "b"]).ravel())[-kept.sum()]
    np.testing.assert_array_equal(kept, np.abs(own["lori-d", "b"]) >= threshold)


def test_the_report_holds_what_was_run(session):
    blocks = rram_beside.report(read_folder(session.folder)[0])
    figures = [block for block in blocks if isinstance(block, Figure)]
    assert [figure.name for figure in figures] == ["beside-noise", "beside-places"]
    for figure in figures:
        assert figure.figure().axes


def test_the_best_of_a_grid_is_finite():
    assert plan.best((1.0, 2.0, 3.0), [0.2, 0.7, 0.6]) == 2.0
    assert plan.best((1.0, 2.0, 3.0), [0.2, float("nan"), 0.6]) == 3.0


def test_images_are_turned():
    images = np.arange(8, dtype=np.float32).reshape(2, 4)
    assert plan.turn(images).tolist() == [[1, 3, 0, 2], [5, 7, 4, 6]]


# Verdicts


def record(kind, series, seed=0, **config):
    return Record(
        table="rram_beside", row=f"{kind}-{seed}-{'-'.join(config.values())}",
        config={"kind": kind, **config}, config_hash="0", seed=seed, metrics={},
        series=series, seconds=1.0, started="2026-01-01T00:00:00+00:00", command="",
        versions={}, commit="", dirty=False, device={},
    )  # fmt: skip


def under_noise(**twice):
    return [
        record("halora", {"2": [v, v + 0.01]}, seed, point="chosen", way=way)
        for way, v in twice.items()
        for seed in (0, 1)
    ]


def merges(method, *, healed=0.88, **places):
    """A method, by place, the same on all tasks; `healed` on the first alone."""
    off = ("single", "merged")
    found = []
    for seed in (0, 1):
        own = {
            f"{name}/{task}": [v] if name in off else [v, v]
            for name, v in places.items()
            for task in plan.TASKS
        }
        found.append(record("places", own, seed, method=method))
        again = {f"healed/{t}": [0.895] * 2 for t in plan.TASKS}
        again |= {f"heads/{t}": [0.85] * 2 for t in plan.TASKS}
        again |= {f"healed-clean/{t}": [0.92] * 2 for t in plan.TASKS}
        again["healed/fashion"] = [healed] * 2
        found.append(record("healing", again, seed, method=method))
    return found


def verdict(rows, which):
    table = claims.hypotheses(Records(rows))
    return next(row for row in table.rows if row[0].startswith(which))


def test_noise_is_judged_at_twice():
    rows = under_noise(clean=0.7, resampled=0.8)
    rows += under_noise(**{"halora-0.1": 0.75})
    assert verdict(rows, "B1")[1] == "supported"
    assert verdict(rows, "B1")[2] == "resampled minus clean +10.0 [+10.0, +10.0]"
    assert verdict(rows, "B2")[1] == "contradicted"
    assert verdict(rows[:4], "B2")[1] == "not run"


def test_merges_are_judged_by_what_is_lost():
    places = {
        "single": 0.95, "merged": 0.9, "single-chip": 0.8, "on-chip": 0.6,
        "digital": 0.7,
    }  # fmt: skip
    better = places | {"merged": 0.94, "on-chip": 0.75, "digital": 0.72}
    rows = merges("lora", **places)
    assert verdict(rows, "B3")[1] == "undecided: rows are missing"
    rows += [*merges("lori-s", **better), *merges("lori-d", **places)]
    assert verdict(rows, "B3")[1] == "contradicted"  # LoRI-S, by 3 points
    found = verdict(rows, "B4")
    assert found[1] == "supported"
    assert found[2].startswith("off the chip +4.0")
    assert "on it +15.0" in found[2]


@pytest.mark.parametrize(
    ("healed", "words"), [(0.885, "supported"), (0.875, "contradicted")]
)
def test_healing_has_to_bring_back_nine_tenths_on_every_task(healed, words):
    places = {"merged": 0.9, "digital": 0.7}  # 0.88 is enough
    rows = []
    for method in plan.METHODS:
        rows += merges(method, healed=healed, **places)
    assert verdict(rows, "B5")[1] == words
    assert verdict(rows, "B6")[1] == "supported"
    assert verdict(rows, "B7")[1] == "contradicted"  # 92 % without faults


# Page


def test_an_empty_report_is_complete():
    blocks = rram_beside.report(Records([]))
    assert not any(isinstance(block, Figure) for block in blocks)
    assert "not run" in str([b.text() for b in blocks if isinstance(b, Table)])


def test_the_page_has_room_for_the_tables():
    entry = runner.find("rram_beside")
    empty = Report(entry, rram_beside.report(Records()), Records(), [], False)
    updated = update_markdown(empty, (DOCS / "rram_beside.md").read_text())
    assert "B5: one adapter brings back 90 %" in updated
