"""One table by several workers: each takes rows that no other has taken.

A table stays what it is, a function that loops over its rows. Every worker runs all of
it with a session that claims a row before it is run: a row that another worker holds is
passed over, and one that depends on such a row waits for it. A worker that dies loses
its claims, and a new one takes its place; what is finished is a record, as ever.

Workers are local processes, or tasks of a Ray cluster whose nodes see one folder of
results (`benchmarks/ray_cluster.py`).
"""

import collections
import contextlib
import dataclasses
import fcntl
import itertools
import os
import pathlib
import pickle
import queue
import subprocess
import sys
import threading
import traceback
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple, Protocol

from benchmarks import record as records
from benchmarks import runner
from benchmarks.claims import Claims

DEATHS = 3  # a row that was held by so many workers when they died is given up
DONE, FAILED, ORPHANED = 0, 1, 3  # exit codes of a local worker; others: it died


@dataclasses.dataclass(frozen=True)
class Request:
    """What a worker must know to run a table.

    Attributes:
        table: Its name.
        module: The module that holds it.
        config: Its config.
        results: Folder of the results, seen by all workers.
        claims: Folder of the claims of this run.
        smoke: Whether this is a smoke run.
        command: The command that goes into records.
    """

    table: str
    module: str
    config: Any
    results: str
    claims: str
    smoke: bool
    command: str


class Ending(NamedTuple):
    """How a worker ended: `error` is None if it did not live to say."""

    handle: Hashable
    error: str | None


class Backend(Protocol):
    """Where workers run."""

    def start(self, request: Request, name: str) -> Hashable:
        """Starts a worker; returns a handle."""
        ...

    def ended(self) -> Ending:
        """Waits for the next worker that ends."""
        ...

    def stop(self) -> None:
        """Ends all workers."""
        ...


# --- the worker ------------------------------------------------------------------


class Elsewhere(BaseException):
    """A row is needed that another worker is running: no error, and not to be caught.

    Attributes:
        table: Name of the table of the row.
        row: The row.
    """

    def __init__(self, table: str, row: str) -> None:
        """Names the row."""
        super().__init__(f"row {row} of {table} is run by another worker")
        self.table, self.row = table, row


class _Pending:
    """Stands for the record of a row that another worker is running."""

    def __init__(self, table: str, row: str) -> None:
        self.__dict__.update(_table=table, _row=row)

    def __getattr__(self, name: str) -> Any:
        raise Elsewhere(self.__dict__["_table"], self.__dict__["_row"])


class SharedSession(runner.Session):
    """A session whose rows are claimed before they are run.

    Attributes:
        elsewhere: Rows that other workers were seen to hold, with their tables.
    """

    def __init__(self, request: Request, worker: str, table: str | None = None) -> None:
        """Opens the folder of a table, by default that of the request."""
        super().__init__(
            table or request.table,
            pathlib.Path(request.results),
            smoke=request.smoke,
            command=request.command,
        )
        self._request, self._worker = request, worker
        self._claims = Claims(request.claims)
        self._held: set[tuple[str, str]] = set()
        self.elsewhere: set[tuple[str, str]] = set()

    def beside(self, name: str) -> "SharedSession":
        """Returns a session of the same run and worker under another name."""
        other = SharedSession(self._request, self._worker, name)
        other._held, other.elsewhere = self._held, self.elsewhere
        return other

    def row(self, row_id: str, **config: Any) -> records.Record | None:
        """Returns a finished row; None if it is this worker's to run.

        A row that another worker holds gives something that is not None, and that
        raises `Elsewhere` once it is looked into.
        """
        found = super().row(row_id, **config)
        if found is not None:
            return found
        place = (self.table, row_id)
        if not self._claims.take(*place, self._worker):
            self.elsewhere.add(place)
            return _Pending(*place)  # pyrefly: ignore[bad-return]
        found = super().row(row_id, **config)  # finished since the first look?
        if found is None:
            self._held.add(place)
        else:
            self._claims.drop(*place)
        return found

    def save(self, row_id: str, *args: Any, **kwargs: Any) -> records.Record:
        """Writes the record of a finished row and gives its claim back."""
        found = super().save(row_id, *args, **kwargs)
        self._held.discard((self.table, row_id))
        self._claims.drop(self.table, row_id)
        return found

    def release(self) -> None:
        """Gives back what was claimed and not run."""
        for place in self._held:
            self._claims.drop(*place)
        self._held.clear()


