"""Finding tables, and the session in which one of them runs and resumes.

A table is one module in `tables/` or `speed/` with a docstring (command, the paper's
numbers, cost), a frozen dataclass `Config` with a `smoke()` method,
`run(config, session)` and `report(records)`.
"""

import ast
import dataclasses
import datetime
import difflib
import importlib
import io
import pathlib
import pkgutil
import re
import shutil
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
from tqdm import tqdm

import benchmarks.speed
import benchmarks.tables
from benchmarks import arrays as arrays_of
from benchmarks import origin
from benchmarks import record as records

RESULTS = origin.ROOT / "results"
_ROW = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=,+-]*")


class UnknownTableError(LookupError):
    """A name that no table has."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A table as it can be known without importing it.

    Attributes:
        name: Name on the command line: `quickstart`, `speed/lora_step`.
        module: Module to import.
        summary: First line of its docstring.
        doc: Its docstring.
        cost: What follows `Cost:` in the docstring, or an empty string.
        rows: The number that follows `Rows:` in the docstring, or None.
    """

    name: str
    module: str
    summary: str
    doc: str
    cost: str
    rows: int | None


def discover() -> dict[str, Entry]:
    """Returns every table by name; parses sources and imports none of them."""
    found = {}
    for package, prefix in ((benchmarks.tables, ""), (benchmarks.speed, "speed/")):
        for finder, name, is_package in pkgutil.iter_modules(package.__path__):
            if name.startswith("_") or is_package:
                continue
            path = pathlib.Path(finder.path) / f"{name}.py"  # pyrefly: ignore
            found[prefix + name] = _entry(
                prefix + name, f"{package.__name__}.{name}", path
            )
    return dict(sorted(found.items()))


def _entry(name: str, module: str, path: pathlib.Path) -> Entry:
    """Reads what the docstring of a module says."""
    try:
        doc = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except SyntaxError as error:
        doc = f"(does not parse: {error})"
    summary = doc.strip().splitlines()[0] if doc.strip() else "(no docstring)"
    cost = re.search(r"(?i)^\W*cost:\W*(.+?)\s*$", doc, re.MULTILINE)
    rows = re.search(r"(?i)^\W*rows:\W*(\d+)", doc, re.MULTILINE)
    return Entry(
        name,
        module,
        summary,
        doc,
        cost.group(1) if cost else "",
        int(rows.group(1)) if rows else None,
    )


def find(name: str) -> Entry:
    """Returns the table of a name; `tables/x` means `x`.

    Raises:
        UnknownTableError: With the closest names.
    """
    entries = discover()
    key = name.removeprefix("tables/").replace("-", "_").removesuffix(".py")
    if key in entries:
        return entries[key]
    close = difflib.get_close_matches(key, entries, n=3, cutoff=0.4)
    close += [other for other in entries if key in other and other not in close][:3]
    hint = f"Did you mean {', '.join(close)}?" if close else f"Known: {list(entries)}."
    raise UnknownTableError(
        f"benchmarks: no table {name!r}. {hint} `python -m benchmarks list` shows all."
    )


def load(entry: Entry) -> ModuleType:
    """Imports a table.

    Raises:
        TypeError: If it lacks one of the names that a table must have.
    """
    module = importlib.import_module(entry.module)
    missing = [
        name for name in ("Config", "run", "report") if not hasattr(module, name)
    ]
    if not missing and not dataclasses.is_dataclass(module.Config):
        missing = ["Config as a dataclass"]
    if not missing and not hasattr(module.Config, "smoke"):
        missing = ["Config.smoke()"]
    if missing:
        raise TypeError(
            f"benchmarks: table {entry.name!r} lacks {', '.join(missing)}: expected "
            "Config (a frozen dataclass with smoke()), run(config, session) and "
            "report(records). See docs/benchmarks.md."
        )
    return module


def folder(results: pathlib.Path, table: str, *, smoke: bool) -> pathlib.Path:
    """Returns where the records of a table lie."""
    return results / ("smoke" if smoke else "full") / table


