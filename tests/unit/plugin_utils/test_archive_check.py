"""Check of archives on the controller; tests of unpacking compare it with what hosts do."""

from __future__ import annotations

import errno
import io
import json
import os
import subprocess
import sys
import tarfile
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.system.unpacking import (
    ERRORS,
    UnpackError,
    Unpacking,
    flatten_directory,
    keep_subdirectory,
)
from ansible_collections.funnel.tornado.plugins.plugin_utils import archive_check
from ansible_collections.funnel.tornado.plugins.plugin_utils.archive_check import archive_problem, archive_problem_once

ROOT = Path(__file__).parents[3]


def archived(file: Path, **members: bytes | tarfile.TarInfo) -> Path:
    with tarfile.open(file, "w:gz") as archive:
        for name, content in members.items():
            member = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
            else:
                archive.addfile(member)
    return file


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, target
    return member


def test_an_archive_that_hosts_can_unpack_is_accepted(tmp_path: Path) -> None:
    file = archived(tmp_path / "shop.tar.gz", web=b"import os", link=special("link", tarfile.SYMTYPE, "web"))
    assert archive_problem(file, None) == ""
    with zipfile.ZipFile(tmp_path / "shop.zip", "w") as archive:
        archive.writestr("shop-1.0/site/web.py", "import os")
    assert archive_problem(tmp_path / "shop.zip", "site") == ""


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"a": special("../evil.py", tarfile.REGTYPE)}, "../evil.py would be unpacked outside of the source's directory"),
        ({"a": special("pipe", tarfile.FIFOTYPE)}, "pipe is not a file, directory or link"),
        ({"a": special("linked", tarfile.LNKTYPE, "missing")}, "linked is a hard link to missing, which is no file before it"),
        ({"web/x": b""}, "web is a file and a directory"),
        ({"a": special("web", tarfile.SYMTYPE, "x")}, "web is a link to x, and something else"),
        ({"a" * 5000: b""}, "a name has more than 4096 characters: aaaa"),
        (
            {"logo": b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n"},
            "logo is a Git LFS pointer instead of the file",
        ),
    ],
)
def test_an_archive_that_hosts_would_refuse_is_rejected(
    tmp_path: Path, members: dict[str, bytes | tarfile.TarInfo], message: str
) -> None:
    file = archived(tmp_path / "shop.tar.gz", web=b"import os", **members)
    problem = archive_problem(file, None)
    assert problem.startswith(f"archive: {file} cannot be unpacked: ")
    assert message in problem


def test_a_damaged_archive_and_a_missing_subdirectory_are_rejected(tmp_path: Path) -> None:
    file = archived(tmp_path / "shop.tar.gz", web=b"x" * 100_000)
    assert archive_problem(file, "site") == "subdirectory: site is not a directory of the source"
    file.write_bytes(file.read_bytes()[:100])
    assert "cannot be unpacked" in archive_problem(file, None)
    file.write_text("<html>not found</html>")
    assert archive_problem(file, None) == f"archive: {file} cannot be unpacked: truncated header"


def test_an_archive_that_this_machine_cannot_decompress_is_left_to_the_hosts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "shop.tar.zst"
    file.write_bytes(b"\x28\xb5\x2f\xfd damaged")
    monkeypatch.setenv("PATH", "/nowhere")
    assert archive_problem(file, None) == ""


@pytest.mark.parametrize("subdirectory", [".", "site", "site/deep", "shop/site", "link", "link/deep", "..", "web.py", "/etc"])
@pytest.mark.parametrize("top", ["", "shop/", "./", "shop/shop/"])
def test_the_check_agrees_with_unpacking(tmp_path: Path, top: str, subdirectory: str) -> None:
    members: dict[str, bytes | tarfile.TarInfo] = {f"{top}{name}": b"x" for name in ("web.py", "site/deep/a.py")}
    file = archived(tmp_path / "shop.tar.gz", **members, link=special(f"{top}link", tarfile.SYMTYPE, "site"))
    unpacked = tmp_path / "unpacked"
    unpacked.mkdir()
    try:
        with file.open("rb") as opened:
            Unpacking(unpacked).unpack(opened)
        flatten_directory(unpacked)
        keep_subdirectory(unpacked, subdirectory)
        accepted = True
    except (UnpackError, *ERRORS):
        accepted = False
    assert (archive_problem(file, subdirectory) == "") is accepted


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EMFILE])
def test_lacking_resources_of_the_controller_refuse_no_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(*_arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    file = archived(tmp_path / "shop.tar.gz", web=b"import os")
    monkeypatch.setattr(Unpacking, "unpack", fail)
    assert archive_problem(file, None) == ""


def test_an_archive_is_read_once_for_all_hosts_and_nothing_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def record(file: Path, subdirectory: str | None) -> str:
        read.append(file)
        return archive_problem(file, subdirectory)

    monkeypatch.setattr(archive_check, "archive_problem", record)
    file = archived(tmp_path / "shop.tar.gz", web=b"import os")
    with ThreadPoolExecutor() as threads:
        problems = list(threads.map(lambda _host: archive_problem_once(file, "site"), range(8)))
    assert problems == ["subdirectory: site is not a directory of the source"] * 8
    assert read == [file]
    assert not [path for path in tmp_path.rglob("web*") if path != file]


def test_archives_that_hosts_would_refuse_are_reported_with_all_other_mistakes(tmp_path: Path) -> None:
    (tmp_path / "shop.zip").write_text("<html>not found</html>")
    shop = {"source": {"archive": str(tmp_path / "shop.zip")}, "run": {"app": "a:b"}}
    arguments = json.dumps({"apps": {"shop": shop, "blog": {**shop, "drian": 3}}})
    ansible = str(Path(sys.executable).with_name("ansible"))
    command = [ansible, "localhost", "--connection=local", "-m", "funnel.tornado.preflight", "-a", arguments]
    output = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60).stdout
    assert "tornado_apps.blog.drian: unknown key; did you mean drain?" in output
    assert f"tornado_apps.shop.source.archive: {tmp_path}/shop.zip cannot be unpacked: " in output
