"""The loggers of the documentation as they stand there, with writers that note."""

import re
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import lowrank as lrk

PAGE = Path(__file__).parents[2] / "docs/api/training.md"


@pytest.fixture(scope="module")
def report():
    losses = np.asarray([[3.0, np.nan], [1.0, np.nan]])
    norms = np.ones((2, 2, 4))
    scores = {"accuracy": np.asarray([0.5, 0.25])}
    return lrk.training.Report(
        step=2,
        steps=4,
        names=("x", "y"),
        metrics={"loss": losses, "norms": norms},
        scores=scores,
        active=np.asarray([True, False]),
        seconds=1.0,
        state=lambda: lrk.State({}, {}),
    )


def function(name, **given):
    """A function of the page, over these globals."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    block = next(block for block in blocks if f"def {name}(" in block)
    names: dict[str, Any] = {"lrk": lrk, **given}
    exec(compile(block, str(PAGE), "exec"), names)
    return names[name]


def test_tensorboard_gets_each_number_at_its_step(report):
    noted = []
    writer = types.SimpleNamespace(add_scalar=lambda *values: noted.append(values))
    function("to_tensorboard", writer=writer)(report)
    assert sorted(noted) == [
        ("x/eval/accuracy", 0.5, 2),
        ("x/loss", 2.0, 2),
        ("x/seconds", 1.0, 2),
        ("y/eval/accuracy", 0.25, 2),
        ("y/seconds", 1.0, 2),
    ]


def test_wandb_gets_one_row_for_each_adapter(report):
    noted = []
    function("to_wandb", wandb=types.SimpleNamespace(log=noted.append))(report)
    assert [row["x/loss"] for row in noted[:1]] == [2.0]
    assert [sorted(row)[0] for row in noted] == ["x/eval/accuracy", "y/eval/accuracy"]
    assert noted[1]["y/step"] == 2
