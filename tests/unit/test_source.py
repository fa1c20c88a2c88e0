from __future__ import annotations

import hashlib
import io
import os
import subprocess
import tarfile
from pathlib import Path

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.source import (
    SourceError,
    archive_revision,
    files,
    pack,
    revision,
)


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop/web.py").write_text("print('shop')\n")
    (tmp_path / "run.sh").write_text("#!/bin/sh\n")
    (tmp_path / "run.sh").chmod(0o755)
    return tmp_path


def names(directory: Path) -> list[str]:
    return [str(path) for path in files(directory)]


def test_without_git_everything_but_tools_leavings_belongs_to_the_source(app: Path) -> None:
    for name in (".git/config", "__pycache__/web.pyc", ".venv/bin/python", "shop/old.pyc"):
        (app / name).parent.mkdir(parents=True, exist_ok=True)
        (app / name).touch()
    assert names(app) == ["run.sh", "shop/web.py"]


def test_what_git_ignores_stays_out_and_what_it_does_not_know_yet_belongs(app: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(app)], check=True)
    (app / ".gitignore").write_text("*.log\n")
    (app / "debug.log").touch()
    assert names(app) == [".gitignore", "run.sh", "shop/web.py"]


def test_a_tracked_file_that_was_deleted_does_not_belong(app: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(app)], check=True)
    subprocess.run(["git", "-C", str(app), "add", "."], check=True)
    (app / "run.sh").unlink()
    assert names(app) == ["shop/web.py"]


def test_the_revision_ignores_times(app: Path) -> None:
    before = revision(app)
    os.utime(app / "run.sh", (0, 0))
    assert revision(app) == before


@pytest.mark.parametrize("change", ["content", "name", "mode", "link"])
def test_the_revision_follows_every_change_that_matters(app: Path, change: str) -> None:
    before = revision(app)
    script = app / "run.sh"
    if change == "content":
        script.write_text("#!/bin/bash\n")
    elif change == "name":
        script.rename(app / "start.sh")
    elif change == "mode":
        script.chmod(0o644)
    else:
        (app / "link").symlink_to("run.sh")
    assert revision(app) != before


def test_the_archive_is_roots_and_keeps_times_and_programs(app: Path) -> None:
    os.utime(app / "run.sh", (1_000_000_000, 1_000_000_000))
    with tarfile.open(fileobj=io.BytesIO(pack(app))) as archive:
        member = archive.getmember("run.sh")
        assert (member.uid, member.mode, member.mtime) == (0, 0o755, 1_000_000_000)
        assert archive.getmember("shop/web.py").mode == 0o644


@pytest.mark.parametrize("target", ["/etc/passwd", "../secret"])
def test_a_link_out_of_the_source_is_refused(app: Path, target: str) -> None:
    (app / "link").symlink_to(target)
    with pytest.raises(SourceError, match="outside of the source"):
        pack(app)


def test_an_archive_is_known_by_its_hash_and_is_the_one_that_is_meant(tmp_path: Path) -> None:
    (tmp_path / "shop.tar").write_bytes(b"shop")
    found = archive_revision(tmp_path / "shop.tar", None)
    assert found == hashlib.sha256(b"shop").hexdigest()
    assert archive_revision(tmp_path / "shop.tar", f"sha256:{found}") == found
    with pytest.raises(SourceError, match=rf"hashes to sha256:{found}; sha256:0+ is wanted"):
        archive_revision(tmp_path / "shop.tar", f"sha256:{'0' * 64}")
