"""The table of healed encoders on made-up texts: one tiny run, and its parts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import runner
from benchmarks.record import Record, Records, read_folder
from benchmarks.report import Figure, Table
from benchmarks.runner import Session
from benchmarks.tables import _rram_healing_text_report as reporting
from benchmarks.tables import _rram_healing_text_ways as ways
from benchmarks.tables import _rram_healing_text_work as working
from benchmarks.tables import rram_healing_text as table
from benchmarks.tables._rram_healing_text_ways import WAYS

CONFIG = dataclasses.replace(table.Config().smoke(), fewer=())
FEW = ("none", "head", "svd", "patch", "lori-d", "lori-s")


@pytest.fixture(scope="module")
def net(tmp_path_factory):
    session = Session("rram_healing_text", tmp_path_factory.mktemp("results"))
    return working.Net(CONFIG, session, "trec")


@pytest.fixture(scope="module")
def ran(net):
    """A run of a few ways, its session and its records."""
    session = net.session
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "WAYS", {name: WAYS[name] for name in FEW})
        patch.setattr(table, "TRAINED", ("lori-d", "lori-s"))
        patch.setattr(table, "CLEAN_WAYS", ("none", "lori-d"))
        patch.setattr(table, "Net", lambda *_: net)
        table.run(CONFIG, session)
    found, problems = read_folder(session.folder)
    assert not problems
    return session, found


def test_every_way_has_a_row_with_all_chips(ran):
    _, records = ran
    rows = {f"trec-{name}" for name in FEW} | {"trec-clean-none", "trec-clean-lori-d"}
    assert {record.row for record in records} == rows
    for record in records:
        chips = CONFIG.chips if record.config["faults"] else CONFIG.clean
        assert len(record.series["accuracy"]) == chips
        assert record.get("accuracy/value") == pytest.approx(
            np.mean(record.series["accuracy"])
        )


def test_rows_name_the_device_and_a_clean_one_has_no_faults(ran):
    _, records = ran
    faulty, clean = (records.get(f"trec-{n}") for n in ("none", "clean-none"))
    total = faulty.get("device/p_lrs") + faulty.get("device/p_hrs")
    assert f"{total:g}" in faulty.get("lost_by_rate")
    assert clean.get("device/p_lrs") == clean.get("device/p_hrs") == 0
    assert faulty.get("device/g_max") == 100


def test_a_second_run_does_no_work(ran, monkeypatch):
    session = Session("rram_healing_text", ran[0].folder.parents[1])
    monkeypatch.setattr(table, "WAYS", {name: WAYS[name] for name in FEW})
    monkeypatch.setattr(table, "CLEAN_WAYS", ("none", "lori-d"))
    monkeypatch.setattr(table, "_task_rows", None)
    table.run(CONFIG, session)
    assert not session.written


def test_chips_differ_in_their_faults_and_repeat_by_number(net):
    one, again, other = (net._analog(0.2, i) for i in (0, 0, 1))

    def cells(tree):
        return np.asarray(tree["layer"]["1"]["output"]["dense"]["kernel"].pair)

    np.testing.assert_array_equal(cells(one), cells(again))
    assert np.mean(cells(one) != cells(other)) > 0.1


def test_training_sees_the_weights_that_the_cells_hold(net):
    held = net.hold(0.2, 0)
    path = "intermediate"
    plain = held.plain["layer"]["1"][path]["dense"]["kernel"]
    analog = held.analog["layer"]["1"][path]["dense"]["kernel"]
    wanted = net.start[0]["layer"]["1"][path]["dense"]["kernel"]
    np.testing.assert_allclose(plain, analog.programmed_weight())
    assert np.mean(np.abs(plain - wanted) > 1e-4) > 0.1
    bias = net.start[0]["layer"]["1"][path]["dense"]["bias"]
    np.testing.assert_array_equal(held.plain["layer"]["1"][path]["dense"]["bias"], bias)


def test_a_full_patch_leaves_only_converters_and_noise(net):
    held = net.hold(0.2, 0)
    params, head = net.start
    count = sum(n * m for n, m in ways.shapes(net.cut).values())
    mended = lrk.rram.patch(params, held.analog, count, select=net._on_chip)
    clean = net._analog(0.0, 0)
    logits = [net.logits(tree, head, "test") for tree in (mended, clean, held.analog)]
    whole = net.logits(params, head, "test")
    near, same, far = (np.abs(x - whole).mean() for x in logits)
    assert near < 2 * same
    assert far > 2 * near


def test_lori_trains_what_its_mask_keeps(net):
    way, rank = WAYS["lori-s"], CONFIG.rank
    tx = ways.transform(way, net.cut, rank, CONFIG.density)
    fresh = tx.init(jax.random.key(0), net.cut.params)
    error = {path: jnp.ones(shape) for path, shape in ways.shapes(net.cut).items()}
    error = {p: e.at[:, 0].mul(50.0) for p, e in error.items()}
    mask = ways.fault_mask(fresh, error, CONFIG.density)
    kept = sum(int(own.sum()) for own in mask.values())
    assert kept == ways.dimension(net.cut, rank, CONFIG.density)
    assert sum(int(own[:, 0].sum()) for own in mask.values()) >= kept / 2
    state, keep = ways.start(way, jax.tree.map(np.asarray, fresh), mask, rank)
    for path, own in keep.items():
        assert not own["a"].any()
        np.testing.assert_array_equal(own["b"], mask[path])
        np.testing.assert_array_equal(
            state.trainable[path]["a"], fresh.trainable[path]["a"]
        )


@pytest.mark.parametrize("name", ["retrain", "retrain-mapped"])
def test_retraining_writes_to_the_same_chip(net, name):
    """Healthy cells take new weights; what stuck pairs give stays as it was."""
    held = net.hold(0.2, 0)
    adapted, _ = net.healed(name, held, 1e-2)
    one, two = (
        tree["layer"]["1"]["output"]["dense"]["kernel"].pair
        for tree in (held.analog, adapted)
    )
    moved = np.asarray(one != two)
    assert moved.mean() > 0.1
    key = jax.random.split(net._key(0))[0]
    chip = net._sampled(jnp.float32(0.2), key)["layer/1/output/dense/kernel"]
    stuck = np.asarray(chip["code"]) != lrk.rram.OK
    assert 0.1 < stuck.mean() < 0.3
    both = stuck.all(axis=0)  # what is kept of a pair is its difference
    assert both.any()
    assert not moved.reshape(both.shape)[both].any()


def test_programming_by_the_map_errs_less(net):
    held, wanted = net.hold(0.2, 0), net.start[0]
    chip = net._sampled(jnp.float32(0.2), jax.random.split(net._key(0))[0])
    mapped = net._through[1](wanted, chip)
    plain = net._hold(jnp.float32(0.2), mapped, net._key(0))[1]
    off = [
        np.abs(t["layer"]["1"]["output"]["dense"]["kernel"] - w).mean()
        for w in [wanted["layer"]["1"]["output"]["dense"]["kernel"]]
        for t in (held.plain, plain)
    ]
    assert off[1] < off[0]


def test_a_wide_lora_has_a_program_of_its_own(net):
    names = {n: net._program(WAYS[n]) for n in ("lora-tiny", "lora", "lora-wide")}
    assert names["lora-tiny"] == names["lora"] != names["lora-wide"]
    state = net._transform(WAYS["lora-wide"])[1](jax.random.key(0), net.cut.params)
    assert all(own["a"].shape[1] == 2 * CONFIG.rank for own in state.trainable.values())


def test_points_have_labels_and_options_of_their_own():
    found = dict(table.points(table.Config()))
    assert list(found) == ["", "lrs83", "n32"]
    assert (found["lrs83"].lrs, found["n32"].labelled) == (5 / 6, 32)
    rows = runner.find("rram_healing_text").rows
    few = len(ways.FEW) + len(set(ways.FEW) & set(table.CLEAN_WAYS))
    whole = len(WAYS) + len(table.CLEAN_WAYS)
    assert rows == 2 * (whole + 2 * few)


def test_costs_are_those_of_the_shapes(net):
    w, rank = 16, CONFIG.rank
    ins, outs = 4 * w + w + 2 * w, 4 * w + 2 * w + w
    found = {n: ways.cost(n, net.cut, rank, CONFIG.density) for n in WAYS}
    assert found["lora"] == (rank * (ins + outs), 4 * rank * (ins + outs)) + (
        rank * (ins + outs),
    )
    assert found["svd"] == found["lora"]
    assert found["svd-wide"].numbers == 4 * found["lora"].numbers
    assert found["lora-small"].numbers == ins + outs
    assert found["lori-d"].numbers == rank * outs
    assert found["patch"].bytes == found["lora"].bytes
    assert found["lori-s"].numbers == found["subspace"].numbers
    assert found["digital"].numbers == 4 * w + 2 * w + w + 4 * w
    assert found["none"] == found["head"] == (0, 0, 0)


def made(name, marks, whole=0.9, **more):
    """A record of one way with given accuracies of its chips."""
    config = {
        "task": "trec", "way": name, "rank": 8, "aim": [0.1, 0.3], "faults": True,
        "texts": 10, "bits": 8, "tile": 128, "tuning": 2, "layers": 2, "steps": 48,
        "heal_steps": 32, "batch": 16, "labelled": 512, "lrs": 0.5,
    }  # fmt: skip
    metrics = {
        "whole": whole,
        "fifth": min(marks),
        "cost": {"numbers": 1, "bytes": 4, "multiply_adds": 1},
        "head": 0,
        "rate": 0.0,
        "device": dict.fromkeys(("p_lrs", "p_hrs", "g_min", "g_max", "read"), 0.01),
        "lost_by_rate": {"0.01": 0.2},
    }
    return Record(
        table="rram_healing_text", row=f"trec-{name}", config=config | more,
        config_hash="0", seed=0, metrics=metrics, series={"accuracy": list(marks)},
        seconds=1.0, started="2026-01-01", command="", versions={}, commit="0" * 40,
        dirty=False, device={},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("head", "word"), [(0.72, "holds"), (0.88, "fails"), (0.8, "open")]
)
def test_hypotheses_are_judged_by_the_intervals(head, word):
    low, wiggle = np.full(6, 0.7), np.array([-0.01, 0.01] * 3)
    records = Records([made("none", low), made("head", low * 0 + head + wiggle)])
    tables = [b for b in reporting.blocks(records) if isinstance(b, Table)]
    first = tables[0].text()[0]
    assert first[0] == "H1"
    assert first[2].startswith(word)
    assert all("not run" in row for row in tables[0].text()[1:])


@pytest.mark.parametrize(
    ("lora", "words"), [(0.85, "most comes back by LoRA"), (0.6, "healing fails")]
)
def test_verdict_is_computed(lora, words):
    records = Records([made("none", [0.7] * 4), made("lora", [lora] * 4)])
    text = reporting.blocks(records)[1].text
    assert words in text
    assert "90.0 %" in text
    assert "outside" not in text
    far = Records([made("none", [0.2] * 4, whole=0.9)])
    assert "outside the 10 to 30" in reporting.blocks(far)[1].text


def test_report_is_complete_with_and_without_records(ran):
    found = table.report(ran[1])
    assert sum(isinstance(block, Figure) for block in found) == 1
    tables = [block for block in found if isinstance(block, Table)]
    names = [row[0] for row in tables[1].text()]
    assert names[0] == "no action"
    assert "LoRI-D, rank 2" in names
    empty = [block for block in table.report(Records()) if isinstance(block, Table)]
    assert len(empty) == 4
    assert all("not run" in row for block in empty for row in block.text())


def test_options_keep_the_number_of_rates_equal():
    grids = [*table.RATES.values(), table.RETRAIN_RATES]
    assert len({len(rates) for rates in grids}) == 1
    assert {*table.RATES, "retrain"} == {WAYS[n].kind for n in ways.TRAINED}
    assert dataclasses.replace(table.Config(), chips=3).chips == 3
