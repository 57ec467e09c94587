"""Which of several workers runs which row of a table: files in one folder."""

import contextlib
import os
import pathlib
import tempfile
import time
from collections.abc import Iterable


class Claims:
    """Which worker holds which row: one file each, made whole or not at all."""

    def __init__(self, folder: str | pathlib.Path) -> None:
        """Opens the folder."""
        self.folder = pathlib.Path(folder)

    def _path(self, table: str, row: str) -> pathlib.Path:
        return self.folder / f"{table.replace('/', '~')}@{row}.claim"

    def take(self, table: str, row: str, worker: str) -> bool:
        """Claims a row; False if another worker holds it."""
        path = self._path(table, row)
        with tempfile.NamedTemporaryFile("w", dir=self.folder) as file:
            file.write(worker)
            file.flush()
            try:
                os.link(file.name, path)
            except FileExistsError:
                return self.holder(table, row) == worker
        return True

    def holder(self, table: str, row: str) -> str | None:
        """The worker that holds a row, or None."""
        try:
            return self._path(table, row).read_text()
        except FileNotFoundError:
            return None

    def drop(self, table: str, row: str) -> None:
        """Gives a row back."""
        self._path(table, row).unlink(missing_ok=True)

    def drop_all(self, worker: str) -> list[str]:
        """Gives back all rows of a worker that died; returns them."""
        found = []
        for path in sorted(self.folder.glob("*.claim")):
            with contextlib.suppress(FileNotFoundError):  # of a row just finished
                if path.read_text() == worker:
                    path.unlink()
                    found.append(path.stem)
        return found

    def wait(self, places: Iterable[tuple[str, str]]) -> None:
        """Waits until no worker holds any of some rows, `(table, row)`."""
        pause = 0.05
        while any(self.holder(*place) for place in places):
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
