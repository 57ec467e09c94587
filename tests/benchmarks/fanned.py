"""A table for tests of the fan-out: rows say who ran them, and can kill or fail."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from benchmarks import fanout


@dataclasses.dataclass(frozen=True)
class Config:
    """Options."""

    folder: str = ""
    rows: int = 6
    kills: int = 0
    failing: str = ""

    def smoke(self) -> "Config":
        return self


def run(config: Config, session: Any) -> None:
    for number in range(config.rows):
        row, given = f"row-{number}", {"number": number}
        if session.row(row, **given) is None:
            _do(config, row)
            session.save(row, {"x": number}, config=given, seconds=0.0, seed=0)
    # One more that needs all the others.
    if session.row("total", rows=config.rows) is None:
        each = [session.row(f"row-{n}", number=n) for n in range(config.rows)]
        total = sum(record.get("x") for record in each)
        _do(config, "total")
        given = {"rows": config.rows}
        session.save("total", {"x": total}, config=given, seconds=0.0, seed=0)


def _do(config: Config, row: str) -> None:
    """Notes who runs a row; kills or fails where the config says so."""
    with Path(config.folder, f"{row}.log").open("a+") as log:
        log.write(f"{os.getpid()}\n")
        log.seek(0)
        tries = len(log.readlines())
    if row == config.failing:
        raise RuntimeError("planned failure")
    if row == "row-1" and tries <= config.kills:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.1)  # so that other workers get their turn


def request(tmp_path: Path, **options: Any) -> fanout.Request:
    """What a worker is told of this table."""
    return fanout.Request(
        table="fanned",
        module="tests.benchmarks.fanned",
        config=Config(folder=str(tmp_path), **options),
        results=str(tmp_path / "results"),
        claims=str(tmp_path / "results/full/.claims/fanned"),
        smoke=False,
        command="python -m benchmarks run fanned",
    )


def finished(tmp_path: Path) -> dict[str, Any]:
    """The records."""
    folder = tmp_path / "results/full/fanned"
    return {p.stem: json.loads(p.read_text()) for p in folder.glob("*.json")}


def ran(tmp_path: Path) -> dict[str, list[str]]:
    """Which processes ran each row."""
    return {p.stem: p.read_text().split() for p in tmp_path.glob("*.log")}


def report(records: Any) -> list[Any]:
    del records
    return []
