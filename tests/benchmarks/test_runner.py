"""Finding tables, resuming them, and the command line."""

import os
import pathlib
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import origin, runner
from benchmarks import record as records
from benchmarks.__main__ import main

ROOT = pathlib.Path(runner.__file__).parents[1]


def save(session: runner.Session, row: str = "a", value: float = 1.0, **config):
    """Saves a row with a metric `value`."""
    return session.save(row, {"value": value}, config=config, seconds=0.1, seed=0)


@pytest.fixture
def said(monkeypatch) -> list[str]:
    """What sessions log."""
    lines: list[str] = []
    monkeypatch.setattr(runner.Session, "log", lambda _, text: lines.append(text))
    return lines


def test_a_finished_row_is_given_back_and_only_for_its_config(tmp_path, said):
    first = runner.Session("t", tmp_path)
    assert first.row("a", rank=4) is None
    written = save(first, rank=4)
    again = runner.Session("t", tmp_path)
    assert again.row("a", rank=4) == written
    assert again.reused == {"a"}
    assert again.row("a", rank=8) is None
    assert again.row("a", rank=4, alpha=None) is None
    assert said == [
        "t: row a runs again: its config differs in rank (4 -> 8)",
        "t: row a runs again: its config differs in alpha (None -> None)",
    ]


def test_a_replaced_record_is_kept_as_stale(tmp_path):
    for rank in (1, 2, 3):
        save(runner.Session("t", tmp_path), value=rank, rank=rank)
    folder = tmp_path / "full" / "t"
    assert records.read_record(folder / "a.json").metrics == {"value": 3}
    stale = sorted((folder / "stale").iterdir())
    assert [path.name for path in stale] == ["a.1.json", "a.2.json"]
    kept = [records.decode(path.read_text()).metrics["value"] for path in stale]
    assert kept == [1, 2]
    assert len(records.read_folder(folder)[0]) == 1


def test_a_corrupt_record_is_named_and_run_again(tmp_path, said):
    save(runner.Session("t", tmp_path), rank=4)
    path = tmp_path / "full" / "t" / "a.json"
    path.write_text(path.read_text()[:100])
    session = runner.Session("t", tmp_path)
    assert session.row("a", rank=4) is None
    assert "a.json is unreadable and runs again: record: not JSON" in said[0]
    save(session, rank=4)
    assert session.row("a", rank=4).metrics == {"value": 1.0}
    assert len((tmp_path / "full" / "t" / "stale" / "a.1.json").read_text()) == 100


def test_force_runs_rows_again_once(tmp_path):
    save(runner.Session("t", tmp_path), rank=4)
    session = runner.Session("t", tmp_path, force=True)
    assert session.row("a", rank=4) is None
    save(session, value=2.0, rank=4)
    assert session.row("a", rank=4).metrics == {"value": 2.0}
    assert (tmp_path / "full" / "t" / "stale" / "a.1.json").exists()


def test_smoke_and_full_records_are_apart(tmp_path):
    smoke = runner.Session("speed/t", tmp_path, smoke=True)
    save(smoke, rank=4)
    assert (tmp_path / "smoke" / "speed" / "t" / "a.json").exists()
    assert runner.Session("speed/t", tmp_path).row("a", rank=4) is None


def test_a_record_says_where_it_comes_from(tmp_path):
    session = runner.Session("t", tmp_path, command="python -m benchmarks run t")
    record = save(session, rank=4)
    assert record.table == "t"
    assert record.command == "python -m benchmarks run t"
    assert record.versions == origin.versions()
    assert (record.commit, record.dirty) == origin.commit()
    assert record.device["platform"] == "cpu"
    assert record.started.endswith("+00:00")
    assert record.config_hash == records.config_hash({"rank": 4})


def test_a_value_that_cannot_be_stored_leaves_the_old_record(tmp_path):
    session = runner.Session("t", tmp_path)
    save(session, rank=4)
    with pytest.raises(TypeError, match="cannot store 'metrics/value'"):
        save(session, value=object(), rank=4)
    assert session.row("a", rank=4).metrics == {"value": 1.0}


