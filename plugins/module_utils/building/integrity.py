"""Integrity of releases and environments: whether their files are as the build left them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import Layout

#: File of a tree with its digest, written at the end of the build. Trees of early versions of the collection have none.
SEAL = ".sealed"

#: Directory of compiled bytecode, which Python may write again.
_BYTECODE = "__pycache__"

#: Releases that are built from the same inputs, one after the damage of another, at most.
MAX_REPAIRS = 20


def seal(directory: Path) -> None:
    """Record the state of all files of a tree that only root can write, for root alone."""
    digest = _digest(directory)
    (directory / SEAL).touch(mode=0o600)
    (directory / SEAL).write_text(digest, encoding="utf-8")


def is_intact(directory: Path) -> bool:
    """Return whether a tree exists with all files as recorded; one without a record counts as intact."""
    try:
        return directory.is_dir() and (directory / SEAL).read_text(encoding="utf-8") == _digest(directory)
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False


def is_damaged(layout: Layout, release: str) -> bool:
    """Return whether a release is on the host, but it or its environment is not as its build left it."""
    directory = layout.release(release)
    if not os.path.lexists(directory):
        return False
    return not (layout.is_built(release) and is_intact(directory) and is_intact(directory / "venv"))


def _digest(directory: Path) -> str:
    """Return a hash of the names, types, modes, owners, sizes and times of the files; their contents are not read."""
    lines = (f"{name} {state}" for name, state in sorted(_states(directory, "")))
    return hashlib.sha256("\n".join(lines).encode(errors="surrogateescape")).hexdigest()


def _states(directory: Path, prefix: str) -> Iterator[tuple[str, str]]:
    with os.scandir(directory) as entries:
        for entry in entries:
            name, status = f"{prefix}{entry.name}", entry.stat(follow_symlinks=False)
            content = f"{status.st_size} {status.st_mtime_ns}" if stat.S_ISREG(status.st_mode) else ""
            target = Path(entry.path).readlink() if entry.is_symlink() else ""
            if name != SEAL and entry.name != _BYTECODE:
                yield name, f"{status.st_mode:o} {status.st_uid} {status.st_gid} {content}{target}"
            if entry.is_dir(follow_symlinks=False) and entry.name != _BYTECODE:
                yield from _states(directory / entry.name, f"{name}/")
