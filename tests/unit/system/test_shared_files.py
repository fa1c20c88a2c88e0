from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys
import tarfile
from pathlib import Path
from typing import Any

import pytest

from ansible_collections.funnel.tornado.plugins.module_utils.core.private import acl
from ansible_collections.funnel.tornado.plugins.module_utils.system import shared_files

#: Another user than that of the tests.
READER = 12345

ACLS = {
    "traverse": acl(0o750, READER, 0o1).hex(),
    "directory": acl(0o750, READER).hex(),
    "file": acl(0o640, READER).hex(),
}


def run(command: str, shared: Path, file: Path | None = None, **options: Any) -> list[str]:
    """Run the program, with the file open for writing as its standard input; return the lines of its output."""
    with (file or Path(os.devnull)).open("r+b" if file else "rb") as stdin:
        argv = [sys.executable, shared_files.__file__, command, str(shared), json.dumps(options)]
        done = subprocess.run(argv, stdin=stdin, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def tree(top: Path) -> dict[str, str]:
    """Return the content of all files below a directory by path."""
    return {str(path.relative_to(top)): path.read_text() for path in sorted(top.rglob("*")) if path.is_file()}


@pytest.fixture
def shared(tmp_path: Path) -> Path:
    (tmp_path / "shared").mkdir()
    return tmp_path / "shared"


@pytest.fixture
def seeds(tmp_path: Path) -> Path:
    for name in ("media/a/b.txt", "data/site.json", "data/other"):
        path = tmp_path / "seeds" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("seed")
    return tmp_path / "seeds"


def test_missing_paths_are_created_from_seeds_and_existing_ones_stay(shared: Path, seeds: Path) -> None:
    (shared / "data").mkdir()
    (shared / "data/site.json").write_text("data")
    paths = ["media", "data/site.json", "data/other", "db.sqlite3"]
    run("provide", shared, seeds=str(seeds), paths=paths, served=[], acls=ACLS)
    assert tree(shared) == {"media/a/b.txt": "seed", "data/site.json": "data", "data/other": "seed"}
    assert (shared / "media/a/b.txt").stat().st_mode & 0o777 == 0o660
    (shared / "media/a/b.txt").write_text("changed")
    run("provide", shared, seeds=str(seeds), paths=paths, served=[], acls=ACLS)
    assert tree(shared)["media/a/b.txt"] == "changed"


def test_only_served_directories_become_readable_for_nginx(shared: Path, seeds: Path) -> None:
    paths = ["media", "data"]
    (seeds / "media/link").symlink_to("/etc/passwd")
    run("provide", shared, seeds=str(seeds), paths=paths, served=["media"], acls=ACLS)

    def readable(path: str, name: str = shared_files.ACCESS) -> str:
        return shared_files.read_acl(shared / path, name).hex()

    assert [readable(path) for path in (".", "media", "media/a", "media/a/b.txt")] == [
        ACLS["traverse"],
        ACLS["directory"],
        ACLS["directory"],
        ACLS["file"],
    ]
    assert [readable(path, shared_files.DEFAULT) for path in ("media", "media/a", ".")] == [ACLS["directory"]] * 2 + [""]
    assert readable("data") == readable("data/other") == ""
    assert shared.stat().st_mode & 0o777 == 0o750, "the mode that the build expects"
    (shared / "media/a/new").touch()
    assert shared_files.read_acl(shared / "media/a/new", shared_files.ACCESS), "inherited"


def test_backup_contains_consistent_databases_and_no_special_files(shared: Path, tmp_path: Path) -> None:
    (shared / "instance").mkdir()
    (shared / "instance/notes.txt").write_text("text")
    (shared / "instance/link").symlink_to("notes.txt")
    os.mkfifo(shared / "instance/pipe")
    (shared / "unrelated").write_text("not backed up")
    (shared / "settings.json").write_text("{}")
    (shared / "outside").symlink_to("/etc")
    archive = tmp_path / "backup.tar"
    archive.touch()
    with contextlib.closing(sqlite3.connect(shared / "instance/app.db")) as database:
        database.execute("pragma journal_mode = wal")
        database.execute("create table notes (text)")
        database.execute("insert into notes values ('first')")
        database.commit()  # into the log only, as the connection stays open
        database.execute("insert into notes values ('not committed')")
        run("back_up", shared, archive, paths=["instance", "missing", "settings.json", "outside"])
    with tarfile.open(archive) as packed:
        inside = ["instance", "instance/app.db", "instance/link", "instance/notes.txt"]
        assert sorted(packed.getnames()) == [*inside, "outside", "settings.json"]
        packed.extract("instance/app.db", tmp_path / "unpacked")
    with contextlib.closing(sqlite3.connect(tmp_path / "unpacked/instance/app.db")) as copy:
        assert copy.execute("select text from notes").fetchall() == [("first",)]
    assert sorted(path.name for path in shared.iterdir()) == ["instance", "outside", "settings.json", "unrelated"]


def test_restore_exchanges_the_unpacked_paths_and_old_logs_of_databases(shared: Path) -> None:
    restored = shared / shared_files.RESTORING / shared_files.RESTORED
    for path, text in {"media/new": "new", "db.sqlite3": "new"}.items():
        (restored / path).parent.mkdir(parents=True, exist_ok=True)
        (restored / path).write_text(text)
    for path in ("media/old", "db.sqlite3", "db.sqlite3-wal", "kept/file"):
        (shared / path).parent.mkdir(exist_ok=True)
        (shared / path).write_text("old")
    paths = ["media", "db.sqlite3", "kept"]
    assert run("replace", shared, paths=paths, served=["media"], acls=ACLS) == ["media", "db.sqlite3"]
    assert tree(shared) == {"media/new": "new", "db.sqlite3": "new", "kept/file": "old"}
    assert shared_files.read_acl(shared / "media/new", shared_files.ACCESS).hex() == ACLS["file"]
    assert sorted(path.name for path in shared.iterdir()) == ["db.sqlite3", "kept", "media"]


def test_failed_restore_leaves_the_old_data(shared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    restored = shared / shared_files.RESTORING / shared_files.RESTORED
    (restored / "media").mkdir(parents=True)
    (shared / "media").mkdir()
    (shared / "media/old").write_text("old")

    def fail(*_arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "setxattr", fail)
    with pytest.raises(OSError, match="No space left"):
        shared_files.replace(shared, ["media"], ["media"], ACLS)
    assert tree(shared) == {"media/old": "old"}


def test_interrupted_restore_is_removed_and_paths_with_data_are_found(shared: Path) -> None:
    (shared / shared_files.RESTORING / "restored/media").mkdir(parents=True)
    (shared / "media").mkdir()
    (shared / "empty").mkdir()
    (shared / "media/file").touch()
    (shared / "db.sqlite3").write_text("data")
    assert run("prepare", shared, paths=["media", "empty", "db.sqlite3", "missing"]) == ["media", "db.sqlite3"]
    assert not (shared / shared_files.RESTORING).exists()
