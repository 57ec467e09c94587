"""Several workers share the rows of a table, and outlive each other."""

import dataclasses
import fcntl
import json
import os

import pytest

from benchmarks import __main__ as cli
from benchmarks import fanout, runner
from tests.benchmarks.fanned import finished, ran, request

ROWS = {f"row-{n}" for n in range(6)} | {"total"}


def test_workers_share_the_rows_and_outlive_one_that_is_killed(tmp_path):
    died = fanout.run(request(tmp_path, kills=1), fanout.Local(), 2)
    assert died == 1
    found, by = finished(tmp_path), ran(tmp_path)
    assert set(found) == set(by) == ROWS
    assert found["total"]["metrics"] == {"x": 15}
    assert len(by.pop("row-1")) == 2  # the killed one, and the one that came after
    assert all(len(who) == 1 for who in by.values()), by
    assert len({who for each in by.values() for who in each}) >= 2
    left = [path.name for path in (tmp_path / "results/full/.claims/fanned").iterdir()]
    assert left == ["lock"]


def test_one_worker_resumes_what_is_there_and_a_failure_keeps_the_rest(
    tmp_path,
):
    class Inline:
        """A worker at a time, in this process."""

        def start(self, request, name):
            self.job = request, name
            return name

        def ended(self):
            return fanout.Ending(self.job[1], fanout.work(*self.job))

        def stop(self):
            pass

    with pytest.raises(fanout.WorkersFailed, match="1 workers failed[^$]*planned"):
        fanout.run(request(tmp_path, failing="row-4"), Inline(), 1)
    assert set(finished(tmp_path)) == {f"row-{n}" for n in range(4)}
    assert fanout.run(request(tmp_path), Inline(), 1) == 0
    assert set(finished(tmp_path)) == ROWS
    assert {row: len(who) for row, who in ran(tmp_path).items()} == {
        row: 1 + (row == "row-4") for row in ROWS
    }


class Dying:
    """Workers that claim a row and die."""

    def start(self, request, name):
        assert fanout.SharedSession(request, name).row("row-1", number=1) is None
        self.last = name
        return name

    def ended(self):
        return fanout.Ending(self.last, None)

    def stop(self):
        self.last = "stopped"


def test_a_row_that_keeps_killing_its_workers_is_given_up(tmp_path):
    backend = Dying()
    message = r"3 workers died with \['fanned@row-1'\] in hand"
    with pytest.raises(fanout.WorkersFailed, match=message):
        fanout.run(request(tmp_path), backend, 1)
    assert backend.last == "stopped"


def test_a_row_is_held_by_one_and_looking_into_it_says_so(tmp_path):
    asked = request(tmp_path)
    claims = fanout.Claims(asked.claims)
    claims.folder.mkdir(parents=True)
    one, two = (fanout.SharedSession(asked, name) for name in ("one", "two"))
    assert one.row("a", x=1) is None
    assert one.row("a", x=1) is None  # still its own
    pending = two.row("a", x=1)
    assert pending is not None
    assert two.elsewhere == {("fanned", "a")}
    with pytest.raises(fanout.Elsewhere, match="row a of fanned is run by another"):
        pending.get("x")
    assert two.beside("other").row("a", x=1) is None  # of another table
    one.save("a", {"x": 2}, config={"x": 1}, seconds=0.0, seed=0)
    assert two.row("a", x=1).get("x") == 2
    assert claims.drop_all("two") == ["other@a"]
    two.row("b")
    two.release()
    assert claims.holder("fanned", "b") is None


def test_only_one_run_works_on_a_table(tmp_path):
    asked = request(tmp_path)
    os.makedirs(asked.claims)
    with open(f"{asked.claims}/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(RuntimeError, match="another run works on 'fanned'"):
            fanout.run(asked, Dying(), 1)
    with pytest.raises(ValueError, match="workers must be at least 1, got 0"):
        fanout.run(asked, Dying(), 0)


@pytest.mark.usefixtures("tables")
def test_the_command_line_shares_rows_out(tmp_path, capsys, monkeypatch):
    class Inline:
        def start(self, request, name):
            self.error = fanout.work(request, name)
            return name

        def ended(self):
            return fanout.Ending("worker-0", self.error)

        def stop(self):
            pass

    monkeypatch.setattr(fanout, "Local", Inline)
    results = ["--results", str(tmp_path / "r")]
    assert cli.main(["run", "made_up", *results, "--workers", "1"]) == 0
    assert "2 rows run by 1 workers, 0 of which were" in capsys.readouterr().out
    record = json.loads((tmp_path / "r/full/made_up/double-s0.json").read_text())
    assert record["command"] == "python -m benchmarks run made_up"
    assert cli.main(["run", "made_up", *results, "--workers=1", "--force"]) == 1
    assert "workers do not go with --force" in capsys.readouterr().err
    timings = dataclasses.replace(runner.find("made_up"), name="speed/x")
    with pytest.raises(ValueError, match="do not go with a table of timings"):
        cli._fan_out(timings, cli.RunOptions(workers=2), None, "")


@pytest.mark.parametrize(
    ("given", "want"),
    [
        (["--ray"], ["--ray=local"]),
        (["--ray", "--workers", "2"], ["--ray=local", "--workers", "2"]),
        (["--ray", "10.0.0.5:6379"], ["--ray", "10.0.0.5:6379"]),
        (["--ray=auto"], ["--ray=auto"]),
        ([], []),
    ],
)
def test_ray_without_an_address_is_a_local_node(given, want):
    assert cli._with_node(given) == want
