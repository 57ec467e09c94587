"""The side-by-side timer: order, ratios, processes."""

import gc
import json
import time

import numpy as np
import pytest

from benchmarks import timing


def times(a: list[float], b: list[float]) -> timing.Comparison:
    """A comparison of one process with given wall times."""
    wall = {"a": np.array([a]), "b": np.array([b])}
    return timing.Comparison("a", wall, wall)


def test_every_round_calls_every_function_once_in_changing_order():
    calls = []
    functions = {name: lambda name=name: calls.append(name) for name in "abc"}
    result = timing.compare(functions, rounds=12, warmup=2, seed=5)
    assert calls[:6] == ["a", "a", "b", "b", "c", "c"]
    rounds = [tuple(calls[i : i + 3]) for i in range(6, len(calls), 3)]
    assert len(rounds) == 12
    assert all(sorted(order) == ["a", "b", "c"] for order in rounds)
    assert len(set(rounds)) > 2
    first = calls.copy()
    calls.clear()
    timing.compare(functions, rounds=12, warmup=2, seed=5)
    assert calls == first
    assert result.names == ["a", "b", "c"]
    assert result.baseline == "a"


def test_wall_time_counts_waiting_and_processor_time_does_not():
    def work():
        end = time.process_time() + 0.004
        while time.process_time() < end:
            pass

    result = timing.compare(
        {"sleep": lambda: time.sleep(0.004), "work": work}, rounds=5, warmup=0
    )
    assert result.median_ms("sleep") >= 4.0
    assert result.median_cpu_ms("sleep") < 2.0
    assert result.median_cpu_ms("work") >= 3.9


def test_results_are_waited_for():
    waited = []

    class Pending:
        def block_until_ready(self):
            waited.append(True)
            return self

    timing.compare({"a": lambda: {"x": Pending()}}, rounds=3, warmup=1)
    assert len(waited) == 4


def test_inner_calls_are_averaged_and_collection_comes_back():
    calls = []
    states = []

    def slow():
        calls.append(1)
        states.append(gc.isenabled())
        time.sleep(0.002)

    start = time.perf_counter()
    result = timing.compare({"a": slow}, rounds=2, warmup=0, inner=5)
    elapsed = (time.perf_counter() - start) * 1e3
    assert len(calls) == 10
    assert result.median_ms("a") >= 2.0
    assert result.wall_ms["a"].sum() * 5 <= elapsed
    assert not any(states)
    assert gc.isenabled()


def test_what_undoes_a_call_is_called_after_it_and_not_timed():
    calls = []

    def undo():
        calls.append("undo")
        time.sleep(0.02)

    functions = {name: lambda name=name: calls.append(name) for name in "ab"}
    result = timing.compare(functions, rounds=3, warmup=1, after={"a": undo})
    assert calls.count("undo") == calls.count("a") == 4
    assert all(calls[i + 1] == "undo" for i, name in enumerate(calls) if name == "a")
    assert result.median_ms("a") < 10


def test_ratio_is_the_median_of_the_rounds_ratios():
    drifting = times([1.0, 10.0, 100.0], [2.0, 20.0, 300.0])
    assert drifting.ratios("b").tolist() == [[2.0, 2.0, 3.0]]
    assert drifting.ratio("b").value == 2.0
    assert drifting.ratio("a") == (1.0, 1.0, 1.0)
    metrics = drifting.metrics()
    assert metrics["b"]["median_ms"] == 20.0
    assert metrics["b"]["ratio_low"] == 2.0
    assert metrics["b"]["ratio_high"] == 3.0


def test_combined_processes_widen_the_interval():
    parts = [times([1.0] * 9, [r] * 9) for r in (1.0, 2.0, 4.0)]
    joined = timing.combine([parts[0], parts[1].as_dict(), parts[2]])
    assert joined.ratios("b").shape == (3, 9)
    assert joined.ratio("b") == (2.0, 1.0, 4.0)
    assert parts[1].ratio("b") == (2.0, 2.0, 2.0)


def test_comparison_survives_json():
    before = times([1.0, 2.0], [3.0, 4.0])
    after = timing.Comparison.from_dict(json.loads(json.dumps(before.as_dict())))
    assert after.baseline == "a"
    np.testing.assert_array_equal(after.wall_ms["b"], before.wall_ms["b"])


def test_misuse_is_refused():
    with pytest.raises(ValueError, match=r"compare: .* baseline among \['a'\]"):
        timing.compare({"a": lambda: None}, baseline="b")
    with pytest.raises(ValueError, match="compare: expected rounds >= 1"):
        timing.compare({})
    with pytest.raises(ValueError, match="combine: expected comparisons of the same"):
        timing.combine([times([1.0], [1.0]), times([1.0, 2.0], [1.0, 2.0])])
    with pytest.raises(ValueError, match="combine: expected"):
        timing.combine([])


def test_fresh_processes_answer_in_json(tmp_path, monkeypatch):
    (tmp_path / "measured.py").write_text(
        "import os\n"
        "def measure(value, repeat=1):\n"
        "    print('noise on stdout')\n"
        "    return {'value': value * repeat, 'process': os.getpid()}\n"
        "def fail():\n"
        "    raise RuntimeError('planned failure')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    found = timing.in_processes("measured", {"value": 3, "repeat": 2}, processes=2)
    assert [one["value"] for one in found] == [6, 6]
    assert found[0]["process"] != found[1]["process"]
    with pytest.raises(RuntimeError, match=r"(?s)process 1 of 1 .*planned failure"):
        timing.in_processes("measured:fail", processes=1)
