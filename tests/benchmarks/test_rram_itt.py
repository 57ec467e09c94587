"""The table of ITT: its plan, chips as they are seated, rows and report."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import lowrank as lrk
from benchmarks import runner
from benchmarks.chips.nets import Net
from benchmarks.record import Record, Records, read_folder
from benchmarks.report import Figure, Report, Table, render_page, update_markdown
from benchmarks.stats import generator
from benchmarks.tables import _rram_itt_chips as chips
from benchmarks.tables import _rram_itt_figures as figures
from benchmarks.tables import _rram_itt_lenet as banded
from benchmarks.tables import _rram_itt_overhead as overhead
from benchmarks.tables import _rram_itt_plan as plan
from benchmarks.tables import _rram_itt_report as reporting
from benchmarks.tables import rram_itt
from benchmarks.tables._rram_itt_chips import Numbers
from benchmarks.tables._rram_itt_rows import Work
from benchmarks.tables._rram_itt_train import Lab, Options
from lowrank import rram
from lowrank.models import LeNet5, functional

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
OPTIONS = Options(
    spare=2, conv_spare=0, tolerance=0.1, freeze=0.5, penalty=1e-3, device_steps=2,
    device_rate=0.5, staged=0.25, importance=16,
)  # fmt: skip
HEAVY = Numbers(0.1, 0.1, 0.0)


def apply(params, x):
    a, b = params["a"], params["b"]
    hidden = jnp.maximum(x @ a["kernel"] + a["bias"][None], 0.0)
    return hidden @ b["kernel"] + b["bias"][None]


def tiny_net(seed=0):
    """A net that is right about made-up points around four centres."""
    draw = generator(seed)
    y = np.arange(64, dtype=np.int32) % 4
    x = np.eye(4, 6, dtype=np.float32)[y] * 3
    x = x + 0.1 * draw.normal(size=x.shape).astype(np.float32)
    wide = np.concatenate([np.eye(6), -np.eye(6)], axis=1)[:, :8].astype(np.float32)
    params = {
        "a": {"kernel": wide, "bias": np.zeros(8, np.float32)},
        "b": {
            "kernel": np.eye(8, 4, dtype=np.float32),
            "bias": np.zeros(4, np.float32),
        },
    }
    axes = {f"{layer}/kernel": lrk.Axes((), (0,), (1,)) for layer in "ab"}
    return Net("mlp-mnist", apply, params, axes, (x, y), (x, y), (x, y))


@pytest.fixture(scope="module")
def lab():
    return Lab(tiny_net(), OPTIONS, seed=0, valid=32, test=64)


def healed(lab, recipe, numbers=HEAVY, count=3, rate=0.05, steps=8):
    keys = lab.keys("test", count)
    rows = lab.layout.unmoved(count)
    if recipe.assigned:
        found = [lab.assign(numbers, key)[0] for key in keys]
        rows = {path: np.stack([own[path] for own in found]) for path in rows}
    given = lab.given(lab.batches(steps, 16), "test")
    return lab.heal(recipe, numbers, keys, rows, given, rate)


# Plan


def test_points_are_those_of_the_presets():
    for name, preset in (("chen-a", rram.chen2015_a()), ("chen-b", rram.chen2015_b())):
        assert (plan.POINTS[name].lrs, plan.POINTS[name].hrs) == (
            preset.p_lrs,
            preset.p_hrs,
        )
    assert plan.POINTS["s20"][1:] == (0.1, 0.1, 0.0)
    assert plan.POINTS["hrs20"].lrs == 0.0
    assert plan.POINTS["sigma1.5"].sigma == 1.5


def test_recipes_leave_out_one_part():
    full = plan.recipe("itt", "lenet")
    assert full.on_device
    assert not plan.recipe("itt", "mlp").on_device
    assert plan.recipe("itt+staged", "mlp") == full._replace(on_device=False)
    assert plan.base("itt-staged") == "itt"
    assert plan.base("fap+t") == "fap+t"
    for method in plan.ablations("lenet"):
        own = plan.recipe(method, "lenet")
        assert sum(a != b for a, b in zip(own, full, strict=True)) == 1
    assert "itt-on_device" not in plan.ablations("mlp")
    with pytest.raises(ValueError, match="unknown method 'itt-magic'"):
        plan.recipe("itt-magic", "mlp")


def test_pruning_needs_faults():
    assert not plan.applies("fap+t", plan.POINTS["sigma1"])
    assert plan.applies("fap", plan.POINTS["s20"])
    assert plan.applies("itt", plan.POINTS["sigma1"])


# Chips


def test_a_seated_chip_is_the_chain_of_transforms(lab):
    """Moving the map is moving the weights: permute, flip, program, and back."""
    key, lay, params = jax.random.key(3), lab.layout, lab.net.params
    numbers = Numbers(0.2, 0.2, 0.3)
    chip = chips.sampled(lay, numbers, key)
    rows, _ = lab.assign(numbers, key)
    assert any((rows[p] != np.arange(len(rows[p]))).any() for p in rows)
    signs = {
        p: np.where(np.arange(cols) % 2, -1, 1) for p, (_, cols) in lay.shapes.items()
    }
    seated = chips.seated(chip, rows, signs)
    fast = lay.transform(numbers).apply(params, seated)
    crossbar = rram.crossbar(chips.device(numbers), select=chips.on_chip)
    seat = rram.permute(rows, spare=2)
    turn = rram.flip(signs)
    back = rram.unpermute(rows, spare=2)
    wanted = seat.apply(params, seat.init(key, params))
    wanted = turn.apply(wanted, turn.init(key, wanted))
    wanted = crossbar.apply(wanted, chip)
    wanted = turn.apply(wanted, turn.init(key, wanted))
    slow = back.apply(wanted, back.init(key, wanted))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), dict(fast), dict(slow)
    )


def test_every_method_meets_the_same_cells(lab):
    key, home = jax.random.key(1), lab.layout.unmoved(1)
    chip = chips.sampled(lab.layout, HEAVY, key)
    same = chips.seated(chip, {path: rows[0] for path, rows in home.items()})
    for path, (rows, _) in lab.layout.shapes.items():
        whole = chip.fixed[path]["code"]
        assert whole.shape[-2] == rows + 2
        np.testing.assert_array_equal(same.fixed[path]["code"], whole[:, :rows])


def test_stages_are_layers_in_order_of_depth(lab):
    first, second = lab.layout.stages
    leaf = jax.ShapeDtypeStruct((6,), jnp.float32)
    assert first("a/bias", leaf)
    assert not first("b/kernel", leaf)
    assert second("b/kernel", leaf)


# LeNet-5


def test_banded_lenet_is_lenet():
    """Values, and gradients, which a wrong band would get wrong."""
    net, params = functional(LeNet5(rngs=nnx.Rngs(0)))
    x = jax.random.normal(jax.random.key(0), (2, 28, 28, 1))
    weights = jnp.arange(20.0).reshape(2, 10)
    found = [
        jax.value_and_grad(lambda p, f=f: jnp.sum(weights * f(p, x)))(params)
        for f in (net, banded.apply)
    ]
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3), *found
    )


# Healing


def test_a_clean_chip_costs_levels_only(lab):
    found = healed(lab, plan.recipe("none", "mlp"), Numbers(0.0, 0.0, 0.0))
    assert found["accuracy"].min() == lab.clean("test") == 1.0


def test_retraining_heals_and_itt_too(lab):
    none = healed(lab, plan.recipe("none", "mlp"))["accuracy"]
    assert none.mean() < 0.9
    for method in ("retrain", "itt"):
        found = healed(lab, plan.recipe(method, "mlp"), steps=30)
        assert found["accuracy"].mean() > none.mean() + 0.1
        assert found["losses"].shape == (3, 30)


def test_steps_on_the_device_write_cells(lab):
    found = healed(lab, plan.recipe("itt", "lenet"), rate=1e-30)
    assert found["losses"].shape == (3, 8)
    assert (found["written"] > 0).all()
    assert healed(lab, plan.recipe("itt", "mlp"))["written"].sum() == 0


def test_a_sweep_compiles_once(lab):
    recipe = plan.Recipe(assigned=True)
    found = [
        healed(lab, recipe, Numbers(*own), count=2)["accuracy"].mean()
        for own in ((0.0, 0.0, 0.0), (0.3, 0.3, 0.0), (0.0, 0.0, 1.5))
    ]
    assert lab.traces[recipe] == 1
    assert found[0] > found[1]


def test_bypassed_weights_count_as_zero(lab):
    recipe = plan.recipe("fap", "mlp")
    chip = chips.seated(
        chips.sampled(lab.layout, HEAVY, jax.random.key(2)),
        {path: rows[0] for path, rows in lab.layout.unmoved(1).items()},
    )
    deployed = lab.deployment(recipe, HEAVY, chip)(lab.net.params)
    faulty = (chip.fixed["a/kernel"]["code"] != rram.OK).any(0)
    assert faulty.any()
    assert not np.asarray(deployed["a"]["kernel"])[faulty].any()


def test_choices_see_other_chips_than_results(lab):
    data = [jax.random.key_data(lab.keys(kind, 4)) for kind in ("test", "valid")]
    assert not np.isin(data[0], data[1]).all(axis=1).any()
    np.testing.assert_array_equal(data[0][:2], jax.random.key_data(lab.keys("test", 2)))


# Rows


def test_a_rate_is_chosen_on_validation(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.chips.nets.load", lambda *_, **__: tiny_net())
    config = rram_itt.Config(
        rates=(1e-30, 0.05), chips=2, trials=2, steps_mlp=30, batch=16, valid=32,
        test=64, importance=16, spare_mlp=2, many=3, points=("s20",),
        methods=("none", "retrain"),
    )  # fmt: skip
    session = runner.Session("rram_itt", tmp_path)
    Work(config, session).points("mlp", "mnist")
    records, problems = read_folder(session.folder)
    assert not problems
    assert records.get("rate-mlp-mnist-retrain-s20").metrics["rate"] == 0.05
    row = records.get("point-mlp-mnist-retrain-s20")
    assert len(row.metrics["accuracies"]) == 2
    assert row.config["rate"] == 0.05
    again = runner.Session("rram_itt", tmp_path)
    Work(config, again).points("mlp", "mnist")
    assert not again.written


# Report


def record(kind, net, method, point, accuracies, **more):
    row = f"{kind}-{net}-mnist-{method}-{point}"
    own = plan.POINTS[point]
    config = {
        "kind": kind, "net": net, "dataset": "mnist", "method": method,
        "point": point, "chips": len(accuracies), "sigma": own.sigma, "test": 100,
        "batch": 8, "steps": 5, "seed": 0, "synthetic": True,
    }  # fmt: skip
    metrics = {"clean": 0.98, "accuracies": list(accuracies), "compiled": 1, **more}
    kept = {"commit": "unknown", "dirty": False, "device": {}, "versions": {}}
    return Record(
        "rram_itt", row, config, "", 0, metrics, {}, 1.0, "2026-01-01", "", **kept
    )


def made_up(itt=0.975):
    found = []
    for net in plan.NETS:
        for name in ("s00", "s20", "hrs20", "lrs20", "sigma0.5", "sigma1"):
            none = 0.98 if name == "s00" else 0.5 if name == "lrs20" else 0.7
            found += [
                record("point", net, "none", name, [none, none - 0.01]),
                record("point", net, "retrain", name, [0.974, 0.973]),
                record("point", net, "spare", name, [0.9, 0.88]),
                record("point", net, "itt", name, [itt, itt - 0.001], written=[3, 5]),
            ]
    found.append(record("yield", "mlp", "itt", "s20", [0.975] * 9 + [0.9]))
    found.append(record("ablation", "mlp", "itt+staged", "s20", [0.96, 0.961]))
    return Records(found)


def verdicts(records):
    return {h.name: h.verdict() for h in reporting.expected(records)}


def test_hypotheses_are_judged():
    assert set(verdicts(made_up()).values()) == {"supported"}
    worse = verdicts(made_up(0.96))
    assert worse["I1"] == worse["I2"] == "contradicted"
    assert set(verdicts(Records()).values()) == {"not run"}


def test_claims_say_what_is_met():
    def marks(records):
        table = reporting._claims(records)
        return {(row[0], row[1]): row[-1] for row in table.text()}

    key = (plan.NETS["mlp"], "(10, 10)")
    assert marks(made_up())[key] == "met"
    assert marks(made_up(0.96))[key] == "not met"
    assert marks(made_up(0.9705))[key] == "undecided"
    assert marks(Records())[key] == "not run"


def test_worst_chip_and_percentile_are_shown():
    text = reporting.summary(record("point", "mlp", "itt", "s20", [0.9, 0.98, 0.97]))
    assert text == "95.0 / 90.7 / 90.0"


def test_yields_count_chips_within_a_point():
    table = reporting._yields(made_up())
    row = next(r for r in table.text() if r[:2] == [plan.NETS["mlp"], "ITT"])
    assert row[2:] == ["10", "90 [60, 98]", "8.00"]


def test_steps_to_equal_accuracy():
    own = record("budget", "mlp", "itt", "s20", [])
    own.config.pop("chips", None)  # as in records of before there were fresh chips
    series = {"steps": [0, 16, 25], "accuracies": [[0.5], [0.971], [0.98]]}
    object.__setattr__(own, "series", series)
    assert overhead.near(own) == "16"
    series["accuracies"] = [[0.5], [0.6], [0.7]]
    assert overhead.near(own) == "more than 25"
    assert "those that the rate was chosen on" in overhead.budget_note(Records([own]))
    own.config["chips"] = 2
    series["accuracies"] = [[0.5, 0.6], [0.96, 0.981], [0.98, 0.98]]
    own.config["kind"] = "budget"
    assert overhead.near(own) == "16 [16, 25]"
    assert "2 chips that no choice" in overhead.budget_note(Records([own]))


def test_divergence_is_named():
    own = record("point", "lenet", "itt", "sigma1", [0.098, 0.1])
    assert reporting.diverged(own)
    assert not reporting.diverged(record("point", "mlp", "itt", "s20", [0.1, 0.6]))
    table = reporting._claims(Records([own]))
    assert "not met: diverged" in [row[-1] for row in table.text()]


def test_rates_at_an_end_are_marked():
    own = record("rate", "mlp", "itt", "s20", [], rate=0.1)
    own.config["rates"] = [0.1, 0.2]
    own.metrics["tried"] = {"0.1": [0.5, 0.7], "0.2": [0.4]}
    (row,) = overhead.rates(Records([own])).text()
    assert row[2:] == ["ITT", "(10, 10)", "0.1 *", "60.0 / 40.0"]


def test_spare_rows_are_said():
    old = record("point", "lenet", "itt", "s20", [0.9])
    old.config["spare"] = 8
    words = "8 of each dense layer, {} of each convolution."
    assert reporting.spare_rows(Records([old])).endswith(words.format(8))
    old.config["spare_conv"] = 0
    assert reporting.spare_rows(Records([old])).endswith(words.format(0))


def test_convolutions_have_spare_rows_of_their_own():
    net, params = functional(LeNet5(rngs=nnx.Rngs(0)))
    axes = lrk.trace_axes(net, params, jnp.zeros((1, 28, 28, 1)))
    lay = chips.layout(params, axes, 8)
    assert {p: n for p, n in lay.spare.items() if n} == {
        f"fc{i}/kernel": 8 for i in (1, 2, 3)
    }


def test_energy_is_counts_by_published_constants():
    counts = {"conversions": 1000, "multiply_adds": 0, "bytes_moved": 0}
    assert overhead.energy(counts) == pytest.approx(1.67)
    digital = {"conversions": 0, "multiply_adds": 1000, "bytes_moved": 4000}
    assert overhead.energy(digital) == pytest.approx(4.6 + 5.0)


@pytest.mark.parametrize("records", [Records(), made_up()], ids=["none", "some"])
def test_the_report_is_whole(records):
    blocks = reporting.blocks(records)
    drawn = [block for block in blocks if isinstance(block, Figure)]
    assert bool(drawn) == bool(len(records))
    page = render_page("rram_itt", blocks, records)
    assert page.count("<svg") == len(drawn)
    assert len([b for b in blocks if isinstance(b, Table)]) == 11


def test_lines_hold_mean_percentiles_and_worst():
    lines = figures.lines_of(made_up(), "mlp", "mnist", plan.EVEN)
    np.testing.assert_allclose(lines["no action"][-1][[0, 1, 4]], [20, 69.5, 69.0])
    assert "FAP" not in lines


def test_the_page_takes_the_report():
    entry = runner.find("rram_itt")
    blocks = reporting.blocks(Records())
    text = (DOCS / "itt.md").read_text()
    updated = update_markdown(Report(entry, blocks, Records(), [], False), text)
    assert "I1: at (10, 10) ITT loses less than 1 point" in updated