def work(request: Request, worker: str) -> str:
    """Runs a table until every row of it is finished.

    Args:
        request: What to run.
        worker: Name of this worker.

    Returns:
        A traceback if the table failed, else an empty string.
    """
    entry = runner.Entry(request.table, request.module, "", "", "", None)
    module = runner.load(entry)
    claims = Claims(request.claims)
    while True:
        session = SharedSession(request, worker)
        needed: set[tuple[str, str]] = set()
        error = ""
        try:
            module.run(request.config, session)
        except Elsewhere as stop:
            needed = {(stop.table, stop.row)}
        except Exception:
            # May be for want of a row that another worker has not finished yet.
            error = traceback.format_exc()
        finally:
            session.release()
        if not session.elsewhere:
            return error
        claims.wait(needed or session.elsewhere)


# --- the driver ------------------------------------------------------------------


class WorkersFailed(RuntimeError):  # noqa: N818
    """Workers failed or kept dying; the rows that are finished are kept."""


def run(request: Request, backend: Backend, workers: int) -> int:
    """Runs a table by several workers.

    Args:
        request: What to run.
        backend: Where the workers run.
        workers: How many of them, at least 1.

    Returns:
        How many workers died and were replaced.

    Raises:
        ValueError: If `workers < 1`.
        RuntimeError: If another run works on the table.
        WorkersFailed: If the table failed, or rows kept killing their workers.
    """
    if workers < 1:
        raise ValueError(f"fanout: workers must be at least 1, got {workers}.")
    with _alone(pathlib.Path(request.claims), request.table) as claims:
        try:
            return _drive(request, backend, workers, claims)
        finally:
            backend.stop()


def _drive(request: Request, backend: Backend, workers: int, claims: Claims) -> int:
    """Starts workers, and new ones for those that die, until all are done."""
    names = (f"worker-{number}" for number in itertools.count())
    first = list(itertools.islice(names, workers))
    running = {backend.start(request, name): name for name in first}
    errors: list[str] = []
    deaths: collections.Counter[str] = collections.Counter()
    died = 0
    while running:
        handle, error = backend.ended()
        name = running.pop(handle)
        if error is not None:
            errors += [error] if error else []
            continue
        died += 1
        deaths.update(claims.drop_all(name) or ["(none)"])
        fatal = [row for row, count in deaths.items() if count >= DEATHS]
        if fatal:
            raise WorkersFailed(
                f"fanout: {request.table}: {DEATHS} workers died with {fatal} in hand. "
                "Run the table without workers to see why."
            )
        name = next(names)
        running[backend.start(request, name)] = name
    if errors:
        raise WorkersFailed(
            f"fanout: {request.table}: {len(errors)} workers failed, the first with\n"
            f"{errors[0]}"
        )
    return died


@contextlib.contextmanager
def _alone(folder: pathlib.Path, table: str) -> Iterator[Claims]:
    """An empty folder of claims that no other run uses; freed by the system's lock."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"fanout: another run works on {table!r}. Wait for it, or end it."
            ) from error
        for path in folder.glob("*.claim"):
            path.unlink()
        yield Claims(folder)


# --- local processes -------------------------------------------------------------


class Local:
    """Workers as processes of this machine.

    A worker reads its request from a pipe that stays open: when this process goes, so
    do its workers.
    """

    def __init__(self) -> None:
        """Starts nothing yet."""
        self._ended: queue.Queue[Ending] = queue.Queue()
        self._processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, request: Request, name: str) -> Hashable:
        """Starts a process; its process id is the handle."""
        paths = [path for path in sys.path if path] + [os.getcwd()]
        process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.fanout", name],
            stdin=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        )
        self._processes[process.pid] = process
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                pickle.dump(request, process.stdin)
                process.stdin.flush()
        threading.Thread(target=self._watch, args=(process,), daemon=True).start()
        return process.pid

    def _watch(self, process: "subprocess.Popen[bytes]") -> None:
        """Waits for a process; its traceback is on the terminal already."""
        said = {DONE: "", FAILED: "see above"}.get(process.wait())
        self._ended.put(Ending(process.pid, said))

    def ended(self) -> Ending:
        """Waits for the next process that ends."""
        return self._ended.get()

    def stop(self) -> None:
        """Kills the processes that are left."""
        for process in self._processes.values():
            process.kill()
            process.wait()
            if process.stdin is not None:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.close()
        self._processes.clear()


def _until_orphaned() -> None:
    """Ends this process when the other end of its input goes."""
    while os.read(0, 1):  # unbuffered: a lock held here would break a normal exit
        pass
    os._exit(ORPHANED)


def _main(name: str) -> int:
    """A local worker."""
    request = pickle.load(sys.stdin.buffer)  # written by our own parent
    threading.Thread(target=_until_orphaned, daemon=True).start()
    error = work(request, name)
    sys.stderr.write(error)
    return FAILED if error else DONE


if __name__ == "__main__":
    # As the module of that name: `Request` must be one class for both ends.
    from benchmarks import fanout

    sys.exit(fanout._main(sys.argv[1]))
