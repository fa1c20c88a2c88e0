"""Whether the collection can write to the file systems of a host, and start programs on them."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

#: Directories that the collection writes to for a service, and on an app host; and whether it also starts programs in them.
SERVICE_DIRECTORIES = {"/etc": False, "/var/lib": False, "/var/log": False}
APP_DIRECTORIES = {"/etc": False, "/opt": True, "/srv": True, "/var/lib": False, "/var/log": False}


def filesystem_problem(
    directories: Mapping[str, bool], root: Path = Path("/"), flags: Callable[[Path], int] = lambda path: os.statvfs(path).f_flag
) -> str:
    """Return why ``directories`` of this host cannot be used, and the remedy; empty if they can."""
    return "; ".join(_problems(directories, root, flags))


def _problems(directories: Mapping[str, bool], root: Path, flags: Callable[[Path], int]) -> Iterator[str]:
    for name, executed in directories.items():
        path = root / name.lstrip("/")
        if path.is_symlink() and not path.exists():
            yield f"{name} is a link to {path.readlink()}, which does not exist: create it, or mount its file system"
            continue
        while not path.exists():
            path = path.parent
        found = flags(path)
        if found & os.ST_RDONLY:
            yield f"{name} is on a file system that is mounted read-only: mount it with rw"
        elif executed and found & os.ST_NOEXEC:
            yield f"{name} is on a file system that is mounted with noexec, and apps are started there: mount it with exec"
