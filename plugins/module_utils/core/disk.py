"""Full file systems: which they are, and the errors that they cause."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

#: Directories for temporary files, also if they are full, when tempfile.gettempdir() returns others.
TEMPORARY = tuple(str(Path(parent, "tmp")) for parent in ("/", "/var"))

#: Directories to which the collection writes.
DIRECTORIES = ("/", "/etc", "/home", "/opt", "/root", "/run", "/srv", "/var", "/var/lib", "/var/log", *TEMPORARY)

#: The errors of a full file system and of an exhausted quota.
FULL = (errno.ENOSPC, errno.EDQUOT)

#: Free bytes and inodes below which a file system counts as full.
_MIN_FREE = 1 << 20
_MIN_INODES = 100

REMEDY = "free some space, then run this again"

Measure = Callable[[str], os.statvfs_result]


def error_text(error: BaseException, directories: Iterable[str] | None = None, measure: Measure = os.statvfs) -> str:
    """Return the text of an error; of a full disk, with the directories on file systems without free space or inodes."""
    text = str(error)
    if not any(os.strerror(number) in text for number in FULL) or REMEDY in text:
        return text
    full = _full([*DIRECTORIES, *_mounted_below(DIRECTORIES)] if directories is None else directories, measure)
    return f"{text}; full: {', '.join(full)}; {REMEDY}" if full else text


def full_problem(directories: Iterable[str | Path], measure: Measure = os.statvfs, *, minimum: int = _MIN_FREE) -> str:
    """Return which of the directories are on file systems with less than ``minimum`` free bytes, and the remedy."""
    full = _full(map(str, directories), measure, minimum)
    return f"the disk is full at {', '.join(f'{name} ({free} free)' for name, free in full.items())}; {REMEDY}" if full else ""


def _full(directories: Iterable[str], measure: Measure, minimum: int = _MIN_FREE) -> dict[str, str]:
    """Return what is free, in words, on the full file systems by the first of ``directories`` on each."""
    full: dict[int, tuple[str, str]] = {}
    for directory in directories:
        with contextlib.suppress(OSError):  # it does not exist, or is a home that denies access to root
            device, found = Path(directory).stat().st_dev, measure(directory)
            if found.f_flag & os.ST_RDONLY:  # an image, which is always full
                continue
            size, inodes = found.f_bavail * found.f_frsize, found.f_favail
            # Some file systems report nothing.
            if (found.f_blocks and size < minimum) or (found.f_files and inodes < _MIN_INODES):
                full.setdefault(device, (directory, f"{size >> 10} KiB, {inodes} inodes"))
    return dict(full.values())


def _mounted_below(directories: Iterable[str], mounts: Path = Path("/proc/self/mountinfo")) -> Iterator[str]:
    """Yield the mount points below directories, except those of the system in ``/`` and ``/run``."""
    above = {*directories} - {"/", "/run"}
    for line in mounts.read_text(encoding="utf-8").splitlines():
        fields = line.split()
        point = fields[4].encode().decode("unicode_escape")  # spaces are octal escapes, proc(5)
        is_overlay = fields[fields.index("-") + 1] == "overlay"  # of a container; it is full if the disk below is
        if not is_overlay and any(Path(point).is_relative_to(directory) for directory in above):
            yield point
