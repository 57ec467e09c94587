"""The README's examples run as they stand."""

import re
from pathlib import Path

import pytest

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text()
# Each block keeps its place in the page, so that a failure shows the right line.
BLOCKS = [
    "\n" * TEXT[: match.start(1)].count("\n") + match.group(1)
    for match in re.finditer(r"```python\n(.*?)```", TEXT, re.DOTALL)
]


@pytest.mark.parametrize(
    ("code", "framework"),
    list(zip(BLOCKS, ["linen", "nnx"], strict=True)),
    ids=["linen", "nnx"],
)
def test_example_runs(code, framework):
    names = {"__name__": "readme"}
    exec(compile(code, str(README), "exec"), names)
    assert f"from flax import {framework}" in code


def test_commands_are_targets_of_the_makefile():
    makefile = (README.parent / "Makefile").read_text()
    commands = re.findall(r"^make ([\w-]+)", TEXT, re.MULTILINE)
    assert {"quickstart", "test"} <= set(commands)
    missing = [c for c in commands if not re.search(rf"^{c}:", makefile, re.MULTILINE)]
    assert not missing


def test_says_that_it_is_not_radio():
    assert "This is not LoRa radio." in TEXT


def test_relative_links_exist():
    links = re.findall(r"\]\(((?!https?:|#)[^)#]+)", TEXT)
    assert links
    assert not [link for link in links if not (README.parent / link).exists()]
