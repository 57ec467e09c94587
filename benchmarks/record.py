"""One result is one JSON file: what was run, where, with what, and what came out.

A record holds everything a reader needs to trust a number or to make it again. It is
written whole or not at all, is always valid JSON (NaN and infinities are stored as
null and named beside it), and is refused on reading when anything in it is amiss.
"""

import dataclasses
import enum
import hashlib
import json
import math
import os
import pathlib
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

SCHEMA = 1


class RecordError(ValueError):
    """A file that is not a whole, valid record of this schema."""


@dataclasses.dataclass(frozen=True)
class Record:
    """The result of one row with one seed.

    Attributes:
        table: Name of the table, as on the command line.
        row: Identity of the row within its table; also the file's name.
        config: Everything that decides the result, as plain JSON values.
        config_hash: Hash of `config`; a resumed row must have the same one.
        seed: The seed of the row.
        metrics: Results: nested dicts of numbers and strings.
        series: Curves: lists of numbers by name.
        seconds: Wall time of the row.
        started: Start of the row, UTC, ISO 8601.
        command: The command line that made the record.
        versions: Package versions, and Python's.
        commit: Git commit of the code, or `unknown`.
        dirty: Whether the code differed from that commit.
        device: Platform, kind and count of devices; processor model and cores.
        schema: Version of this layout.
    """

    table: str
    row: str
    config: dict[str, Any]
    config_hash: str
    seed: int
    metrics: dict[str, Any]
    series: dict[str, Any]
    seconds: float
    started: str
    command: str
    versions: dict[str, str]
    commit: str
    dirty: bool
    device: dict[str, Any]
    schema: int = SCHEMA

    def get(self, path: str, default: Any = None) -> Any:
        """Returns the metric at a path such as `test/accuracy`, or the default."""
        value: Any = self.metrics
        for name in path.split("/"):
            if not isinstance(value, Mapping) or name not in value:
                return default
            value = value[name]
        return value


class Records(Sequence[Record]):
    """The records of one table, in the order of their row names."""

    def __init__(self, records: Sequence[Record] = ()) -> None:
        """Takes records in any order."""
        self._records = tuple(sorted(records, key=lambda record: record.row))

    @overload
    def __getitem__(self, index: int) -> Record: ...
    @overload
    def __getitem__(self, index: slice) -> "Records": ...
    def __getitem__(self, index: int | slice) -> "Record | Records":
        """Returns one record, or a slice of them as `Records`."""
        if isinstance(index, slice):
            return Records(self._records[index])
        return self._records[index]

    def __len__(self) -> int:
        """Returns how many records there are."""
        return len(self._records)

    def __iter__(self) -> Iterator[Record]:
        """Iterates over the records."""
        return iter(self._records)

    def get(self, row: str) -> Record | None:
        """Returns the record of a row, or None if that row was not run."""
        return next((record for record in self._records if record.row == row), None)

    def where(self, **config: Any) -> "Records":
        """Returns the records whose config has all the given values."""
        wanted = plain(config)
        return Records(
            [
                record
                for record in self._records
                if all(
                    name in record.config and record.config[name] == value
                    for name, value in wanted.items()
                )
            ]
        )

    def values(self, path: str) -> list[Any]:
        """Returns the metric at `path` of every record that has it."""
        found = [record.get(path) for record in self._records]
        return [value for value in found if value is not None]


