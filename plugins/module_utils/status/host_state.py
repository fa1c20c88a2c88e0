"""What a host tells of itself at the beginning of a run, for what configures it to see what is as it has to be already."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import ExistingFile, FileSetError, FileState
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Uv

#: Where the roles of an app host have their files.
DIRECTORIES = (
    Path("/etc/nginx"),
    Path("/etc/security/limits.d"),
    Path("/etc/supervisor"),
    Path("/etc/sysctl.d"),
    Path("/etc/systemd/system"),
    UV_ENVIRONMENT.parent,
)

#: Files of a directory, and bytes of them all, that are told of; of one that has more, nothing is.
MAX_FILES = 500
MAX_BYTES = 10_000_000

#: The services of an app host.
SERVICES = ("nginx", "supervisor")


def look(key: bytes, directories: Sequence[Path] = DIRECTORIES, services: Sequence[str] = SERVICES) -> dict[str, Any]:
    """Return what `Known` (plugin_utils/known.py) judges by, for JSON; nothing if that cannot be told.

    :arg key: for the digests of files, so that nobody without it learns from them what is in a file.
    """
    try:
        found = {directory: files for directory in directories if (files := files_of(directory, key)) is not None}
        states = {name: systemd.query(name) for name in services}
        pids = {name: state.main_pid for name, state in states.items() if state.main_pid}
        return {
            "directories": [str(directory) for directory in found],
            "files": {path: asdict(file) for files in found.values() for path, file in files.items()},
            "services": {name: asdict(state) for name, state in states.items()},
            "open_files": {name: proc.open_file_limits(pid)[0] for name, pid in pids.items()},
            "kernel": {sysctl.name: sysctl.current for sysctl in Limits(0, 0, []).sysctls()},
            "uv": Uv.installed_version(),
        }
    except (OSError, systemd.ServiceError):  # something came or went meanwhile, or there is no systemd
        return {}


def files_of(directory: Path, key: bytes) -> dict[str, FileState] | None:
    """Return the files and links below a directory by their paths; None if that is too much, or a name is none for JSON.

    :raises OSError: when one goes meanwhile.
    """
    paths = list(itertools.islice(_below(directory), MAX_FILES + 1))
    if len(paths) > MAX_FILES or sum(path.lstat().st_size for path in paths) > MAX_BYTES:
        return None
    if not all(str(path).isprintable() for path in paths):
        return None
    return {str(path): existing.state(key) for path in paths if (existing := _existing(path))}


def _below(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _below(path)
        else:
            yield path


def _existing(path: Path) -> ExistingFile | None:
    """Return what is at a path; None for a device or a socket."""
    with contextlib.suppress(FileSetError):
        return ExistingFile.at(path)
    return None
