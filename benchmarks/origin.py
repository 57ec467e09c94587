"""Where a number comes from: commit, package versions, device."""

import functools
import importlib.metadata
import os
import pathlib
import platform
import subprocess
import tomllib
from collections.abc import Iterable
from typing import Any

ROOT = pathlib.Path(__file__).resolve().parents[1]
PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "lowrank")
SOURCES = ("lowrank", "benchmarks", "pyproject.toml")


def _git(*arguments: str) -> str | None:
    """Runs git in the root of the checkout; None if it fails or is missing."""
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


@functools.cache
def commit() -> tuple[str, bool]:
    """Returns the commit of the code and whether the code differs from it.

    Results and docs do not count as code, so that a run does not dirty itself.
    Outside a checkout of this project the answer is `("unknown", False)`.
    """
    top = _git("rev-parse", "--show-toplevel")
    head = _git("rev-parse", "HEAD")
    if not top or not head or pathlib.Path(top).resolve() != ROOT:
        return "unknown", False
    present = [name for name in SOURCES if (ROOT / name).exists()]
    return head, bool(_git("status", "--porcelain", "--", *present))


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Returns the version of each package, or `not installed`."""
    found = {}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


@functools.cache
def versions() -> dict[str, str]:
    """Returns the versions of the packages that can change a number, and Python's."""
    found = {"python": platform.python_version(), **installed(PACKAGES)}
    if found["lowrank"] == "not installed" and (ROOT / "pyproject.toml").exists():
        project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
        found["lowrank"] = project["version"]
    return found


def _processor() -> str:
    """Returns the model name of the processor."""
    try:
        lines = pathlib.Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1] for line in lines if line.startswith("model name")]
    return names[0].strip() if names else platform.processor() or platform.machine()


@functools.cache
def device() -> dict[str, Any]:
    """Returns what the numbers were computed on; starts JAX's backend."""
    import jax  # kept out of `list`

    devices = jax.devices()
    affinity = getattr(os, "sched_getaffinity", None)
    return {
        "platform": devices[0].platform,
        "kind": devices[0].device_kind,
        "count": len(devices),
        "processor": _processor(),
        "cores": len(affinity(0)) if affinity else os.cpu_count() or 1,
    }
