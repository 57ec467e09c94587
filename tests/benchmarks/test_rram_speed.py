"""The timing of chips: agreement, noise sets, peers that are missing, its report."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import record as records
from benchmarks import runner, timing
from benchmarks.blocks import Table
from benchmarks.speed import _rram_hand as hand
from benchmarks.speed import _rram_jax as ours
from benchmarks.speed import _rram_measure as measure
from benchmarks.speed import _rram_nets as nets
from benchmarks.speed import _rram_peers as peers
from benchmarks.speed import _rram_report as rram_report
from benchmarks.speed import rram
from benchmarks.timing import Comparison

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"


@pytest.fixture(scope="module")
def mlp():
    return nets.problem("mlp", batch=3, rows=4, tile=16, seed=0, shrink=32)


@pytest.fixture
def _broadcast():
    """Biases are added as users write it; the benchmark's processes allow that."""
    with jax.numpy_rank_promotion("allow"):
        yield


# The contenders.


def test_the_chip_by_hand_holds_the_weights_and_gradients_of_lowranks(mlp):
    tx = ours.crossbar(mlp, ours.devices()["chip"])
    params = jax.tree.map(jnp.asarray, mlp.params)
    state = jax.jit(tx.init)(jax.random.key(0), params)
    cells = hand.from_lowrank(mlp, state.fixed)["fc2"]

    @jax.jit
    def of_lowrank(w):
        adapted = tx.apply(params | {"fc2": {"w": w}}, state)
        return jnp.sin(adapted["fc2"]["w"]).sum()

    @jax.jit
    def by_hand(w):
        steps = nets.NOISE.levels - 1.0
        scale = jnp.abs(jax.lax.stop_gradient(w)).max(0, keepdims=True)
        return jnp.sin(hand.deploy(w, cells, scale, steps)).sum()

    w = params["fc2"]["w"]
    assert w.shape == (16, 10)
    own, other = (jax.value_and_grad(f)(w) for f in (of_lowrank, by_hand))
    np.testing.assert_allclose(own[0], other[0], rtol=1e-5)
    np.testing.assert_allclose(own[1], other[1], rtol=1e-5, atol=1e-6)
    assert float(jnp.abs(own[1]).min()) == 0.0  # a stuck cell has no gradient


@pytest.mark.usefixtures("_broadcast")
def test_a_chip_by_hand_without_effects_is_the_network(mlp):
    products = hand.Chip(mlp.params, None, mlp.tile, nets.NOISE, None, False)
    np.testing.assert_allclose(
        mlp.forward(products, mlp.params, mlp.x),
        mlp.apply(mlp.params, mlp.x),
        rtol=1e-5,
        atol=1e-6,
    )
    assert hand.spans(784, 512) == [(0, 512), (512, 784)]
    assert hand.spans(84, None) == [(0, 84)]


def test_converters_by_hand_clip_and_round_straight_through():
    x = jnp.array([0.3, -5.0])
    value, grad = jax.value_and_grad(lambda x: hand._converted(x, 1.0, 2).sum())(x)
    assert float(value) == 0.5 - 1.0
    assert grad.tolist() == [1.0, 0.0]


def test_numbers_drawn_flat_are_those_of_jax():
    key = jax.random.key(1)
    assert jnp.array_equal(hand._normal(key, (2, 3)), jax.random.normal(key, (2, 3)))


def test_the_devices_of_a_noise_set_differ_as_their_names_say():
    kinds = ours.devices()
    assert [k.acts_in_product for k in kinds.values()] == [
        False, True, True, True, True, False, True,
    ]  # fmt: skip
    weight = np.sqrt(2) * kinds["noise"].read * hand.G_MAX / (hand.G_MAX - hand.G_MIN)
    assert weight == pytest.approx(nets.NOISE.weight)
    # A pair of cells adds its noise; one beside a reference has half of the range.
    single = kinds["cells"]
    assert isinstance(single.scheme, lrk.rram.Offset)
    assert single.write.sigma * np.sqrt(2) == pytest.approx(kinds["noise"].read)
    assert kinds["noise and converters"].adc.noise == pytest.approx(0.004)
    assert kinds["chip"].levels == nets.NOISE.levels