class Session:
    """One run of one table: gives finished rows back and writes new ones.

    Attributes:
        table: Name of the table.
        smoke: Whether this is a smoke run.
        folder: Where its records lie.
        artifacts: Where its arrays lie, so that a resumed row can reuse them.
        reused: Rows that were found finished.
        written: Rows that were saved, with the hashes of their configs.
    """

    def __init__(
        self,
        table: str,
        results: pathlib.Path = RESULTS,
        *,
        smoke: bool = False,
        force: bool = False,
        command: str = "",
    ) -> None:
        """Opens the folder of a table; `force` ignores what is already there."""
        self.table = table
        self.smoke = smoke
        self.folder = folder(pathlib.Path(results), table, smoke=smoke)
        self.artifacts = self.folder / "artifacts"
        self.reused: set[str] = set()
        self.written: dict[str, str] = {}
        self._force = force
        self._results = pathlib.Path(results)
        self._command = command or f"python -m benchmarks run {table}"
        self._arrays_written: set[str] = set()

    def beside(self, name: str) -> "Session":
        """Returns a session of the same run under another name, to share arrays."""
        return Session(
            name,
            self._results,
            smoke=self.smoke,
            force=self._force,
            command=self._command,
        )

    def row(self, row_id: str, **config: Any) -> records.Record | None:
        """Returns the record of a row if it was run with this very config.

        Args:
            row_id: Name of the row: letters, digits and `._=,+-`.
            **config: Everything that decides the result.

        Returns:
            The record, or None if the row must run: it has no record, the record is
            unreadable (it is named and kept aside), its config differs, or the session
            was told to force.
        """
        path = self._path(row_id)
        digest = records.config_hash(config)
        if not path.exists() or (self._force and row_id not in self.written):
            return None
        try:
            found = records.read_record(path)
        except records.RecordError as error:
            self.log(f"{self.table}: {path.name} is unreadable and runs again: {error}")
            return None
        if found.config_hash != digest:
            changed = _changed(found.config, records.plain(config))
            self.log(
                f"{self.table}: row {row_id} runs again: its config differs in "
                f"{changed}"
            )
            return None
        if row_id not in self.written:
            self.reused.add(row_id)
        return found

    def save(
        self,
        row_id: str,
        metrics: Mapping[str, Any],
        *,
        config: Mapping[str, Any],
        arrays: Mapping[str, Any] | None = None,
        series: Mapping[str, Any] | None = None,
        seconds: float,
        seed: int,
    ) -> records.Record:
        """Writes the record of a finished row, whole or not at all.

        Args:
            row_id: Name of the row, as given to `row`.
            metrics: Results: nested dicts of numbers and strings.
            config: Everything that decides the result, as given to `row`.
            arrays: Arrays to keep beside the record, as with `save_arrays`.
            series: Curves: lists of numbers by name.
            seconds: Wall time of the row.
            seed: The seed of the row.

        Returns:
            The record. An earlier file of the row is kept under `stale/`.

        Raises:
            ValueError: If this session saved the row before with another config.
        """
        path = self._path(row_id)
        digest = records.config_hash(config)
        if self.written.get(row_id, digest) != digest:
            raise ValueError(
                f"session: row {row_id!r} of {self.table!r} was saved before in this "
                "run with another config. Give each row its own name."
            )
        commit, dirty = origin.commit()
        now = datetime.datetime.now(datetime.UTC)
        started = now - datetime.timedelta(seconds=float(seconds))
        record = records.Record(
            table=self.table,
            row=row_id,
            config=records.plain(config, "config"),
            config_hash=digest,
            seed=int(seed),
            metrics=records.plain(metrics, "metrics"),
            series=records.plain(series or {}, "series"),
            seconds=round(float(seconds), 3),
            started=started.isoformat(timespec="seconds"),
            command=self._command,
            versions=origin.versions(),
            commit=commit,
            dirty=dirty,
            device=origin.device(),
        )
        content = records.encode(record).encode()
        if arrays is not None:
            self.save_arrays(row_id, arrays, config=config)
        if path.exists() and row_id not in self.written:
            self._keep_stale(path)
        records.write_atomic(path, content)
        self.written[row_id] = digest
        return record

    def save_arrays(
        self,
        name: str,
        arrays: Mapping[str, Any],
        *,
        config: Mapping[str, Any] | None = None,
    ) -> pathlib.Path:
        """Writes nested dicts of arrays as one npz file, whole or not at all.

        Args:
            name: Name of the file, formed like a row's.
            arrays: Arrays, in dicts nested to any depth; bfloat16 keeps its type.
            config: What decided the arrays; `load_arrays` can then check it.

        Returns:
            The path of the file.
        """
        content: dict[str, Any] = {**arrays_of.flatten(arrays)}
        digest = "" if config is None else records.config_hash(config)
        content[f"config{arrays_of.STEP}"] = np.array(digest)
        buffer = io.BytesIO()
        np.savez(buffer, **content)
        path = self._path(name, self.artifacts, ".npz")
        records.write_atomic(path, buffer.getvalue())
        self._arrays_written.add(name)
        return path

    def load_arrays(
        self, name: str, *, config: Mapping[str, Any] | None = None
    ) -> dict[str, Any] | None:
        """Returns what `save_arrays` wrote, or None if it must be made again.

        Args:
            name: Name of the file.
            config: If given, arrays saved under another config are not returned.

        Returns:
            Nested dicts of NumPy arrays; None if there is no such file, it is
            unreadable (it is named), or the session was told to force.
        """
        path = self._path(name, self.artifacts, ".npz")
        if not path.exists() or (self._force and name not in self._arrays_written):
            return None
        try:
            content = io.BytesIO(path.read_bytes())
            with np.load(content, allow_pickle=False) as file:
                flat = {key: file[key] for key in file.files}
            digest = str(flat.pop(f"config{arrays_of.STEP}"))
            if config is not None and digest != records.config_hash(config):
                self.log(f"{self.table}: arrays {path.name} are of another config")
                return None
            return arrays_of.nest(flat)
        except Exception as error:  # a damaged zip raises many kinds
            self.log(f"{self.table}: {path.name} is unreadable: {error!r}")
            return None

    def progress(self, total: int | None, desc: str) -> "tqdm[Any]":
        """Returns a progress bar with rate and remaining time: `update()`, `close()`.

        In a log file it writes a line every half minute.
        """
        pause = 0.5 if sys.stderr.isatty() else 30.0
        return tqdm(total=total, desc=desc, mininterval=pause, dynamic_ncols=True)

    def log(self, text: str) -> None:
        """Writes a line without breaking a progress bar."""
        tqdm.write(text)

    def _path(
        self, row_id: str, where: pathlib.Path | None = None, suffix: str = ".json"
    ) -> pathlib.Path:
        """Returns the file of a row; refuses names that are no plain file names."""
        if not _ROW.fullmatch(row_id):
            raise ValueError(
                f"session: bad row name {row_id!r}: expected letters, digits and "
                "._=,+- with no slash. Rename the row."
            )
        return (where or self.folder) / f"{row_id}{suffix}"

    def _keep_stale(self, path: pathlib.Path) -> None:
        """Copies a file that is about to be replaced to `stale/`."""
        stale = self.folder / "stale"
        stale.mkdir(exist_ok=True)
        number = 1
        while (target := stale / f"{path.stem}.{number}.json").exists():
            number += 1
        shutil.copy2(path, target)


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Names the entries in which two configs differ."""
    names = sorted(set(old) | set(new))
    return ", ".join(
        f"{name} ({old.get(name)!r} -> {new.get(name)!r})"
        for name in names
        if records.config_hash(old.get(name)) != records.config_hash(new.get(name))
        or (name in old) != (name in new)
    )
