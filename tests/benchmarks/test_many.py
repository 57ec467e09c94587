"""The timing of many adapters: agreement, peers missing or wrong, its report."""

import pathlib
import re

import jax
import numpy as np
import pytest

import lowrank as lrk
from benchmarks import record as records
from benchmarks import runner
from benchmarks.blocks import Table
from benchmarks.speed import _many_measure as measure
from benchmarks.speed import _many_net as net
from benchmarks.speed import _many_peers as peers
from benchmarks.speed import _many_report as many_report
from benchmarks.speed import many
from benchmarks.timing import Comparison

DOCS = pathlib.Path(runner.__file__).parents[1] / "docs"
SIZES = {
    "width": 6, "layers": 1, "rank": 2, "adapters": 2, "examples": 3, "length": 2,
}  # fmt: skip


# Agreement.


def test_real_peers_agree_or_are_named():
    found = measure.training(SIZES, rounds=1, seed=0)
    names = {"vmap", "map", "peft"} - set(found["absent"])
    assert set(found["agreement"]) == names
    assert max(found["agreement"].values()) < 1e-5
    assert set(found["times"]["wall_ms"]) == names | {"in turn"}


def test_what_lora_promises_is_read_off():
    given = net.problem(net.Sizes(**SIZES | {"width": 32}), seed=0)
    base, adapter = 4 * 32 * 32, 4 * (2 * 2 * 32 + 1)
    found = measure.bytes_of_tasks(given)
    assert (found["base"], found["adapter"]) == (base, adapter)
    ten = {"adapters": base + 10 * adapter, "copies": 10 * base}
    assert found["tasks"]["10"] == ten
    held = {name: x["held"] for name, x in measure.memory_of_training(given).items()}
    assert held["A frozen"] < held["A trained"] < held["full fine-tuning"]


def test_a_peer_that_is_missing_fails_or_is_wrong_is_named(monkeypatch):
    absent = {}

    def missing(*_):
        raise ImportError("no module", name="peft")

    monkeypatch.setattr(peers, "Peft", missing)
    assert measure._peft(None, "cpu", absent) is None
    assert absent["peft"] == "not installed (peft)"

    def failing():
        raise TypeError("no such adapter\nand more")

    calls = {"peft single": failing, "peft mixed": lambda: [1.0, 2.1], "own": list}
    want = {name: [1.0, 2.0] for name in ("peft single", "peft mixed")}
    measure._agreeing(calls, want, absent)
    assert absent["peft single"] == "fails: TypeError: no such adapter"
    assert absent["peft mixed"].startswith("its result differs by 4")
    assert set(calls) == {"own"}
    with pytest.raises(RuntimeError, match="speed/many: routed: its result differs"):
        measure._agreeing({"routed": lambda: [2.0]}, {"routed": [1.0]}, {})
    with pytest.raises(TypeError, match="no such adapter"):
        measure._agreeing({"routed": failing}, {"routed": [1.0]}, {})


def test_a_gpu_that_pytorch_does_not_see_is_named(monkeypatch):
    pytest.importorskip("peft")
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    given, absent = net.problem(net.Sizes(**SIZES), seed=0), {}
    assert measure._peft(given, "gpu", absent) is None
    assert absent["peft"] == "fails: JAX runs on gpu, and PyTorch has no GPU"


def test_gradients_of_a_mixed_batch_are_those_of_one_adapter_at_a_time(monkeypatch):
    given = net.problem(net.Sizes(**SIZES), seed=0)
    ids = net.ids_of(given, seed=3)
    loss, gradient = net.gradients_in_turn(given, ids)
    ways = net.mixed_gradients(given, ids)
    for name in ("routed", "gathered", "listed"):
        assert measure._distance(ways[name](), (loss, gradient)) < 1e-6
    apart = jax.tree.map(lambda x: x[::-1], gradient)
    assert measure._distance((loss, apart), (loss, gradient)) > 0.1
    # The loss is right, and far larger than a gradient: both must agree.
    monkeypatch.setattr(net, "gradients_in_turn", lambda *_: (loss, apart))
    with pytest.raises(RuntimeError, match="speed/many: routed: its result differs"):
        measure.mixed_training(SIZES, rounds=1, seed=3)


def test_a_swap_writes_one_slot_and_leaves_the_others():
    given = net.problem(net.Sizes(**SIZES), seed=0)
    calls, before = net.swaps(given), lrk.stack(net.states(given))
    want = jax.tree.map(lambda x: np.stack([x[0], x[0]]), before)
    assert measure._distance(calls["in place"]()._asdict(), want._asdict()) == 0
    for name in ("set", "set, jitted"):
        op = calls[name]().tree["layer0"]
        np.testing.assert_array_equal(op.a, want.trainable["layer0"]["a"])


def test_every_adapter_of_a_mixed_batch_has_an_example():
    given = net.problem(net.Sizes(**SIZES), seed=0)
    assert set(net.ids_of(given, seed=3)) == {0, 1}


# Records and report.


