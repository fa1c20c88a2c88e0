"""Errors of full file systems."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

#: Directories to which the collection writes.
DIRECTORIES = ("/", "/etc", "/opt", "/run", "/srv", tempfile.gettempdir(), "/var", "/var/lib", "/var/log")

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
        if Path(directory).is_dir():
            found = measure(directory)
            if found.f_bavail * found.f_frsize < _MIN_FREE or (found.f_files and not found.f_favail):
                full.setdefault(Path(directory).stat().st_dev, directory)
    return f"{text}; full: {', '.join(full.values())}; free some space, then run this again" if full else text