def plain(value: Any, where: str = "value") -> Any:
    """Turns arrays, dataclasses, tuples, paths and enums into plain JSON values.

    Args:
        value: Nested dicts, sequences, dataclasses, NumPy or JAX arrays, scalars.
        where: Path used in the message when something cannot be stored.

    Returns:
        The same content in dicts with string keys, lists, numbers, strings, None.

    Raises:
        TypeError: If a value has no plain form.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value.value if isinstance(value, enum.Enum) else value
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        value = {field.name: getattr(value, field.name) for field in fields}
    if isinstance(value, Mapping):
        return {str(k): plain(v, f"{where}/{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}/{i}") for i, item in enumerate(value)]
    if isinstance(value, set | frozenset):
        return sorted(plain(item, where) for item in value)
    if isinstance(value, enum.Enum):
        return plain(value.value, where)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), where)
    raise TypeError(
        f"record: cannot store {where!r}: expected numbers, strings, arrays, dicts or "
        f"sequences of them, got {type(value).__name__}. Convert it first."
    )


def _null_nonfinite(value: Any, pointer: str, notes: dict[str, str]) -> Any:
    """Replaces NaN and infinities by None, noting each by its JSON pointer."""
    if isinstance(value, float) and not math.isfinite(value):
        notes[pointer] = repr(value)
        return None
    if isinstance(value, dict):
        return {
            k: _null_nonfinite(v, _point(pointer, k), notes) for k, v in value.items()
        }
    if isinstance(value, list):
        return [
            _null_nonfinite(v, _point(pointer, i), notes) for i, v in enumerate(value)
        ]
    return value


def _restore_nonfinite(value: Any, pointer: str, notes: Mapping[str, str]) -> Any:
    """Puts the noted NaN and infinities back."""
    if value is None and pointer in notes:
        return float(notes[pointer])
    if isinstance(value, dict):
        return {
            k: _restore_nonfinite(v, _point(pointer, k), notes)
            for k, v in value.items()
        }
    if isinstance(value, list):
        return [
            _restore_nonfinite(v, _point(pointer, i), notes)
            for i, v in enumerate(value)
        ]
    return value


def _point(pointer: str, key: str | int) -> str:
    """Extends a JSON pointer (RFC 6901) by one key."""
    return f"{pointer}/{str(key).replace('~', '~0').replace('/', '~1')}"


def _whole_numbers(value: Any) -> Any:
    """Writes 16.0 as 16, so that equal configs have equal hashes."""
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, dict):
        return {k: _whole_numbers(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_whole_numbers(v) for v in value]
    return value


def config_hash(config: Any) -> str:
    """Hashes a config by its content.

    Args:
        config: A dict or a dataclass of values that `plain` accepts.

    Returns:
        16 hexadecimal digits: equal for equal values whatever the order of keys, for
        tuples and lists, and for `16` and `16.0`; the same in every process.
    """
    notes: dict[str, str] = {}
    body = _whole_numbers(_null_nonfinite(plain(config, "config"), "", notes))
    text = json.dumps([body, notes], sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def encode(record: Record) -> str:
    """Returns the record as JSON text; never writes NaN, which is not JSON."""
    notes: dict[str, str] = {}
    body = _null_nonfinite(plain(record, "record"), "", notes)
    body = {"schema": body.pop("schema"), **body, "nonfinite": notes}
    return json.dumps(body, indent=1, allow_nan=False, ensure_ascii=False) + "\n"


_TYPES: dict[str, type | tuple[type, ...]] = {
    "table": str, "row": str, "config": dict, "config_hash": str, "seed": int,
    "metrics": dict, "series": dict, "seconds": (int, float), "started": str,
    "command": str, "versions": dict, "commit": str, "dirty": bool, "device": dict,
    "schema": int, "nonfinite": dict,
}  # fmt: skip


def decode(text: str) -> Record:
    """Reads a record back.

    Args:
        text: What `encode` wrote.

    Returns:
        The record, with NaN and infinities restored.

    Raises:
        RecordError: If the text is no JSON, has another schema, lacks a field, has one
            of a wrong type, or if its config does not fit its hash.
    """
    try:
        body = json.loads(text)
    except ValueError as error:
        raise RecordError(f"record: not JSON ({error}).") from error
    if not isinstance(body, dict) or body.get("schema") != SCHEMA:
        found = body.get("schema") if isinstance(body, dict) else type(body).__name__
        raise RecordError(f"record: expected schema {SCHEMA}, got {found!r}.")
    wrong = [
        name
        for name, kind in _TYPES.items()
        if name not in body or not isinstance(body[name], kind)
    ]
    unknown = sorted(set(body) - set(_TYPES))
    if wrong or unknown:
        raise RecordError(
            f"record: missing or mistyped fields {wrong}, unknown fields {unknown}."
        )
    notes = body.pop("nonfinite")
    record = Record(**_restore_nonfinite(body, "", notes))
    if config_hash(record.config) != record.config_hash:
        raise RecordError("record: the config does not fit its hash; edited by hand?")
    return record


def write_atomic(path: pathlib.Path, content: bytes) -> None:
    """Writes a file whole or not at all: temporary file, flush, rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        pathlib.Path(name).chmod(0o644)
        pathlib.Path(name).replace(path)
    except BaseException:
        pathlib.Path(name).unlink(missing_ok=True)
        raise


def read_record(path: pathlib.Path) -> Record:
    """Reads one record file.

    Raises:
        RecordError: If the file is corrupt, or holds a row of another name.
    """
    try:
        record = decode(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"record: cannot read it ({error}).") from error
    if record.row != path.stem:
        raise RecordError(f"record: holds row {record.row!r}, not {path.stem!r}.")
    return record


def read_folder(folder: pathlib.Path) -> tuple[Records, list[str]]:
    """Reads every record of a table.

    Returns:
        The readable records, and one sentence for each file that is not one.
    """
    records, problems = [], []
    for path in sorted(folder.glob("*.json")):
        try:
            records.append(read_record(path))
        except RecordError as error:
            problems.append(f"{path.name}: {error}")
    return Records(records), problems
