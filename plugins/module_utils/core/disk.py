"""Errors of full file systems."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

#: Directories to which the collection writes.
DIRECTORIES = ("/", "/etc", "/opt", "/run", "/srv", "/tmp", "/var", "/var/lib", "/var/log")  # noqa: S108  # only measured

#: The texts of ENOSPC and EDQUOT.
_FULL = (os.strerror(28), os.strerror(122))

#: Free bytes below which a file system counts as full.
_MIN_FREE = 1 << 20


def error_text(
    error: BaseException, directories: Sequence[str] = DIRECTORIES, measure: Callable[[str], os.statvfs_result] = os.statvfs
) -> str:
    """Return the text of an error; of a full disk, with the directories on file systems without free space or inodes."""
    text = str(error)
    if not any(reason in text for reason in _FULL):
        return text
    full: dict[int, str] = {}
    for directory in directories:
        if os.path.isdir(directory):  # noqa: PTH112  # paths are only displayed
            found = measure(directory)
            if found.f_bavail * found.f_frsize < _MIN_FREE or (found.f_files and not found.f_favail):
                full.setdefault(os.stat(directory).st_dev, directory)  # noqa: PTH116
    return f"{text}; full: {', '.join(full.values())}; free some space, then run this again" if full else text
