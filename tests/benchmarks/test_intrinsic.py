"""The table of intrinsic dimension: training, rows, and what the report reads off."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import runner
from benchmarks.record import Record, Records, read_folder
from benchmarks.report import Figure, Report, Table, render_page, update_markdown
from benchmarks.tables import _intrinsic_numbers as numbers_of
from benchmarks.tables import _intrinsic_plan as plan
from benchmarks.tables import _intrinsic_report as reporting
from benchmarks.tables import _intrinsic_train as training
from benchmarks.tables import _intrinsic_verdicts as verdicts
from benchmarks.tables import intrinsic_mnist
from benchmarks.tables._intrinsic_rows import Work
from tests.network import numbers

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


def apply(params, x):
    return x @ params["kernel"] + params["bias"][None]


PARAMS = {"kernel": jnp.asarray(numbers(1, 6, 3)), "bias": jnp.zeros(3)}
NET = training.Model(apply, PARAMS)


def images(count, seed):
    """Bytes whose brightest of three groups is the class."""
    y = np.arange(count, dtype=np.int32) % 3
    x = np.repeat(np.eye(3, dtype=np.float32)[y], 2, axis=1) * 150
    x = x + 50 * (1 + numbers(seed, count, 6)) / 2
    return jnp.asarray(x.astype(np.uint8)), jnp.asarray(y)


def tiny():
    (x, y), (tx, ty) = images(12, 2), images(10, 3)
    return {"x": x, "y": y, "tx": tx, "ty": ty}


# Training


@pytest.mark.parametrize("name", ["sparse", None])
def test_a_step_is_adams_on_the_loss_with_decay_of_theta(name):
    data, key = tiny(), jax.random.key(4)
    protocol = training.Protocol(epochs=1, batch=12, b2=0.99, l2=0.05, every=1)
    found = {}

    def train(place, first, rate, key, data):
        out, trained = training.trainer(NET, protocol)(place, first, rate, key, data)

        def loss(z):
            params = lrk.materialize(place(z))
            logits = jax.nn.log_softmax(apply(params, data["x"] / 255.0))
            own = -logits[jnp.arange(12), data["y"]].mean()
            return own + 0.05 * jnp.sum(params["kernel"] ** 2)

        found["value"], found["grad"] = jax.value_and_grad(loss)(first)
        found["penalty"] = 0.05 * jnp.sum(lrk.materialize(place(first))["kernel"] ** 2)
        return out, trained

    if name is None:
        out, trained = train(lambda p: p, PARAMS, 0.01, key, data)
    else:
        run = lrk.subspace.trial(train, getattr(lrk.subspace, name)(), 4)
        out, trained = run(PARAMS, 3, 0.01, key, data)
        assert trained["subspace"]["z"][3] == 0
        found["grad"] = {"subspace": {"z": found["grad"]["subspace"]["z"][:3]}}
        trained = {"subspace": {"z": trained["subspace"]["z"][:3]}}
    first = PARAMS if name is None else jax.tree.map(jnp.zeros_like, trained)
    for z, g, at in zip(
        *map(jax.tree.leaves, (trained, found["grad"], first)), strict=True
    ):
        # The first step of Adam is the rate times the sign, but for its epsilon.
        np.testing.assert_allclose(z, at - 0.01 * g / (jnp.abs(g) + 1e-8), atol=1e-6)
    np.testing.assert_allclose(
        out["loss"], [found["value"] - found["penalty"]], rtol=1e-5
    )


def test_training_learns_and_scores_when_due():
    protocol = training.Protocol(epochs=25, batch=5, b2=0.99, l2=0.0, every=10)
    run = training.program(NET, protocol, None, 0)
    out, _ = run(PARAMS, 0, np.float32(0.05), np.uint32(1), tiny())
    due = np.flatnonzero(np.isfinite(out["test"]))
    assert due.tolist() == [9, 19, 24]
    assert out["test"][-1] == out["train"] == 1.0
    assert out["loss"][-1] < out["loss"][0] / 2


def test_every_image_is_scored_once(monkeypatch):
    monkeypatch.setattr(training, "SCORED", 4)
    x, y = images(10, 5)
    for wrong in range(3):
        labels = y.at[:wrong].set((y[:wrong] + 1) % 3)
        ideal = {"kernel": jnp.asarray(np.repeat(np.eye(3), 2, axis=0), jnp.float32)}
        share = training.accuracy(apply, ideal | {"bias": jnp.zeros(3)}, x, labels)
        assert float(share) == pytest.approx(1 - wrong / 10)


def test_starts_are_he_normal():
    params = {"k": jnp.zeros((500, 40)), "conv": jnp.zeros((5, 5, 4, 60))}
    drawn = training.start(jax.random.key(0), params | {"bias": jnp.ones(40)})
    assert float(drawn["k"].std()) == pytest.approx((2 / 500) ** 0.5, rel=0.03)
    assert float(drawn["conv"].std()) == pytest.approx((2 / 100) ** 0.5, rel=0.05)
    assert not drawn["bias"].any()


@pytest.mark.parametrize("net", list(plan.NETS))
def test_nets_have_the_sizes_that_are_published(net):
    params = training.model(net, False).params
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == plan.NETS[net].size


def test_pixels_move_together_and_labels_are_random():
    data = tiny()
    moved = training.shuffled_pixels(data, 1)
    assert np.array_equal(np.sort(moved["x"], 1), np.sort(data["x"], 1))
    order = [
        next(j for j in range(6) if np.array_equal(moved["x"][:, i], data["x"][:, j]))
        for i in range(6)
    ]
    assert order != list(range(6))
    assert np.array_equal(moved["tx"], np.asarray(data["tx"])[:, order])
    drawn = training.random_labels(data, 8, 1)
    assert drawn["x"] is drawn["tx"]
    assert drawn["y"].shape == (8,)
    assert not np.array_equal(drawn["y"], training.random_labels(data, 8, 2)["y"])


def test_columns_in_use_do_not_depend_on_those_that_are_drawn():
    assert plan.largest("fastfood", 100) == plan.largest("fastfood", 1500) == 2048
    assert plan.largest("fastfood", 20_000) == 20_000
    assert plan.largest("sparse", 100) == 100


# Rows


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "model", lambda *_: NET)
    monkeypatch.setattr(training, "load", lambda *_: tiny())

    def opened(**more):
        config = intrinsic_mnist.Config(
            **{
                "nets": ("fc",), "seeds": (0, 1), "seeds_fc": (0, 1), "ds_fc": (3, 9),
                "epochs": 2, "batch": 6, "projection": "sparse", "levels": (3, 5),
                "choices": 8, "search_fc": (3, 9), "ratio": 1.4, **more,
            }
        )  # fmt: skip
        session = runner.Session("intrinsic_mnist", tmp_path)
        return Work(config, session)

    return opened


def test_rows_are_runs_and_resume(work):
    first = work(seeds=(2,))  # those of the other curves
    first.main("fc")
    records, problems = read_folder(first.session.folder)
    assert not problems
    names = {f"main-fc-{d}-s{s}" for d in ("direct", "d3", "d9") for s in (0, 1)}
    assert {r.row for r in records} == names
    row = records.get("main-fc-d3-s1")
    assert row.config["rate"] == 1e-3
    assert row.series["epoch"] == [1, 2]
    assert row.metrics["test"] == row.series["test"][-1]
    kept = first.session.load_arrays("main-fc-d3-s1", config=row.config)
    assert kept["z"].shape == (3,)
    again = work(ds=(9,))
    again.main("fc")
    assert not again.session.written
    again.bound("fc")
    assert set(again.session.written) == {"bound-fc-d9-s0", "bound-fc-d9-s1"}


def test_a_row_is_the_run_of_its_seed_alone(work):
    own = work()
    score = own.row("main", "fc", 9, 1)
    kept = own.session.load_arrays("main-fc-d9-s1")
    train = training.trainer(NET, training.Protocol(2, 6, 0.99, 1e-4, 1))
    run = lrk.subspace.trial(train, lrk.subspace.sparse(), 9, start=training.start)
    found, trained = run(PARAMS, 9, 1e-3, jax.random.key(1), tiny())
    np.testing.assert_allclose(kept["z"], trained["subspace"]["z"], rtol=1e-4)
    assert score == found["test"][-1]


def test_bounds_are_of_the_rounded_net(work):
    own = work()
    own.main("fc")
    own.bound("fc")
    records, _ = read_folder(own.session.folder)
    row = records.get("bound-fc-d9-s0")
    z = own.session.load_arrays("main-fc-d9-s0")["z"]
    for i, levels in enumerate((3, 5)):
        packed = lrk.subspace.quantise(z, levels)
        assert row.series["bits"][i] == packed.bits

        def scored(place, first, rate, key, data, packed=packed):
            del first, rate, key
            trained = {"subspace": {"z": jnp.asarray(packed.values)}}
            return training.scored(NET, place, trained, data["x"], data["y"])

        run = lrk.subspace.trial(scored, lrk.subspace.sparse(), 9, start=training.start)
        right = float(run(PARAMS, 9, 0.0, jax.random.key(0), tiny()))
        assert row.series["train_error"][i] == pytest.approx(1 - right)
        bound = lrk.subspace.compression_bound(1 - right, 12, packed.bits, choices=8)
        assert row.series["bound"][i] == pytest.approx(bound.bound)
    assert row.metrics["bound"] == min(row.series["bound"])


def test_search_adds_rows_of_the_curve_with_its_seeds(work):
    own = work(seeds_fc=(0,))
    own.search("fc")
    grid = {f"main-fc-d{d}-s0" for d in (3, 4, 6, 8, 9)}
    names = set(own.session.written)
    assert "main-fc-direct-s0" in names
    assert {"main-fc-d3-s0"} <= names - {"main-fc-direct-s0"} <= grid


def test_other_parts_have_rows_of_their_own(work):
    own = work(
        seeds=(0,), seeds_dense=(0,), ds_dense=(3,), epochs_dense=1, ds_labels=(9,),
        ds_pixels_fc=(3,), fractions=(0.5,), label_images=12, label_steps=2,
        label_epochs=3,
    )  # fmt: skip
    own.dense()
    own.labels()
    own.epochs()
    own.pixels("fc")
    records, _ = read_folder(own.session.folder)
    assert {r.row for r in records} == {
        "dense-fc-d3-s0", "beside-fc-d3-s0", "labels50-fc-d9-s0", "pixels-fc-direct-s0",
        "pixels-fc-d3-s0", "epochs50-fc-d9-s0",
    }  # fmt: skip
    assert records.get("dense-fc-d3-s0").config["projection"] == "dense"
    assert records.get("labels50-fc-d9-s0").config["train"] == 6
    assert records.get("labels50-fc-d9-s0").config["epochs"] == 2
    assert records.get("epochs50-fc-d9-s0").config["train"] == 6
    assert records.get("epochs50-fc-d9-s0").config["epochs"] == 3


# Report


def record(part, net, d, seed, test, **more):
    row = plan.row_name(part, net, d, seed)
    config = {
        "part": part, "net": net, "d": d, "epochs": 100, "train": more.pop("train", 10),
        "test": 10, "batch": 128, "rate": 1e-3, "b2": 0.99, "l2": 1e-4, "delta": 0.05,
        "synthetic": True, "choices": 5, "projection": "fastfood",
    }  # fmt: skip
    metrics = {"test": test, "train": test, "step_ms": 2.0, **more}
    kept = {"commit": "unknown", "dirty": False, "device": {}, "versions": {}}
    return Record(
        "intrinsic_mnist", row, config, "", seed, metrics, {}, 9.0, "2026-01-01", "",
        **kept,
    )  # fmt: skip


def made_up(shift=0.0, factor=1.0):
    """Records as the authors' runs would have them; `factor` moves pixels' curves."""
    found = []
    for seed in (0, 1, 2):
        noise = 0.002 * (seed - 1)
        for part in ("main", "pixels"):
            found.append(record(part, "fc", 0, seed, 0.981))
            found.append(record(part, "lenet", 0, seed, 0.99))
            scale = factor if part == "pixels" else 1.0
            for d, (low, high) in plan.AUTHORS.items():
                own = (low + high) / 2 + shift + noise
                found.append(record(part, "fc", round(d * scale), seed, own))
            for d, own in ((100, 0.7), (200, 0.85), (300, 0.92), (1500, 0.95)):
                at = d * 5 if part == "pixels" else d
                found.append(record(part, "lenet", at, seed, own + noise))
        found.append(record("dense", "fc", 300, seed, 0.825))
        for percent, count, middle in ((100, 2000, 8), (50, 1000, 6), (10, 200, 4)):
            for d, own in ((1, 0.5), (middle, 0.89), (10, 1.0)):
                for kind in ("labels", "epochs"):
                    part = f"{kind}{percent}"
                    found.append(record(part, "fc", 1000 * d, seed, own, train=count))
    more = {
        "levels": 5.0, "bits": 900.0, "train_error": 0.1, "test_error": 0.1,
        "bound": 0.2, "square_root": 0.25,
    }  # fmt: skip
    found.append(record("bound", "fc", 500, 0, 0.9, **more))
    toy = record("toy", "fc", 9, 0, 0.0, scores=[[0.1, 0.3], [1.0, 1.0]])
    toy.config.clear()
    toy.config.update({"part": "toy", "ds": [9, 10]})
    object.__setattr__(toy, "row", "toy")
    return Records([*found, toy])


def judged(records):
    return {name: own.verdict() for name, own in verdicts.expected(records).items()}


def test_hypotheses_are_judged():
    assert set(judged(made_up()).values()) == {"supported"}
    off = judged(made_up(shift=-0.03))
    assert off["M1"] == off["M7"] == "contradicted"
    assert judged(made_up(factor=1.6))["M5"] == "contradicted"
    assert set(judged(Records()).values()) == {"not run"}
    some = Records([r for r in made_up() if r.config.get("d") != 750])
    assert judged(some)["M1"] == "undecided: rows are missing"


def test_tolerance_is_beyond_the_authors_range():
    ends = plan.AUTHORS[750]
    assert numbers_of.within(ends[0] - 0.0149, ends)
    assert not numbers_of.within(ends[1] + 0.0151, ends)


def test_d90_is_that_of_the_library():
    scores = numbers_of.curve(made_up(), "main", "fc")
    found = numbers_of.dimensions(scores)
    assert (found.local.tested, found.overall.tested) == (750, 1000)
    assert 525 < found.local.interpolated < found.overall.interpolated < 900
    assert numbers_of.dimensions({d: s for d, s in scores.items() if d}) is None
    # A seed that lacks a dimension is left out, not filled up.
    del scores[500][2]
    assert numbers_of.grid(scores)[1].shape == (6, 2)


def test_anchors_say_what_is_met():
    def marks(records):
        return [row[4] for row in reporting._anchors(records).text()]

    assert marks(made_up()) == ["met"] * 7
    # The mean of d = 100, of the widest range, is in the middle of 3 points.
    assert marks(made_up(shift=0.031))[1:] == ["not met"] * 6
    assert marks(Records()) == ["not run"] * 7


@pytest.mark.parametrize("records", [Records(), made_up()], ids=["none", "some"])
def test_the_report_is_whole(records):
    blocks = reporting.blocks(records)
    drawn = [block for block in blocks if isinstance(block, Figure)]
    assert bool(drawn) == bool(len(records))
    page = render_page("intrinsic_mnist", blocks, records)
    assert page.count("<svg") == len(drawn)
    assert len([b for b in blocks if isinstance(b, Table)]) == 8


def test_the_page_takes_the_report():
    entry = runner.find("intrinsic_mnist")
    blocks = reporting.blocks(Records())
    text = (DOCS / "intrinsic.md").read_text()
    updated = update_markdown(Report(entry, blocks, Records(), [], False), text)
    for name, own in verdicts.expected(Records()).items():
        assert f"{name}: {own.text}" in updated
        assert f"**{name}.**" in text