def test_one_tile_that_holds_every_layer_is_no_tile():
    lenet = nets.problem("lenet", batch=1, rows=1, tile=512, seed=0)
    assert lenet.tile is None
    assert set(lenet.axes) == {"conv1/w", "conv2/w"}
    assert nets.problem("mlp", batch=1, rows=1, tile=512, seed=0).tile == 512


@pytest.mark.usefixtures("_broadcast")
@pytest.mark.parametrize("network", ["mlp", "lenet"])
def test_torch_computes_the_same_network(network):
    pytest.importorskip("torch")
    given = nets.problem(network, batch=2, rows=2, tile=512, seed=1, shrink=32)
    model = peers.Model("torch", given)
    want = given.apply(given.params, given.x)
    np.testing.assert_allclose(model.logits(), want, rtol=1e-4, atol=1e-5)
    before = float(model.step())
    assert float(model.step()) < before
    assert len(model.evaluate(2)()) == 2


def test_a_peer_that_is_missing_fails_or_has_other_noise_is_named(mlp, monkeypatch):
    class Fake:
        def __init__(self, name, given):
            if name.startswith("aihwkit"):
                raise ImportError("nothing", name="aihwkit")
            if name == "torch, noise":
                raise TypeError("no\nsuch")
            self.scale = 1.0 if name == "lightning, noise" else 9.0
            self.step = given

        def logits(self):
            return self.scale * np.ones((2, 2))

    monkeypatch.setattr(peers, "Model", Fake)
    calls, spreads = {}, {"lowrank, noise": 1.1, "lowrank, noise and converters": 1.0}
    clean = np.zeros((2, 2))
    absent = measure._add_peers(calls, mlp, None, clean, spreads)
    assert list(calls) == ["lightning, noise"]
    assert absent["torch"] == "its logits differ"
    assert absent["torch, noise"] == "fails: TypeError: no"
    assert absent["lightning, noise and converters"] == "its noise is 9.00 of lowrank's"
    missing = [name for name, why in absent.items() if why == "not installed (aihwkit)"]
    assert len(missing) == 4


def test_a_chip_that_is_not_the_one_by_hand_stops_the_run(mlp):
    class Fake:
        def __init__(self, value):
            self.logits = lambda: jnp.full(3, value)

    made = {"by hand, chip": Fake(1.0), "lowrank, chip": Fake(1.1)}
    with pytest.raises(RuntimeError, match="by hand and lowrank differ by 9.1e-02"):
        measure._check_by_hand(mlp, made)
    measure._check_by_hand(mlp, {"lowrank, chip": Fake(1.0)})


def test_times_are_those_of_one_chip():
    times = Comparison("a", *({"a": np.ones((1, 2)), "b": np.ones((1, 2))},) * 2)
    each = measure._each(times, {"a": 4, "b": 1})
    assert (each.median_ms("a"), each.median_ms("b")) == (0.25, 1.0)


def test_what_one_process_left_out_is_combined_for_none():
    both = {"clean": np.ones((1, 2)), "torch": np.ones((1, 2))}
    kinds = both, {"clean": np.full((1, 2), 3.0)}
    parts = [{"times": Comparison("clean", own, own).as_dict()} for own in kinds]
    alike = timing.in_common(parts)
    assert [times.names for times in alike] == [["clean"]] * 2
    assert [times.median_ms("clean") for times in alike] == [1.0, 3.0]


# Records and report.