def times(baseline, **ms):
    wall = {name: np.full((1, 3), value) for name, value in ms.items()}
    return Comparison(baseline, wall, wall).as_dict()


PLACE = {"where": "cpu"}


def answer(module, _, processes):
    """Stands in for the fresh processes; made up."""
    about = {"agreement": {}, "absent": {}, "peers": {"peft": "0.21"}, "threads": 2}
    name = module.partition(":")[2]
    if name == "backend":
        return [PLACE["where"]] * processes
    if name == "training":
        own = times("in turn", **{"in turn": 8.0, "vmap": 5.0, "map": 4.0})
        found = about | {"times": own, "absent": {"peft": "not installed (torch)"}}
    elif name.startswith("mixed"):
        routed = 13.0 if name == "mixed" else 14.0
        found = {"times": times("single", single=10.0, routed=routed)} | about
    else:
        tasks = {str(n): {"adapters": 2e6 + n, "copies": 4e6} for n in (1, 10, 100)}
        memory = {name: {"held": 1.0, "temporary": 0.5} for name in many_report.MEMORY}
        found = {
            "bytes": {"tasks": tasks},
            "memory": memory,
            "latency": times("base", base=2.0, merged=2.2, unmerged=3.0),
            "swap": times("full copy", **{"full copy": 9.0, "in place": 1.0}),
            "agreement": {"merged": 0.0},
        }
    return [found] * processes


@pytest.fixture
def found(monkeypatch, tmp_path):
    monkeypatch.setattr(many, "in_processes", answer)
    session = runner.Session("speed/many", tmp_path)
    many.run(many.Config(), session)
    again = runner.Session("speed/many", tmp_path)
    many.run(many.Config(), again)
    assert len(session.written) == runner.find("speed/many").rows
    assert not again.written
    return records.read_folder(session.folder)[0]


def test_goals_are_judged_from_the_records(found):
    verdicts = {goal.text: goal.verdict() for goal in many_report.goals(found)}
    start = "CPU: step of {} adapters at once, over them in turn"
    assert verdicts[start.format(8)] == verdicts[start.format(32)] == "met"
    assert start.format(16) not in verdicts
    start = "{}: routed batch over one adapter for all, {}"
    assert verdicts[start.format("CPU", "forward")] == "met"
    assert verdicts[start.format("CPU", "gradient")] == "not met"
    assert verdicts["CPU: merged weights over the base, forward"] == "not met"
    assert {v for text, v in verdicts.items() if text.startswith("GPU")} == {None}


def test_a_gpu_has_rows_goals_and_tables_of_its_own(found, monkeypatch, tmp_path):
    monkeypatch.setattr(many, "in_processes", answer)
    monkeypatch.setitem(PLACE, "where", "gpu")
    session = runner.Session("speed/many", tmp_path)
    many.run(many.Config(), session)
    both = records.read_folder(session.folder)[0]
    assert len(both) == 2 * len(found)
    verdicts = {goal.text: goal.verdict() for goal in many_report.goals(both)}
    text = "GPU: step of 16 adapters with small batches at once, over them in turn"
    assert verdicts[text] == "not met"  # half, and a quarter is asked for
    assert verdicts["GPU: routed batch over one adapter for all, forward"] == "met"
    captions = [b.caption for b in many.report(both) if isinstance(b, Table)]
    assert sum("On a GPU." in caption for caption in captions) == 7


def test_the_report_says_what_the_numbers_say(found):
    tables = [block for block in many.report(found) if isinstance(block, Table)]
    cells = {row[0]: row for row in tables[1].text()}
    assert cells["at once, the loop of `map`"][1:] == ["4.00", "0.500 [0.500, 0.500]"]
    assert cells["PEFT, one after another: not installed (torch)"][1].strip() == "–"
    assert "4 layers of width 512, rank 8, 8 examples each" in tables[1].caption
    notes = ["peft 0.21; 2 threads each; 10 rounds in each of 3 processes."]
    assert tables[1].notes == notes
    assert tables[6].text()[0][1:] == ["2.00", "4.00", "2.0"]
    assert tables[-1].text()[0][1:] == ["1.00", "0.50", "1.50"]


def test_without_records_everything_is_not_run():
    found = many.report(records.Records())
    tables = [block for block in found if isinstance(block, Table)]
    assert len(tables) == 1 + 3 + 2 + 4
    cells = [cell.strip() for table in tables for row in table.text() for cell in row]
    assert cells.count("not run") > 50
    assert "–" not in cells


def test_the_smoke_config_is_tiny_and_the_page_has_its_markers():
    smoke = many.Config().smoke()
    assert (smoke.rounds, smoke.processes, smoke.wide) == (2, 1, 16)
    page = (DOCS / "many.md").read_text(encoding="utf-8")
    assert "<!-- records:speed/many -->\n" in page


def test_the_examples_of_the_page_run():
    page = (DOCS / "many.md").read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    assert len(blocks) == 2
    names: dict[str, object] = {}
    for block in blocks:  # the second goes on from the first
        exec(compile(block, "docs/many.md", "exec"), names)
    assert "trained" in names
