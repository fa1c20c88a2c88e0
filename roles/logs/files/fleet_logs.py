"""Rotate the logs of the fleet and enforce their limits: fleet-logrotate BYTES FILES.

All files below the directory count with their disk usage. Beyond a limit the oldest files are removed: rotated files first, then
active ones.

A systemd timer runs this program with Debian's python3, without the collection.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

DIRECTORY = Path("/var/log/fleet")
LOGROTATE = ("logrotate", "--state", "/var/lib/logrotate/fleet", "/etc/fleet-logrotate.conf")
#: Makes rsyslog close its files, which frees the space of removed ones.
CLOSE_FILES = ("systemctl", "kill", "--kill-who=main", "--signal=HUP", "rsyslog.service")

#: Bytes in a block of stat(2).
BLOCK_SIZE = 512
#: Age in seconds from which an empty directory is removed; in a newer one, a file may be about to be created.
MIN_DIRECTORY_AGE = 600


@dataclass(frozen=True, order=True)
class LogFile:
    """A file, ordered by removal: rotated files before active ones, and older before newer ones."""

    active: bool
    modified: float
    path: Path
    size: int


def list_files(directory: Path) -> Iterator[LogFile]:
    """Yield all files below a directory, without following links."""
    for home, _directories, names in os.walk(directory):
        for path in (Path(home, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                yield LogFile(path.suffix == ".log", found.st_mtime, path, found.st_blocks * BLOCK_SIZE)


def excess_files(found: Iterable[LogFile], max_bytes: int, max_files: int) -> Iterator[LogFile]:
    """Yield the files to remove so that the others are within the limits."""
    kept = sorted(found)
    size, count = sum(file.size for file in kept), len(kept)
    for file in kept:
        if size <= max_bytes and count <= max_files:
            return
        yield file
        size, count = size - file.size, count - 1


def remove_empty_directories(directory: Path) -> None:
    """Remove the empty directories below a directory, unless they are new."""
    for home, _directories, _names in os.walk(directory, topdown=False):
        path = Path(home)
        if path != directory and time.time() - path.lstat().st_mtime > MIN_DIRECTORY_AGE:
            with contextlib.suppress(OSError):  # not empty
                path.rmdir()


def enforce(directory: Path, max_bytes: int, max_files: int) -> list[LogFile]:
    """Remove files until the limits are met; return the removed files."""
    removed = list(excess_files(list_files(directory), max_bytes, max_files))
    for file in removed:
        file.path.unlink(missing_ok=True)
    remove_empty_directories(directory)
    return removed


def main(max_bytes: int, max_files: int) -> int:
    """Rotate the logs, then enforce the limits even if that failed; return the exit status of logrotate."""
    logrotate = subprocess.run(LOGROTATE, check=False)
    if any(file.active for file in enforce(DIRECTORY, max_bytes, max_files)):
        subprocess.run(CLOSE_FILES, check=False)
    return logrotate.returncode


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
