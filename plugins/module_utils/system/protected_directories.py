"""Directories of configuration that only root may change, as their owner controls what a service reads."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import private


def owned_directories(root: Path, owns: Iterable[str]) -> list[Path]:
    """Return the directories below ``root`` whose files a file set owns, by its globs, and which only root may change."""
    return sorted({(root / pattern).parent for pattern in owns} - {root})


def is_protected(directory: Path) -> bool:
    """Return whether no other user than this one, which is root on a host, can change the entries of a directory."""
    state = directory.lstat()
    return state.st_uid == os.geteuid() and not state.st_mode & 0o022


def protect(directories: Iterable[Path], *, check_mode: bool) -> list[str]:
    """Take the other users' access to change these directories; return the changed ones. Missing ones and links are skipped."""
    found = [path for path in directories if path.is_dir() and not path.is_symlink() and not is_protected(path)]
    for path in [] if check_mode else found:
        private.set_owner(path, os.geteuid(), os.getegid(), stat.S_IMODE(path.stat().st_mode) & ~0o022)
    return list(map(str, found))
