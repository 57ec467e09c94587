"""Convolutional transfer: the draws, what each way changes, one run, the report."""

import pathlib

import jax
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import data, runner
from benchmarks.blocks import Table
from benchmarks.record import Record, Records
from benchmarks.study.convnet import at_cut, few, load_cut
from benchmarks.tables import _conv_transfer_report as reporting
from benchmarks.tables import conv_transfer
from benchmarks.tables._conv_transfer_ways import WAYS, Sizes
from benchmarks.tables._conv_transfer_work import Work

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
SMOKE = conv_transfer.Config().smoke()
SIZES = Sizes(2, 4, 2, 4, 0.1)


@pytest.fixture(scope="module")
def cut():
    return load_cut(1, 28, synthetic=True)


@pytest.fixture(scope="module")
def garments():
    return data.fashion_mnist(synthetic=True)


def test_few_images_are_as_many_of_each_class(garments):
    first, again, other = (few(garments.train, 3, seed) for seed in (0, 0, 1))
    assert np.bincount(first.y).tolist() == [3] * 10
    np.testing.assert_array_equal(first.x, again.x)
    assert not np.array_equal(first.x, other.x)
    with pytest.raises(ValueError, match="few: expected at least 99 images of every"):
        few(garments.train, 99, 0)


def test_the_cut_net_gives_the_whole_nets_features(cut, garments):
    images = at_cut(cut, garments.test.take(slice(3)))
    assert images.hidden.shape == (3, 7, 7, 16)
    whole = np.asarray(cut.lower(garments.test.x[:3]))
    np.testing.assert_allclose(images.hidden, whole, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for name, way in WAYS.items() if way.make])
def test_every_way_starts_at_the_frozen_net_and_stays_above_the_cut(cut, name):
    tx = WAYS[name].make(cut, SIZES)
    paths = lrk.select_paths(tx, cut.params)
    assert paths
    assert not [p for p in paths if not p.startswith(("blocks/1/", "head_"))]

    @jax.jit
    def start(params):
        return lrk.materialize(tx.apply(params, tx.init(jax.random.key(0), params)))

    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6),
        start(cut.params),
        cut.params,
    )


def test_sizes_of_the_ways_on_the_real_network():
    """About 20,000 numbers, but for those with a size of their own."""
    config = conv_transfer.Config()
    net = lrk.models.EfficientNetConfig(num_labels=0)
    above = net.blocks()[-config.blocks :]
    deep = [(block.n * block.expand, block.window**2) for block in above]
    wide = sum(b.n + b.m + 2 * b.n * b.expand for b in above)
    wide += net.blocks()[-1].m + net.head_width
    kernels = sum(width * places for width, places in deep)
    matrices = sum(places + width * places for width, places in deep)
    one = sum(places + width for width, places in deep)
    assert config.rank * wide == 19_584
    assert config.rank * wide + one == 23_099
    assert matrices > kernels  # rank 1 of the reshaped form is larger than the kernel
    pair = config.large_rank * wide + 3 * one, config.rank * wide + matrices
    assert abs(pair[0] / pair[1] - 1) < 0.05


def test_a_run_trains_adapter_and_head(tmp_path):
    work = Work(SMOKE, runner.Session("conv_transfer", tmp_path, smoke=True), 3)
    start = work.head(0)
    found = work.run("norms", 0, 1e-2)
    kernel, _ = found.head
    assert len(found.losses) == work.steps == 2
    assert found.seconds > 0
    assert found.trained == 208
    assert not np.allclose(kernel, start[0])
    own = found.params["blocks"]
    frozen = work.cut.params["blocks"]
    jax.tree.map(np.testing.assert_array_equal, own["0"], frozen["0"])
    norm, before = (x["1"]["depthwise_norm"]["scale"] for x in (own, frozen))
    assert not np.allclose(norm, before)
    rate, tried = work.rate("norms")
    assert rate in SMOKE.direct_rates
    assert len(tried) == len(SMOKE.direct_rates)


def _record(name, right):
    labels = "1" * 20
    marks = {"labels": labels, "test": "1" * right + "0" * (20 - right)}
    metrics = {
        "predictions": marks,
        "trained": 7,
        "rate": 0.01,
        "rates_tried": [0.5, 0.4],
    }
    config = {
        "kind": "run",
        "way": name,
        "synthetic": True,
        "side": 1,
        "shots": 1,
        "steps": 1,
    }
    config |= {"batch": 1, "valid": 1, "test": 20, "blocks": 1}
    return Record(
        "conv_transfer", name, config, "", 0, metrics, {}, 1.0, "2026", "",
        versions={}, commit="unknown", dirty=False, device={},
    )  # fmt: skip


def test_verdicts_follow_the_records():
    right = {"probe": 10, "lora": 16, "norms": 16, "lora-all": 20, "tucker": 20}
    records = Records([_record(name, own) for name, own in right.items()])
    verdicts = {h.name: h.verdict() for h in reporting.expected(records)}
    assert verdicts["C4"] == "contradicted"
    assert verdicts["C5"] == "supported"
    assert verdicts["C1"] == "undecided: rows are missing"
    assert verdicts["C2"] == "not run"


def test_the_report_stands_without_records():
    tables = [b for b in conv_transfer.report(Records([])) if isinstance(b, Table)]
    assert len(tables) == 2
    assert "over images and seeds" in tables[0].notes[0]
    assert all(np.size(t.rows) for t in tables)
    assert "<!-- records:conv_transfer -->" in (DOCS / "conv_transfer.md").read_text()
