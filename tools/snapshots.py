"""Snapshots of hosts: what a host has changed in its root file system, as a layer from which new hosts start.

Snapshots belong to a clone. A new one replaces the others of the clone, except those that a host uses.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.packages import ToolError, run
from tools.rootfs import CACHE, UNUSED_AFTER, remove

SNAPSHOTS = CACHE / "snapshots"


@dataclass(frozen=True)
class Snapshot:
    """The release of a host, and the layers of its root file system, the topmost first."""

    release: str
    layers: Sequence[str]


def directory(clone: Path, key: str) -> Path:
    """Return the directory of the snapshots with the name `key` of a clone."""
    return SNAPSHOTS / hashlib.sha256(str(clone).encode()).hexdigest()[:8] / key


def find(clone: Path, key: str) -> dict[str, Snapshot]:
    """Return the snapshots with the name `key` of a clone, by host. Raises `ToolError` if there are none."""
    found = {path.parent.name: _read(path) for path in directory(clone, key).glob("*/snapshot.json")}
    if not found:
        raise ToolError(f"there is no snapshot {key}: create it with `snapshot`")
    directory(clone, key).touch()
    return found


def save(clone: Path, key: str, disks: Mapping[str, tuple[Path, Snapshot]]) -> None:
    """Move disks of hosts that are off, given with the snapshots below them, to new snapshots with the name `key`."""
    target = directory(clone, key)
    partial = target.with_suffix(".partial")
    remove(partial)
    for host, (disk, below) in disks.items():
        (partial / host).mkdir(parents=True)
        (partial / host).chmod(0o700)
        run(["mv", str(disk), str(partial / host / "root")], f"save the disk of {host}")
        snapshot = Snapshot(below.release, [str(target / host / "root"), *below.layers])
        (partial / host / "snapshot.json").write_text(json.dumps(asdict(snapshot)))
    partial.rename(target)


def remove_stale(clone: Path, key: str, used: Collection[str]) -> None:
    """Remove the snapshots of a clone, except `key`, and those of other clones after two weeks; layers in `used` are kept."""
    kept = directory(clone, key)
    for other in SNAPSHOTS.glob("*/*"):
        old = other.parent == kept.parent or time.time() - other.stat().st_mtime > UNUSED_AFTER
        if old and other != kept and not any(layer.startswith(f"{other}/") for layer in used):
            remove(other)


def layers() -> set[str]:
    """Return the layers of all snapshots of this machine."""
    return {layer for path in SNAPSHOTS.glob("*/*/*/snapshot.json") for layer in _read(path).layers}


def _read(path: Path) -> Snapshot:
    return Snapshot(**json.loads(path.read_text()))
