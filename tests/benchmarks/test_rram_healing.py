"""The table of healing: its plan, rows, verdicts and report."""

import dataclasses
import pathlib

import numpy as np
import pytest

from benchmarks import runner
from benchmarks.chips import nets
from benchmarks.chips.methods import parse
from benchmarks.record import Record, Records, read_folder
from benchmarks.report import Figure, Report, Table, update_markdown
from benchmarks.tables import _rram_healing_numbers as numbers
from benchmarks.tables import _rram_healing_plan as plan
from benchmarks.tables import _rram_healing_report as reporting
from benchmarks.tables import _rram_healing_verdicts as verdicts
from benchmarks.tables import rram_healing
from benchmarks.tables._rram_healing_numbers import Case, Needed, needed
from tests.benchmarks.small_net import tiny_net

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
CLEAN = 0.98
SMALL = dataclasses.replace(
    rram_healing.Config(),
    nets=("mlp",),
    points=("equal",),
    ways=("none", "svd-1", "head", "lora-1", "subspace-6"),
    parts=("main", "clean", "labels", "resampled"),
    chips=3,
    wide_chips=2,
    few_chips=2,
    tuning_chips=2,
    steps=6,
    batch=8,
    rates=(0.02, 0.05),
    weight_rates=(0.01, 0.02),
    labels=(8,),
    totals=(0.02, 0.3),
    valid=32,
    resample=3,
)


def record(way, accuracy, *, point="equal", net="mlp", kind="main", **more):
    """A row as a run would have written it."""
    config = {
        "kind": kind, "net": net, "point": point, "way": way, "labels": 0,
        "chips": len(accuracy), "steps": 5, "batch": 8, "rates": [0.01],
        "tuning_chips": 2, "valid": 32, "mask_rank": 3, "p_lrs": 0.05, "p_hrs": 0.05,
        "g_lrs": 100.0, "g_hrs": 10.0,
    }  # fmt: skip
    size = 10 * max(parse(way).size, 1)
    cost = {"numbers": size, "bytes": 4 * size, "multiply_adds": size}
    own = np.asarray(accuracy, float)
    metrics = {
        "mean": own.mean(), "low": own.min(), "worst": own.min(), "clean": CLEAN,
        "cost": {**cost, "seeded": 0, "written": False}, **more,
    }  # fmt: skip
    return Record(
        table="rram_healing", row=f"{kind}-{net}-{point}-{way}", config=config,
        config_hash="0", seed=0, metrics=metrics, series={"accuracy": own.tolist()},
        seconds=1.0, started="2026-01-01T00:00:00+00:00", command="", versions={},
        commit="", dirty=False, device={},
    )  # fmt: skip


def curve(kind, shares, **more):
    """Rows of a kind whose shares of a loss of .2 are given by size."""
    return [
        record(f"{kind}-{size}", [0.78 + 0.2 * share] * 3, **more)
        for size, share in shares.items()
    ]


def spectrum(full):
    return {"effective_rank": 512 * full, "full": full, "stable_rank": 9.0, "norm": 1.0}


def board(net="mlp", point="equal", full=0.9, **curves):
    none = record("none", [0.78] * 3, net=net, point=point, spectrum=spectrum(full))
    rows = [none]
    for kind, shares in curves.items():
        rows += curve(kind.replace("_", "-"), shares, net=net, point=point)
    return rows


# Plan


def test_groups_hold_every_way_once():
    config = rram_healing.Config()
    for net in plan.NETS:
        found = [way.name for group in config.chosen(net) for way in group]
        assert sorted(found) == sorted(plan.WAYS[net])
        assert all(len({way.group for way in g}) == 1 for g in config.chosen(net))
    some = dataclasses.replace(config, groups=("low",), ways=("lora-3", "svd-1"))
    assert [[way.name for way in g] for g in some.chosen("mlp")] == [["lora-3"]]
    assert set(plan.ONE_SIZE) <= {*plan.WAYS["mlp"], "subspace-1024"}


def test_rows_are_as_many_as_the_docstring_says():
    total = sum(
        len(plan.POINTS[net]) * (len(plan.WAYS[net]) + 1) + len(plan.WAYS[net])
        for net in plan.NETS
    )
    total += len(plan.LABELS) * len(plan.ONE_SIZE)
    total += sum(
        len(points) * len(plan.dimension_ways(net))
        for net, points in plan.HELD_OUT.items()
    )
    total += 2  # resampled chips, with the penalty and without
    assert runner.find("rram_healing").rows == total


# Rows


