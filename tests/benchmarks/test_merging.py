"""The timing of merges: agreement, peers that are missing or wrong, its report."""

import pathlib

import numpy as np
import pytest

from benchmarks import record as records
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.speed import _merging_dense as dense
from benchmarks.speed import _merging_measure as measure
from benchmarks.speed import _merging_methods as methods
from benchmarks.speed import _merging_peers as peers
from benchmarks.speed import _merging_report as merging_report
from benchmarks.speed import merging

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
LIMITS = measure.Limits(seconds=0.0, least=2, most=2)


@pytest.fixture(scope="module")
def given():
    return methods.problem(16, adapters=3, rank=2, seed=1)


# Agreement.


@pytest.mark.parametrize("name", dense.DENSE)
def test_merges_on_factors_agree_with_merges_of_formed_weights(given, name):
    program = methods.compiled(name, given)
    a, b = dense.DENSE[name](given)
    own = methods.change(program(*methods.arguments(given)))
    assert np.linalg.norm(a @ b - own) < 1e-4 * np.linalg.norm(own)


def test_every_merge_that_the_library_has_is_known_to_the_report():
    assert all(methods.absent(name) is None for name in methods.METHODS)
    assert set(peers.TYPES) | set(dense.DENSE) < set(methods.METHODS)
    assert set(methods.FACTORED) < set(methods.METHODS)


def test_a_merge_that_is_missing_is_named(monkeypatch):
    monkeypatch.delattr(methods.lrk.merging, "ties")
    assert methods.absent("ties, svd") == "no merging.ties"
    found = measure.memory((16,), 3, 2, ["concat", "ties"], seed=0)
    assert set(found["16"]["temp_mb"]) == {"concat"}
    assert found["16"]["unit_mb"] == 4 * 16 * 6 / 1e6


def test_real_peers_agree_or_are_named():
    sizes = {"size": 16, "adapters": 3, "rank": 2}
    limits = {"seconds": 0.0, "least": 2, "most": 2}
    found = measure.measure(sizes, ["svd", "concat"], limits, seed=0)
    svd = found["methods"]["svd"]
    assert svd["agreement"]["dense"] < 1e-4
    assert svd["rounds"] == 2
    if found["absent"] is None:
        assert max(svd["agreement"].values()) < 1e-4
        assert set(svd["ms"]) == {"lowrank", "dense", "peft"}
        assert svd["ratio"]["peft"][0] > 0
    else:
        assert found["absent"].startswith("not installed (")
        assert set(svd["ms"]) == {"lowrank", "dense"}


class Fake:
    """PEFT, made up: calls are counted, the change is given."""

    def __init__(self, change=None):
        self.result, self.calls, self.cleared = change, 0, 0

    def call(self, method):
        assert method in peers.TYPES

        def run():
            self.calls += 1
            if self.result is None:
                raise RuntimeError("no such type\nand more")

        return run

    def clear(self):
        self.cleared += 1

    def change(self):
        return self.result


def test_a_peer_is_cleared_after_every_call(given):
    program = methods.compiled("concat", given)
    fake = Fake(methods.change(program(*methods.arguments(given))))
    found = measure.measured("concat", given, fake, LIMITS, seed=0)
    assert found["agreement"] == {"peft": 0.0}
    assert fake.calls == fake.cleared == 1 + 1 + 2 + 2
    assert set(found["ratio"]) == {"peft"}
    value = found["own_ratio"]["peft"].value * found["ratio"]["peft"].value
    assert value > 0


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (None, "fails: RuntimeError: no such type"),
        (np.ones((16, 16)), "its result differs by"),
    ],
)
def test_a_peer_that_fails_or_is_wrong_is_named_and_not_timed(given, change, reason):
    found = measure.measured("concat", given, Fake(change), LIMITS, seed=0)
    assert found["absent"]["peft"].startswith(reason)
    assert set(found["ms"]) == {"lowrank"}


def test_a_merge_of_this_project_that_is_wrong_stops_the_run(given, monkeypatch):
    monkeypatch.setitem(dense.DENSE, "concat", lambda given: given.factors[0])
    with pytest.raises(RuntimeError, match="speed/merging: concat differs by"):
        measure.measured("concat", given, None, LIMITS, seed=0)


# Records and report.


