"""Where numbers come from."""

import subprocess

from benchmarks import origin


def test_commit_is_that_of_the_checkout_and_of_its_code_only(tmp_path, monkeypatch):
    def git(*arguments):
        identity = ["-c", "user.name=n", "-c", "user.email=e@x"]
        subprocess.run(
            ["git", *identity, *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(origin, "ROOT", tmp_path.resolve())
    read = origin.commit.__wrapped__
    assert read() == ("unknown", False)
    git("init")
    assert read() == ("unknown", False)
    (tmp_path / "lowrank").mkdir()
    (tmp_path / "lowrank" / "a.py").write_text("1")
    git("add", ".")
    git("commit", "-m", "first")
    commit, dirty = read()
    assert len(commit) == 40
    assert not dirty
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "row.json").write_text("{}")
    assert read() == (commit, False)
    (tmp_path / "lowrank" / "a.py").write_text("2")
    assert read() == (commit, True)
    monkeypatch.setattr(origin, "ROOT", (tmp_path / "lowrank").resolve())
    assert read() == ("unknown", False)  # installed inside someone else's checkout


def test_versions_and_device_are_filled():
    assert set(origin.versions()) == {"python", *origin.PACKAGES}
    assert origin.versions()["jax"].count(".") >= 1
    device = origin.device()
    assert device["platform"] == "cpu"
    assert device["count"] == 2
    assert device["cores"] >= 1
    assert device["processor"]
