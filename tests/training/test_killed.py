"""A run that is killed at random moments ends as one that is not, bit for bit."""

import json

import numpy as np
import pytest

from tests.training.killed import INTERVAL, STEPS
from tests.training.test_devices import start


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    process = start("killed", tmp_path, 1, 2, devices=4)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    told = json.loads(out)
    assert told["codes"] == [0, 0], errors
    log = told["log"]
    assert log[0]["killed"]
    assert not log[-1]["killed"]
    assert log[-1]["done"] == STEPS
    assert log[1]["start"] > 0
    for before, after in zip(log, log[1:], strict=False):
        # Whatever was saved before the last save is there: at most that one is lost.
        begun = before["done"] // INTERVAL * INTERVAL
        assert after["start"] >= max(before["start"], begun - INTERVAL)
        assert after["start"] % INTERVAL == 0
    killed, whole = (np.load(tmp_path / f"{n}.npz") for n in ("killed", "whole"))
    assert set(killed) == set(whole)
    for name in whole:
        np.testing.assert_array_equal(killed[name], whole[name], err_msg=name)
    left = {path.name for path in (tmp_path / "killed").iterdir()}
    assert left == {str(STEPS - INTERVAL), str(STEPS)}  # nothing half-written