@pytest.fixture(scope="module")
def session(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        net = tiny_net()
        patch.setattr(nets, "load", lambda *_, **__: net)
        found = runner.Session("rram_healing", tmp_path_factory.mktemp("results"))
        rram_healing.run(SMALL, found)
        again = runner.Session("rram_healing", found.folder.parents[1])
        rram_healing.run(SMALL, again)
        assert not again.written
        yield found


def test_rows_say_what_they_are(session):
    rows = {record.row: record for record in read_folder(session.folder)[0]}
    point = rows["point-mlp-equal"].metrics
    assert point["total"] in SMALL.totals
    lora = rows["main-mlp-equal-lora-1"]
    assert lora.config["p_lrs"] == pytest.approx(point["total"] / 2)
    assert lora.metrics["rate"] in SMALL.rates
    assert len(lora.metrics["trials"]) == 2
    assert len(lora.series["accuracy"]) == 3
    assert lora.metrics["cost"]["numbers"] == 6 + 8 + 8 + 4
    wide = rows["main-mlp-equal-subspace-6"]
    assert (wide.config["chips"], wide.metrics["rate"] in SMALL.weight_rates) == (
        2,
        True,
    )
    assert rows["clean-mlp-clean-none"].metrics["mean"] == 1.0
    assert rows["clean-mlp-clean-none"].config["p_hrs"] == 0.0
    assert rows["labels-mlp-equal-head-n8"].config["labels"] == 8
    assert rows["main-mlp-equal-none"].metrics["spectrum"]["norm"] > 0


def test_extras_are_rows(session):
    rows = {record.row: record for record in read_folder(session.folder)[0]}
    assert rows["resampled-mlp-equal-0.1"].config["factor"] == 0.1


def test_the_report_holds_what_was_run(session):
    blocks = rram_healing.report(read_folder(session.folder)[0])
    text = str([block.text() for block in blocks if isinstance(block, Table)])
    assert "LoRA, rank 1" in text
    assert "resampled chips, penalty 0.1" in text


# Numbers


def test_a_share_is_of_what_was_lost():
    broken, healed = np.array([0.7, 0.8]), np.array([0.9, 0.9])
    value, low, high = numbers.share(healed, broken, 0.95)
    assert value == pytest.approx(0.15 / 0.2)
    assert low <= value <= high
    assert numbers.share(healed, np.array([0.95, 0.95]), 0.95) is None
    first, *_ = numbers.share(healed[:1], broken, 0.95)  # the same chip
    assert first == pytest.approx(0.2 / 0.25)


def test_the_needed_size_lies_between_sizes():
    cells = numbers.board(Records(board(lora={2: 0.5, 8: 1.0})), kind="main")
    assert needed(cells, "lora").size == pytest.approx(2 * 4**0.8)
    assert needed(cells, "svd") is None
    low = numbers.board(Records(board(lora={2: 0.95})), kind="main")
    assert str(needed(low, "lora")) == "<= 2"
    high = numbers.board(Records(board(lora={2: 0.1, 4: 0.2})), kind="main")
    assert str(needed(high, "lora")) == "> 4"


def test_one_factor_is_fitted_on_some_cases_only():
    def case(name, fitted, rank, feature, sign=""):
        return Case(name, fitted, Needed(rank, sign), {"d": feature})

    cases = [
        case("a", True, 4, 16.0), case("b", True, 8, 32.0),
        case("held", False, 4, 32.0), case("end", False, 32, 1.0, ">"),
        case("unknown", False, 4, None),
    ]  # fmt: skip
    found = numbers.fit(cases, "d")
    assert found.factor == pytest.approx(0.25)
    assert found.errors == {"held": pytest.approx(1.0)}
    assert numbers.fit(cases[2:], "d") is None


@pytest.mark.parametrize(
    ("one", "two", "bound"),
    [("", "", ""), (">", "", ">="), ("", ">", "<="), ("<=", "", "<="), (">", ">", "?")],
)
def test_a_ratio_knows_what_it_bounds(one, two, bound):
    assert verdicts.ratio(Needed(8, one), Needed(2, two)) == (4.0, bound)


# Verdicts


def verdict(rows, which):
    table = verdicts.hypotheses(verdicts.places(Records(rows)))
    return next(row for row in table.rows if row[0].startswith(which))


def test_the_first_hypothesis_is_judged_part_by_part():
    good = board(svd={256: 0.8, 400: 1.0}, lora={1: 0.8, 4: 1.0})
    assert [verdict(good, f"H1{x}")[1] for x in "abc"] == ["supported"] * 3
    low = board(full=0.3, svd={32: 0.8, 128: 1.0}, lora={1: 0.8, 4: 1.0})
    found = [verdict(low, f"H1{x}") for x in "abc"]
    assert [row[1] for row in found] == ["contradicted", "contradicted", "supported"]
    assert "rank 64 of 512" in found[1][2]
    near = board(svd={4: 0.8, 8: 1.0}, lora={2: 0.8, 8: 1.0})
    assert verdict(near, "H1c")[1] == "contradicted"
    open_end = board(svd={2: 0.5}, lora={1: 0.8, 4: 1.0})
    assert [verdict(open_end, f"H1{x}")[1] for x in "bc"] == ["undecided"] * 2
    assert verdict([], "H1a")[1] == "not run"


LORA = {1: 0.8, 4: 1.0}


def test_the_third_hypothesis():
    assert verdict(board(lora=LORA, lori_d={3: 0.8, 12: 1.0}), "H3")[1] == "supported"
    assert verdict(board(lora=LORA, lori_d={8: 0.8, 32: 1.0}), "H3")[1] == (
        "contradicted"
    )


@pytest.mark.parametrize(("rate", "ended"), [(0.08, True), (0.02, False)])
def test_a_rate_at_the_end_of_its_grid_leaves_it_undecided(rate, ended):
    rows = board(lora=LORA, lori_d={8: 0.8, 32: 1.0})
    for row in rows:
        if row.row.endswith("lori-d-32"):
            row.config["rates"] = [0.005, 0.02, 0.08]
            row.metrics["rate"] = rate
    _, words, figures = verdict(rows, "H3")
    assert words == ("undecided: the rate grid ends" if ended else "contradicted")
    assert figures.endswith(" *") == ended


def held_out(lenet=64):
    """All kinds of points; LeNet-5 needs four times the rank, clusters as much."""
    steps = {8: 0.8, 32: 1.0}
    rows = board(lora=LORA, subspace=steps)
    wide = {lenet // 2: 0.8, 2 * lenet: 1.0}
    rows += board("lenet", "lrs", lora={4: 0.8, 16: 1.0}, subspace=wide)
    for point in ("equal-low", "equal-clusters"):
        own = board(point=point, lora=LORA, subspace=steps)
        for row in own:
            row.config["kind"] = "dimension"
        rows += own
    return rows


@pytest.mark.parametrize(("right", "words"), [(64, "supported"), (4, "contradicted")])
def test_the_second_hypothesis(right, words):
    """LeNet-5 needs four times the rank; so does its dimension, or not."""
    assert verdict(held_out(right), "H2")[1] == words


def test_the_second_hypothesis_needs_every_kind_of_point():
    rows = [row for row in held_out() if "clusters" not in row.config["point"]]
    rows += board("mlp", "equal-clusters", lora={1: 0.95}, subspace={8: 0.8, 32: 1.0})
    for row in rows[-4:]:
        row.config["kind"] = "dimension"
    words = verdict(rows, "H2")[1]
    assert words == "undecided: no rank is known for the clustered map"


def test_other_shares_are_shown_beside():
    table = verdicts.thresholds(verdicts.places(Records(held_out())))
    assert table.columns[1:] == ("80 %", "90 %", "95 %", "97 %")
    assert table.rows[0][1:] == ["<= 1", "2", "2.83", "3.25"]
    assert table.rows[-1][0].startswith("H2")
    assert table.rows[-1][2] == "supported"


# Report


def test_an_empty_report_is_complete():
    blocks = rram_healing.report(Records([]))
    assert not any(isinstance(block, Figure) for block in blocks)
    assert "not run" in str([b.text() for b in blocks if isinstance(b, Table)])


def test_the_figure_has_every_curve_and_can_be_drawn():
    rows = board(
        lora={1: 0.5, 8: 1.0}, lori_d={1: 0.3, 8: 0.6}, svd={1: 0.1, 8: 0.4},
    )  # fmt: skip
    rows += [record("head", [0.9] * 3), record("retrain", [0.97] * 3, written=5.0)]
    blocks = rram_healing.report(Records(rows))
    (figure,) = [block for block in blocks if isinstance(block, Figure)]
    assert "LoRA: 50 % with 10 to 100 % with 80" in figure.alt
    axes = figure.figure().axes[0]
    assert axes.get_xscale() == "log"
    assert {text.get_text() for text in axes.texts} == {
        "head",
        "retraining all weights",
    }
    tables = [block for block in blocks if isinstance(block, Table)]
    equal = next(t for t in tables if "no more bytes" in t.caption and t.rows)
    assert [row[0] for row in equal.rows] == [
        "new head only",
        "SVD of the known error, rank 8",
        "LoRI-D, rank 8",
        "LoRA, rank 1",
        "retraining through the map",
    ]
    title = "MLP 784-512-10, LRS = HRS: every way and size."
    every = next(t for t in tables if t.caption == title)
    head = next(row for row in every.rows if row[0] == "new head only")
    assert head[1:4] == ["5 + 5; 100 / 10", 10, 40]


def test_labels_stand_beside_all():
    rows = board(lora={8: 1.0})
    few = record("lora-8", [0.9], kind="labels")
    few.config["labels"] = 10
    table = reporting._labels(Records([*rows, few]))
    assert table.columns[2:] == ("10", "all")
    assert list(table.rows[0][2:]) == ["90.0 (90.0)", "98.0 (98.0)"]


def test_the_page_has_room_for_the_tables():
    entry = runner.find("rram_healing")
    empty = Report(entry, rram_healing.report(Records()), Records(), [], False)
    updated = update_markdown(empty, (DOCS / "healing.md").read_text())
    assert "H2: the dimension of healing predicts" in updated
