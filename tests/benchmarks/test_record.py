"""Records: valid JSON, honest hashes, whole files, refusal of anything else."""

import dataclasses
import enum
import hashlib
import json
import math
import pathlib

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import record as records


def make(**changes) -> records.Record:
    """A record with the given fields changed."""
    config = changes.pop("config", {"rank": 4})
    fields = {
        "table": "made_up",
        "row": "lora-r4",
        "config": config,
        "config_hash": records.config_hash(config),
        "seed": 0,
        "metrics": {"accuracy": 0.5},
        "series": {},
        "seconds": 1.5,
        "started": "2026-01-02T03:04:05+00:00",
        "command": "python -m benchmarks run made_up",
        "versions": {"python": "3.11"},
        "commit": "0123456789abcdef",
        "dirty": False,
        "device": {"platform": "cpu", "kind": "cpu", "count": 1},
    }
    return records.Record(**{**fields, **changes})


def strict(text: str) -> dict:
    """Parses JSON and refuses NaN, which json.loads would accept."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    return json.loads(text, parse_constant=refuse)


def test_a_record_survives_its_file(tmp_path):
    before = make(series={"loss": [3.0, 2.0]}, metrics={"test": {"f1": 0.25}})
    path = tmp_path / "lora-r4.json"
    records.write_atomic(path, records.encode(before).encode())
    after = records.read_record(path)
    assert after == before
    assert after.get("test/f1") == 0.25
    assert after.get("test/absent") is None
    assert after.get("test/f1/deeper", -1) == -1


def test_nan_and_infinity_are_null_with_a_note_and_come_back():
    metrics = {"a/b": math.nan, "ok": 1.0, "none": None}
    before = make(metrics=metrics, series={"loss": [1.0, math.inf, -math.inf]})
    body = strict(records.encode(before))
    assert body["metrics"] == {"a/b": None, "ok": 1.0, "none": None}
    assert body["series"]["loss"] == [1.0, None, None]
    assert body["nonfinite"] == {
        "/metrics/a~1b": "nan",
        "/series/loss/1": "inf",
        "/series/loss/2": "-inf",
    }
    after = records.decode(records.encode(before))
    assert math.isnan(after.metrics["a/b"])
    assert after.metrics["none"] is None
    assert after.series["loss"] == [1.0, math.inf, -math.inf]


def test_arrays_dataclasses_paths_and_enums_become_plain():
    class Mode(enum.Enum):
        FAST = "fast"

    @dataclasses.dataclass
    class Inner:
        ranks: tuple[int, ...] = (1, 2)

    value = {
        "np": np.float32(0.5),
        "jax": jnp.arange(2),
        "bf16": jnp.asarray(1.5, jnp.bfloat16),
        "inner": Inner(),
        "path": pathlib.PurePosixPath("a/b"),
        "mode": Mode.FAST,
        3: {"b", "a"},
    }
    assert records.plain(value) == {
        "np": 0.5,
        "jax": [0, 1],
        "bf16": 1.5,
        "inner": {"ranks": [1, 2]},
        "path": "a/b",
        "mode": "fast",
        "3": ["a", "b"],
    }
    with pytest.raises(TypeError, match="cannot store 'value/x/0': .* got object"):
        records.plain({"x": [object()]})


def test_hash_is_of_the_content():
    one = records.config_hash({"rank": 4, "alpha": 16.0, "seeds": (0, 1)})
    assert one == records.config_hash({"seeds": [0, 1], "alpha": 16, "rank": 4})
    text = b'[{"alpha": 16, "rank": 4, "seeds": [0, 1]}, {}]'
    assert one == hashlib.sha256(text).hexdigest()[:16]
    others = [
        {"rank": 5, "alpha": 16, "seeds": [0, 1]},
        {"rank": 4, "alpha": 16, "seeds": [1, 0]},
        {"rank": 4, "alpha": 16},
        {"rank": True},
        {"rank": 1},
        {"rank": "1"},
        {"rank": math.nan},
        {"rank": None},
    ]
    hashes = {records.config_hash(config) for config in others}
    assert len(hashes | {one}) == len(others) + 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda body: body.pop("metrics"), r"mistyped fields \['metrics'\]"),
        (lambda body: body.update(seconds="1"), r"mistyped fields \['seconds'\]"),
        (lambda body: body.update(extra=1), r"unknown fields \['extra'\]"),
        (lambda body: body.update(schema=99), "expected schema 1, got 99"),
        (lambda body: body["config"].update(rank=8), "does not fit its hash"),
    ],
)
def test_records_that_are_not_whole_are_refused(change, message):
    body = json.loads(records.encode(make()))
    change(body)
    with pytest.raises(records.RecordError, match=message):
        records.decode(json.dumps(body))


def test_a_folder_names_its_bad_files_and_reads_the_others(tmp_path):
    good = records.encode(make())
    (tmp_path / "lora-r4.json").write_text(good)
    (tmp_path / "truncated.json").write_text(good[: len(good) // 2])
    (tmp_path / "renamed.json").write_text(good)
    (tmp_path / "empty.json").write_text("")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "list.json").write_text("[]")
    found, problems = records.read_folder(tmp_path)
    assert [record.row for record in found] == ["lora-r4"]
    named = [problem.split(":")[0] for problem in problems]
    assert named == [
        "bytes.json", "empty.json", "list.json", "renamed.json", "truncated.json",
    ]  # fmt: skip
    assert "holds row 'lora-r4', not 'renamed'" in problems[3]
    assert records.read_folder(tmp_path / "absent")[1] == []


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "row.json"
    records.write_atomic(path, b"old")

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(pathlib.Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        records.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_records_are_found_by_row_and_by_config():
    rows = [make(row=f"r{rank}", config={"rank": rank}) for rank in (8, 2, 4)]
    found = records.Records(rows)
    assert [record.row for record in found] == ["r2", "r4", "r8"]
    assert found.get("r4") is rows[2]
    assert found.get("r5") is None
    assert [record.row for record in found.where(rank=8)] == ["r8"]
    assert len(found.where(other=1)) == 0
    assert found.values("accuracy") == [0.5] * 3
    assert [record.row for record in found[1:]] == ["r4", "r8"]
