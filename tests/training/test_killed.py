"""A run that is killed at some moments ends as one that is not, bit for bit."""

import json

import numpy as np
import pytest

from tests.training.killed import INTERVAL, STEPS
from tests.training.test_devices import start

MOMENTS = ("before", "write", "later")


@pytest.mark.slow
@pytest.mark.parametrize(("way", "devices"), [("hand", 4), ("fit", 1)])
def test_a_killed_run_resumes_bit_for_bit(tmp_path, way, devices):
    process = start("killed", tmp_path, way, 1, *MOMENTS, devices=devices)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    told = json.loads(out)
    assert told["codes"] == [0, 0], errors
    *kills, last = told["log"]
    assert all(each["killed"] for each in kills)
    assert not last["killed"]
    assert last["done"] == STEPS
    # Killed before its first save, a run begins anew.
    assert kills[0]["done"] < INTERVAL
    assert kills[1]["start"] == 0
    # Killed while a checkpoint was half there, it goes on from the one before.
    (half,) = (
        each for each in kills if each["moment"] == "write" and each["unfinished"]
    )
    assert half["unfinished"]
    assert last["start"] > 0
    for before, after in zip(told["log"], told["log"][1:], strict=False):
        # Whatever was saved before the last save is there: at most that one is lost.
        begun = before["done"] // INTERVAL * INTERVAL
        assert after["start"] >= max(before["start"], begun - INTERVAL)
        assert after["start"] % INTERVAL == 0
    assert not last["unfinished"]
    killed, whole = (np.load(tmp_path / f"{n}.npz") for n in ("killed", "whole"))
    assert set(killed) == set(whole)
    for name in whole:
        np.testing.assert_array_equal(killed[name], whole[name], err_msg=name)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {str(STEPS - INTERVAL), str(STEPS)}  # nothing half-written
