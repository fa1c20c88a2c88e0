"""Rotate the logs of the fleet, and keep all of them within their bounds: fleet-logrotate BYTES FILES.

Everything below the directory counts by the room that it takes on the disk, whatever its name. What is beyond a bound goes, the
oldest first: rotated files, then those that are written to.

It is a program of its own because it runs by a timer, with Debian's python3 alone.
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
#: Has rsyslog close its files: only then is the room of those that are removed free.
CLOSE_FILES = ("systemctl", "kill", "--kill-who=main", "--signal=HUP", "rsyslog.service")

#: Bytes of a block of stat(2).
BLOCK = 512
#: Seconds after which an empty directory is not one that a file is about to be made in.
SETTLED = 600


@dataclass(frozen=True, order=True)
class File:
    """A file, in the order in which files go: those that are written to after all that are rotated."""

    written: bool
    modified: float
    path: Path
    size: int


def files(directory: Path) -> Iterator[File]:
    """Yield all that is below a directory and is no directory itself. Links are not followed."""
    for home, _directories, names in os.walk(directory):
        for path in (Path(home, name) for name in names):
            with contextlib.suppress(FileNotFoundError):
                found = path.lstat()
                yield File(path.suffix == ".log", found.st_mtime, path, found.st_blocks * BLOCK)


def beyond(found: Iterable[File], most_bytes: int, most_files: int) -> Iterator[File]:
    """Yield the files that have to go for the others to be within the bounds."""
    kept = sorted(found)
    room, count = sum(file.size for file in kept), len(kept)
    for file in kept:
        if room <= most_bytes and count <= most_files:
            return
        yield file
        room, count = room - file.size, count - 1


def remove_empty(directory: Path) -> None:
    """Remove the directories below one that have no file, and that no file is about to be made in."""
    for home, _directories, _names in os.walk(directory, topdown=False):
        path = Path(home)
        if path != directory and time.time() - path.lstat().st_mtime > SETTLED:
            with contextlib.suppress(OSError):  # it is not empty
                path.rmdir()


def enforce(directory: Path, most_bytes: int, most_files: int) -> list[File]:
    """Remove what is beyond the bounds, and return it."""
    gone = list(beyond(files(directory), most_bytes, most_files))
    for file in gone:
        file.path.unlink(missing_ok=True)
    remove_empty(directory)
    return gone


def main(most_bytes: int, most_files: int) -> int:
    """Rotate, then enforce the bounds, which hold even if nothing could be rotated; return logrotate's exit status."""
    rotated = subprocess.run(LOGROTATE, check=False)
    if any(file.written for file in enforce(DIRECTORY, most_bytes, most_files)):
        subprocess.run(CLOSE_FILES, check=False)
    return rotated.returncode


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