def test_two_rows_of_one_name_and_bad_names_are_refused(tmp_path):
    session = runner.Session("t", tmp_path)
    save(session, rank=4)
    with pytest.raises(ValueError, match="row 'a' of 't' was saved before"):
        save(session, rank=8)
    for name in ("a/b", "../a", "", ".hidden"):
        with pytest.raises(ValueError, match="bad row name"):
            session.row(name)


def test_arrays_come_back_nested_and_with_their_types(tmp_path, said):
    arrays = {
        "query/kernel": {"a": jnp.ones((2, 3), jnp.bfloat16), "b": np.arange(3)},
        "file": np.float32(2.5),
    }
    session = runner.Session("t", tmp_path)
    session.save_arrays("state-s0", arrays, config={"rank": 4})
    again = runner.Session("t", tmp_path)
    found = again.load_arrays("state-s0", config={"rank": 4})
    assert found["query/kernel"]["a"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(found["query/kernel"]["a"], np.ones((2, 3)))
    np.testing.assert_array_equal(found["query/kernel"]["b"], [0, 1, 2])
    assert found["file"] == np.float32(2.5)
    assert found["file"].dtype == np.float32
    assert again.load_arrays("state-s0", config={"rank": 8}) is None
    assert again.load_arrays("absent") is None
    forced = runner.Session("t", tmp_path, force=True)
    assert forced.load_arrays("state-s0") is None
    path = session.artifacts / "state-s0.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert again.load_arrays("state-s0") is None
    assert said[0] == "t: arrays state-s0.npz are of another config"
    assert "state-s0.npz is unreadable" in said[1]


def test_arrays_saved_with_a_row_lie_beside_it(tmp_path):
    session = runner.Session("t", tmp_path)
    given = {"rank": 4}
    session.save("a", {}, config=given, arrays={"w": np.eye(2)}, seconds=0.0, seed=0)
    assert session.load_arrays("a", config=given)["w"].tolist() == [[1, 0], [0, 1]]
    with pytest.raises(TypeError, match="cannot store 'w': expected an array"):
        session.save_arrays("b", {"w": object()})
    with pytest.raises(ValueError, match="array name 'x::y'"):
        session.save_arrays("b", {"x::y": 1})


def test_tables_are_found_without_being_imported(tables):
    (tables / "unparsable.py").write_text("def (")
    (tables / "_private.py").write_text("")
    found = runner.discover()
    assert list(found) == ["made_up", "unparsable"]
    assert "benchmarks.tables.made_up" not in sys.modules
    entry = found["made_up"]
    assert entry.summary == "A table made up for tests: <b>doubling</b> & more."
    assert (entry.cost, entry.rows) == ("1 s", 3)
    assert runner.find("tables/made-up") == entry


def test_a_table_that_lacks_something_is_refused(tables):
    (tables / "empty.py").write_text('"""Nothing."""\n')
    with pytest.raises(TypeError, match="'empty' lacks Config, run, report"):
        runner.load(runner.find("empty"))


def test_every_table_of_the_project_states_its_summary_and_cost():
    for entry in runner.discover().values():
        assert entry.summary.endswith("."), entry.name
        assert entry.cost, f"{entry.name}: no line `Cost: ...` in its docstring"


@pytest.mark.usefixtures("tables")
def test_list_shows_tables_and_rows_done(tmp_path, capsys):
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", "made_up", *results]) == 0
    capsys.readouterr()
    assert main(["list", *results]) == 0
    line = next(ln for ln in capsys.readouterr().out.splitlines() if "made_up" in ln)
    assert line.split()[:5] == ["made_up", "2", "/", "3", "1"]
    assert "<b>doubling</b>" in line


def test_list_imports_neither_jax_nor_tables():
    code = (
        "import sys; from benchmarks.__main__ import main; code = main(['list']); "
        "heavy = {'jax', 'tyro', 'matplotlib'} & set(sys.modules); "
        "sys.exit(f'imported {heavy}' if heavy else code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "table" in done.stdout


@pytest.mark.usefixtures("tables")
def test_an_unknown_table_shows_the_closest(capsys):
    assert main(["run", "mad_up"]) == 2
    message = capsys.readouterr().err
    assert "no table 'mad_up'. Did you mean made_up?" in message
    assert main(["report", "zzz"]) == 2
    assert "Known: ['made_up']" in capsys.readouterr().err


@pytest.mark.usefixtures("tables")
def test_run_resumes_and_options_reach_the_config(tmp_path, capsys):
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", "made_up", *results]) == 0
    assert "2 rows run, 0 resumed" in capsys.readouterr().out
    runs = sys.modules["benchmarks.tables.made_up"].RUNS
    assert main(["run", "made_up", "--seed", "1", "2", *results]) == 0
    assert "1 rows run, 1 resumed" in capsys.readouterr().out
    assert runs == [("double-s0", 10), ("double-s1", 10), ("double-s2", 10)]
    assert main(["run", "made_up", "--steps", "20", "--seed=0", *results]) == 0
    assert runs[3:] == [("double-s0", 20)]
    record = records.read_record(tmp_path / "r" / "full" / "made_up" / "double-s0.json")
    assert record.command == "python -m benchmarks run made_up --steps 20 --seed=0"
    assert main(["run", "made_up", "--force", "--seed", "1", *results]) == 0
    assert runs[4:] == [("double-s1", 10)]


@pytest.mark.usefixtures("tables")
def test_smoke_shrinks_but_given_options_hold(tmp_path):
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", "made_up", "--smoke", *results]) == 0
    assert (
        main(["run", "made_up", "--smoke", "--steps", "3", "--seed", "2", *results])
        == 0
    )
    runs = sys.modules["benchmarks.tables.made_up"].RUNS
    assert runs == [("double-s0", 1), ("double-s1", 1), ("double-s2", 3)]
    assert not (tmp_path / "r" / "full").exists()
    assert (tmp_path / "r" / "smoke" / "made_up.html").exists()


@pytest.mark.usefixtures("failing")
def test_run_all_goes_on_after_a_failure(tmp_path, capsys):
    assert main(["run", "all", "--smoke", "--results", str(tmp_path)]) == 1
    shown = capsys.readouterr().out
    assert "planned failure" in shown
    assert "failed: broken" in shown
    assert len(list((tmp_path / "smoke" / "made_up").glob("*.json"))) == 2


@pytest.mark.usefixtures("tables")
def test_wrong_usage_has_its_exit_code(capsys):
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert main(["run"]) == 2
    assert main(["dance"]) == 2
    assert main(["run", "made_up", "--nonsense"]) == 2
    capsys.readouterr()
    assert main(["run", "made_up", "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--steps" in shown
    assert "--force" in shown


@pytest.mark.usefixtures("failing")
def test_a_failing_table_and_an_interrupted_one_have_exit_codes(
    tmp_path, capsys, monkeypatch
):
    results = ["--results", str(tmp_path)]
    assert main(["run", "broken", *results]) == 1
    assert "planned failure" in capsys.readouterr().err
    module = runner.load(runner.find("made_up"))

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run", interrupt)
    assert main(["run", "made_up", *results]) == 130
    assert "finished rows are kept" in capsys.readouterr().out


def test_progress_counts_and_log_keeps_the_bar(tmp_path, capsys):
    session = runner.Session("t", tmp_path)
    with session.progress(4, "training") as bar:
        bar.update(3)
        session.log("a line")
        assert (bar.n, bar.total) == (3, 4)
    captured = capsys.readouterr()
    assert captured.out == "a line\n"
    assert "training" in captured.err


def test_the_table_of_the_documentation_runs(tables, tmp_path, capsys):
    text = (ROOT / "docs" / "benchmarks.md").read_text()
    source = re.findall(r"```python\n(.*?)```", text, re.DOTALL)[0]
    stub = "\n\ndef train(rank, steps, seed):\n    return rank / 10, [1.0] * steps\n"
    (tables / "ranks.py").write_text(source + stub)
    results = ["--results", str(tmp_path / "r")]
    assert main(["run", "ranks", "--smoke", *results]) == 0
    assert main(["run", "ranks", "--steps", "3", "--ranks", "2", *results]) == 0
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["1", "0.100"] in shown
    assert ["2", "0.200", "[0.200…0.200]"] in shown
    assert ["8", "not", "run"] in shown
