"""A small table made up for the tests, found as the real ones are."""

import pathlib
import sys

import pytest

import benchmarks.speed
import benchmarks.tables

SOURCE = '''"""A table made up for tests: <b>doubling</b> & more.

Command: python -m benchmarks run made_up
Cost: 1 s
Rows: 3
"""

import dataclasses

from benchmarks.report import Figure, Heading, Table, Text, curves

RUNS = []


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    steps: int = 10
    """Steps of training."""
    seeds: tuple[int, ...] = (0, 1)

    def smoke(self):
        return dataclasses.replace(self, steps=1)


def run(config, session):
    for seed in config.seeds:
        row, given = f"double-s{seed}", {"steps": config.steps, "seed": seed}
        if session.row(row, **given) is None:
            RUNS.append((row, config.steps))
            metrics = {"accuracy": 0.5 + 0.1 * seed, "steps": config.steps}
            session.save(row, metrics, config=given, seconds=0.5, seed=seed)


def report(records):
    names = ["double-s0", "double-s1", "double-s2"]
    found = [records.get(name) for name in names]
    rows = [[n, r and r.get("accuracy")] for n, r in zip(names, found)]
    return [
        Heading("Results <raw> & `code`"),
        Text("First paragraph.\\n\\nSecond <script>alert(1)</script>."),
        Table(["row", "acc|uracy"], rows, caption="A caption.", sources=found),
        Figure(lambda: curves({"a": ([1, 2], [3, 4])}), "Curves.", 'Rises "fast".'),
    ]
'''

FAILING = '''"""A table that fails.

Cost: nothing
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Config:
    def smoke(self):
        return self


def run(config, session):
    raise RuntimeError("planned failure")


def report(records):
    return []
'''


@pytest.fixture
def tables(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """Puts the made-up table in the place of the real ones; returns the folder."""
    folder, speed = tmp_path / "sources", tmp_path / "speed"
    folder.mkdir()
    speed.mkdir()
    (folder / "made_up.py").write_text(SOURCE)
    monkeypatch.setattr(benchmarks.tables, "__path__", [str(folder)])
    monkeypatch.setattr(benchmarks.speed, "__path__", [str(speed)])
    before = set(sys.modules)
    yield folder
    for name in set(sys.modules) - before:
        if name.startswith(("benchmarks.tables.", "benchmarks.speed.")):
            del sys.modules[name]


@pytest.fixture
def failing(tables: pathlib.Path) -> pathlib.Path:
    """Adds a table that fails."""
    (tables / "broken.py").write_text(FAILING)
    return tables
