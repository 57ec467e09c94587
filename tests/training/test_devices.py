"""Several devices, and several processes: each in processes of their own."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.tolerances import assert_close
from tests.training import two_processes

ROOT = Path(__file__).parents[2]
SCRIPT = Path(__file__).with_name("eight_devices.py")
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
CHECKS = re.findall(r"^def (check_\w+)\(", SCRIPT.read_text(), re.MULTILINE)


def start(name, *arguments, devices):
    """A script of this folder, on as many host devices."""
    command = [sys.executable, "-m", f"tests.training.{name}", *map(str, arguments)]
    flags = f"{QUICK} --xla_force_host_platform_device_count={devices}"
    environment = {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu", "PATH": ""}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


@pytest.fixture(scope="module")
def eight() -> dict[str, str]:
    """What each check on eight devices had to say."""
    process = start("eight_devices", devices=8)
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    return json.loads(out)


@pytest.mark.slow
@pytest.mark.parametrize("name", CHECKS)
def test_on_eight_devices(eight, name):
    if eight[name]:
        pytest.fail(eight[name], pytrace=False)


@pytest.mark.slow
def test_two_processes_train_and_save_as_one_does(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [
        start("two_processes", tmp_path, address, index, devices=2)
        for index in range(2)
    ]
    try:
        errors = [process.communicate(timeout=300)[1] for process in both]
    finally:
        for process in both:
            process.kill()
    assert [process.returncode for process in both] == [0, 0], "\n".join(errors)
    one, two = (json.loads((tmp_path / f"{i}.json").read_text()) for i in range(2))
    assert one == two
    assert one["devices"] == [2, 4]
    assert one["held"] == [2, 8]  # a quarter of an 8 x 8 kernel on each device
    assert one["nothing"]
    assert one["last"] == [3, [3], 32]  # keep=1, and the position in the data
    assert one["differ"] == []  # restored, and one step further, bit for bit
    alone = two_processes.main(tmp_path / "alone")
    assert one["hash"] == alone["hash"] == alone["alone"]
    np.testing.assert_allclose(one["loss"], alone["loss"], rtol=2e-5)
    assert_close(np.float32(one["a"]), np.float32(alone["a"]))
    fit, by_one = one["fit"], alone["fit"]
    assert fit["steps"] == [[3, 1, 1, 1]] * 2
    assert fit["again"] == []  # the second call finds all steps taken
    for name in ("loss", "error"):
        assert_close(np.float32(fit[name]), np.float32(by_one[name]))
    lines = (tmp_path / "saved" / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3 * 4  # of two processes one writes
