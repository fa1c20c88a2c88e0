"""Copies of the administrator's files that the collection replaces."""

from __future__ import annotations

import shutil
import stat
import time
from collections.abc import Mapping
from hashlib import md5
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core import atomic
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, run

#: Directory of the copies, at their paths with the time appended; accessible to root only.
DIRECTORY = Path("/var/backups/funnel")

#: What the first lines of the collection's configuration files contain.
_HEADER, _HEADER_BYTES = b"Ansible managed", 200


def keep_copies(replacements: Mapping[Path, tuple[bytes, bytes]], *, check_mode: bool, directory: Path = DIRECTORY) -> list[str]:
    """Copy the files that the collection replaces and did not write; return messages about those that no package wrote, either.

    :arg replacements: the previous and the new content by path.
    """
    foreign = {
        path: before
        for path, (before, after) in replacements.items()
        if before and _HEADER in after[:_HEADER_BYTES] and _HEADER not in before[:_HEADER_BYTES]
    }
    packaged = _packaged_files() if foreign else frozenset()
    messages = []
    for path, content in foreign.items():
        copy = _copy_path(path, directory)
        if not check_mode:
            mode = stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o600
            _make_parent(copy, directory)
            atomic.stage_file(copy, content, mode=mode, uid=-1, gid=-1).replace(copy)
        if f"{path} {md5(content, usedforsecurity=False).hexdigest()}" not in packaged:
            messages.append(f"{path} is replaced; its previous content is in {copy}")
    return messages


def move_away(path: Path, *, check_mode: bool = False, directory: Path = DIRECTORY) -> str:
    """Move a program of the administrator, which may be a link, to the copies; return a message."""
    copy = _copy_path(path, directory)
    if not check_mode:
        _make_parent(copy, directory)
        shutil.move(path, copy)
    return f"{path} is replaced; the previous one is {copy}"


def _copy_path(path: Path, directory: Path) -> Path:
    return directory / f"{path.relative_to('/')}.{time.strftime('%Y-%m-%dT%H-%M-%S')}"


def _make_parent(copy: Path, directory: Path) -> None:
    copy.parent.mkdir(parents=True, exist_ok=True)
    directory.chmod(0o700)


def _packaged_files() -> frozenset[str]:
    """Return the configuration files of all packages, each as ``path digest``."""
    try:
        listed = run(["dpkg-query", "--show", "--showformat=${Conffiles}\n"], check=False).output
    except CommandError:
        return frozenset()
    return frozenset(line.strip().removesuffix(" obsolete") for line in listed.splitlines())