TIMES = {
    "clean": 2.0,
    "by hand, chip": 3.0,
    "lowrank, chip": 3.0,
    "lowrank, read": 3.8,
    "lowrank, noise": 3.0,
    "lowrank, map": 2.0,
    "lowrank, vmap": 6.0,
    "lowrank, one call per chip": 40.0,
    "lowrank, cells": 5.0,
    "lightning, noise": 7.5,
}


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the fresh processes; what was asked of them."""
    found = []

    def answer(module, args, processes):
        kind = module.partition(":")[2]
        found.append((kind, args, processes))
        about = {"peers": {"torch": "2.13"}, "cores": 1, "backend": "cpu"}
        if kind == "traces":
            return [{"traces": 1, **about}]
        ms = {n: [[t, t]] for n, t in TIMES.items()}
        times = {"baseline": "clean", "wall_ms": ms, "cpu_ms": ms}
        absent = {"aihwkit C++ tile, noise": "not installed (aihwkit)"}
        own = {"spread": {"lowrank, noise": 0.25}, "chips": {"lowrank, map": 100}}
        return [{"times": times, "absent": absent, **own, **about}] * processes

    monkeypatch.setattr(rram, "in_processes", answer)
    return found


def run(folder, **options):
    session = runner.Session("speed/rram", folder)
    rram.run(rram.Config(**options), session)
    return records.read_folder(session.folder)[0], session


def test_rows_are_written_once_and_resumed(asked, tmp_path):
    _, session = run(tmp_path)
    assert len(session.written) == runner.find("speed/rram").rows
    assert [(kind, processes) for kind, _, processes in asked] == [
        ("traces", 1), ("step", 3), ("chips", 1), ("step", 3), ("chips", 1),
    ]  # fmt: skip
    assert asked[2][1]["counts"] == {"own": 100, "vmap": 20, "peers": 5}
    run(tmp_path)
    assert len(asked) == 5
    run(tmp_path, chips=10)
    assert [kind for kind, *_ in asked[5:]] == ["chips", "chips"]


@pytest.mark.usefixtures("asked")
def test_goals_are_judged_from_the_records(tmp_path):
    found, _ = run(tmp_path)
    goals = {goal.text: goal for goal in rram_report.goals(found)}
    clean = "over the clean step, MLP 784-512-10"
    assert goals[f"step through a sampled chip {clean}"].verdict() == "met"
    assert goals[f"step with fresh read noise {clean}"].verdict() == "not met"
    last = goals[f"step with read noise, DAC and ADC {clean}"]
    assert (last.limit, last.verdict()) == (2.0, None)
    step = goals["step, LeNet-5, over lightning at equal noise"]
    assert step.value == pytest.approx((0.4, 0.4, 0.4))
    assert step.verdict() == "met"
    chip = goals["chips, LeNet-5, over lightning at equal noise"]
    assert chip.value[0] == pytest.approx(2 / 3)
    # A batch is not judged on a CPU, fast as it may be.
    batch = "chips batched over one call each, on an accelerator, LeNet-5"
    assert goals[batch].verdict() is None
    sweeps = "traces of sweeps of a stuck rate and of the spread of write noise"
    assert goals[sweeps].verdict() == "met"


@pytest.mark.usefixtures("asked")
def test_the_report_says_what_the_numbers_say(tmp_path):
    found, _ = run(tmp_path)
    tables = [b for b in rram.report(found) if isinstance(b, Table)]
    step = tables[1]
    assert step.caption.endswith("MLP 784-512-10, batch 128, tiles of 512 rows.")
    cells = {row[0]: [cell.strip() for cell in row[1:]] for row in step.text()}
    noisy = cells["aihwkit-lightning: fresh noise"]
    assert noisy[:3] == ["7.50", "3.75 [3.75, 3.75]", "0.40 [0.40, 0.40]"]
    assert cells["lowrank: fresh noise"][2:] == ["–", "0.250"]
    assert cells["aihwkit, C++ tile: fresh noise"] == ["not run"] * 4
    assert step.notes[1].startswith("1 thread on 1 core, cpu; torch 2.13.")
    assert step.notes[-1] == "aihwkit, C++ tile: fresh noise: not installed (aihwkit)."
    many = {row[0]: [cell.strip() for cell in row[1:]] for row in tables[2].text()}
    assert many["lowrank: chip, lax.map"][0] == "2.0"


def test_every_contender_has_a_line_in_the_report():
    assert set(rram_report.STEPS) == set(ours.STEPS) | set(peers.PEERS)
    assert set(rram_report.CHIPS) == set(ours.CHIPS) | set(peers.PEERS) - {"torch"}
    own = rram_report.pairs(list(rram_report.STEPS))
    for name in peers.PEERS:
        if name != "torch":
            assert own[name][0] == measure.equal(name)


def test_without_records_everything_is_not_run():
    found = rram.report(records.Records())
    tables = [block for block in found if isinstance(block, Table)]
    assert len(tables) == 1 + 2 * 2
    cells = [cell.strip() for table in tables for row in table.text() for cell in row]
    assert cells.count("not run") > 150


def test_the_smoke_config_is_tiny_and_the_page_has_its_markers():
    smoke = rram.Config().smoke()
    assert (smoke.rounds, smoke.chips, smoke.networks) == (2, 2, ("mlp",))
    assert {"clean", "lowrank, map"} <= set(smoke.contenders)
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert "<!-- records:speed/rram -->\n" in page
