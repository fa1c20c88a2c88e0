"""The store of snapshots, and the name of the snapshot of the hosts that scenarios share."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tools import snapshots
from tools.fleet import Fleet
from tools.hosts import parse_arguments
from tools.packages import ToolError
from tools.provisioned import INPUTS, snapshot_name
from tools.rootfs import UNUSED_AFTER
from tools.snapshots import Snapshot

CLONE = Path("/home/user/clone")
BARE = Snapshot("trixie", ["/var/cache/trixie/root"])


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the directory of all snapshots."""
    monkeypatch.setattr(snapshots, "SNAPSHOTS", tmp_path / "snapshots")
    return tmp_path / "snapshots"


def save(clone: Path, key: str, tmp_path: Path) -> Snapshot:
    """Save a snapshot of the host web1, and return it."""
    disk = tmp_path / "disk"
    (disk / "etc").mkdir(parents=True)
    (disk / "etc/hostname").write_text("web1\n")
    snapshots.save(clone, key, {"web1": (disk, BARE)})
    return snapshots.find(clone, key)["web1"]


def test_snapshot_lies_over_the_layers_of_its_host(tmp_path: Path) -> None:
    snapshot = save(CLONE, "first", tmp_path)
    assert snapshot.release == "trixie"
    assert snapshot.layers[1:] == BARE.layers
    top = Path(snapshot.layers[0])
    assert (top / "etc/hostname").read_text() == "web1\n"
    assert top.parent.stat().st_mode & 0o777 == 0o700, "other users must not reach its setuid programs and secrets"
    assert not (tmp_path / "disk").exists()
    assert snapshots.layers() == set(snapshot.layers)


def test_new_snapshot_replaces_unused_ones_of_its_clone(tmp_path: Path) -> None:
    used = save(CLONE, "used", tmp_path)
    save(CLONE, "unused", tmp_path)
    elsewhere = Path("/home/user/other")
    for key in ("fresh", "old"):
        save(elsewhere, key, tmp_path)
    then = time.time() - UNUSED_AFTER - 60
    os.utime(snapshots.directory(elsewhere, "old"), (then, then))
    save(CLONE, "new", tmp_path)
    snapshots.remove_stale(CLONE, "new", used.layers)
    kept = [key for key in ("used", "unused", "new") if snapshots.directory(CLONE, key).exists()]
    assert kept == ["used", "new"]
    assert [key for key in ("fresh", "old") if snapshots.directory(elsewhere, key).exists()] == ["fresh"]


def test_missing_snapshot_is_refused_before_anything_is_created() -> None:
    with pytest.raises(ToolError, match="there is no snapshot none: create it with `snapshot`"):
        Fleet("demo").up({"web1": None}, snapshot="none")


def test_snapshot_is_named_and_selected_on_the_command_line() -> None:
    arguments = parse_arguments(["snapshot", "first", "web1", "web2"])
    assert (arguments.snapshot, arguments.names) == ("first", ["web1", "web2"])
    assert parse_arguments(["up", "--from", "first", "web1"]).snapshot == "first"


def test_every_change_of_code_and_day_needs_a_new_snapshot(tmp_path: Path) -> None:
    files = [tmp_path / top / "file" for top in INPUTS]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("before")
    names = [snapshot_name(tmp_path, "2026-01-01")]
    for file in files:
        file.write_text("after")
        names.append(snapshot_name(tmp_path, "2026-01-01"))
    names.append(snapshot_name(tmp_path, "2026-01-02"))
    assert len(set(names)) == len(names)
    (tmp_path / "roles/__pycache__").mkdir()
    (tmp_path / "roles/__pycache__/cached.pyc").write_bytes(b"")
    assert snapshot_name(tmp_path, "2026-01-02") == names[-1]