def method(own, **others):
    """What was measured of one method, made up."""
    ratio = {name: (ms / own, ms / own, ms / own) for name, ms in others.items()}
    return {
        "ms": {"lowrank": own, **others},
        "ratio": ratio,
        "own_ratio": {n: (1 / r[0], 1 / r[0], 1 / r[0]) for n, r in ratio.items()},
        "rounds": 7,
        "agreement": {},
        "absent": {},
        "temp_mb": 1.0,
    }


@pytest.fixture
def asked(monkeypatch):
    """Stands in for the fresh processes; what was asked of them."""
    found = []

    def answer(module, args, processes):
        found.append((module.partition(":")[2], args, processes))
        if module.endswith(":memory"):
            own = {"unit_mb": 2.0, "weight_mb": 8.0, "temp_mb": {"svd": 5.0}}
            return [{str(width): own for width in args["widths"]}]
        own = {
            "svd": method(10.0, peft=400.0, dense=300.0),
            "concat": method(2.0, peft=1.0),
            "knots": {"absent": {"lowrank": "no merging.knots"}},
        }
        about = {"peers": {"peft": "0.21"}, "threads": 2, "absent": None}
        return [{"methods": own, **about}]

    monkeypatch.setattr(merging, "in_processes", answer)
    return found


def run(folder, **options):
    session = runner.Session("speed/merging", folder)
    merging.run(merging.Config(**options), session)
    return records.read_folder(session.folder)[0], session


def test_rows_are_written_once_and_resumed(asked, tmp_path):
    found, session = run(tmp_path)
    assert [record.row for record in found] == ["memory", "size-1024", "size-2048"]
    assert len(session.written) == runner.find("speed/merging").rows
    assert [(name, processes) for name, _, processes in asked] == [
        ("memory", 1), ("measure", 1), ("measure", 1),
    ]  # fmt: skip
    assert set(asked[0][1]["names"]) == set(methods.FACTORED)
    run(tmp_path)
    assert len(asked) == 3
    run(tmp_path, sizes=(1024, 512))
    assert [args["sizes"]["size"] for _, args, _ in asked[3:]] == [512]


@pytest.mark.usefixtures("asked")
def test_goals_are_judged_from_the_records(tmp_path):
    found, _ = run(tmp_path)
    goals = {goal.text: goal for goal in merging_report.goals(found)}
    dense_svd = goals["svd over the same on formed weights, N = 2048"]
    assert (dense_svd.limit, dense_svd.verdict()) == (0.05, "met")
    assert goals["concat over PEFT's cat, N = 1024"].verdict() == "not met"
    assert goals["svd over PEFT's svd, N = 2048"].verdict() == "met"
    assert goals["tsv over the same on formed weights, N = 2048"].verdict() is None
    start = "temporary memory of svd in N sum r floats"
    assert goals[f"{start}, at the largest N"].value == 2.5


@pytest.mark.usefixtures("asked")
def test_the_report_says_what_the_numbers_say(tmp_path):
    found, _ = run(tmp_path)
    tables = [b for b in merging.report(found) if isinstance(b, Table)]
    times = tables[1]
    assert times.caption.endswith("1024 x 1024, 8 adapters of rank 16.")
    cells = {row[0]: row for row in times.text()}
    assert cells["svd"][1:4:2] == ["10.00", "40.0 [40.0, 40.0]"]
    assert cells["concat"][4].strip() == "–"
    assert cells["tsv"][1] == "not run"
    assert times.notes == [
        "peft 0.21; 2 threads each.",
        "knots, lowrank: no merging.knots.",
    ]
    sizes = {row[0]: row for row in tables[-1].text()}
    assert sizes["svd"][1:] == ["2.50"] * 3
    assert sizes["one weight, for comparison"][1:] == ["4.00"] * 3


def test_without_records_everything_is_not_run():
    found = merging.report(records.Records())
    tables = [block for block in found if isinstance(block, Table)]
    assert len(tables) == 1 + 2 + 1
    cells = [cell.strip() for table in tables for row in table.text() for cell in row]
    assert cells.count("not run") > 150


def test_the_smoke_config_is_tiny_and_the_page_has_its_markers():
    smoke = merging.Config().smoke()
    assert (smoke.most, smoke.adapters) == (2, 3)
    assert max(*smoke.sizes, *smoke.widths) <= 64
    page = (DOCS / "speed.md").read_text(encoding="utf-8")
    assert "<!-- records:speed/merging -->\n" in page
