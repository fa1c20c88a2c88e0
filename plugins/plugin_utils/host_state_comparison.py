"""Comparison of the collected host state with the desired state, so that the controller skips tasks that are up to date.

The result is the same as that of the module on the host. Anything that was not collected counts as drift.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.status.host_state import HostState
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import FileSet, is_read_by_service, is_up_to_date
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.protected_directories import owned_directories
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Sources

#: The variable that holds the host state; empty once another task has changed the host.
VARIABLE = "__funnel_host_state"

#: The key of the digests of files, so that the host state does not help to guess the passwords in them.
#: Ansible imports this file before it forks a process for each task, so all of them share the key.
KEY = secrets.token_hex(32)


def load_host_state(templar: Any, variables: Mapping[str, Any]) -> HostState:
    """Return the host state from `VARIABLE`, which may be unset."""
    return HostState.from_data(templar.resolve_variable_expression(VARIABLE) if VARIABLE in variables else {})


def files_up_to_date(state: HostState, file_set: FileSet, service: Mapping[str, str] | None = None) -> bool:
    """Return whether all files are as desired and the service, if any, is enabled and runs with them.

    :arg service: the option of the module file_set. The host state does not cover systemd sockets.
    """
    if any("**" in pattern for pattern in file_set.owns):  # match() treats it as *
        return False
    if not {*state.unprotected}.isdisjoint(owned_directories(file_set.root, file_set.owns)):
        return False

    def glob(directory: Path, pattern: str) -> Iterator[Path]:
        return (path for path in state.files if PurePosixPath(path).match(str(directory / pattern)))

    patterns = [file_set.root / pattern for pattern in file_set.owns]
    desired = file_set.desired(glob)
    if not all(any(path.is_relative_to(directory) for directory in state.directories) for path in (*desired, *patterns)):
        return False
    if not all(is_up_to_date(state.files.get(path), file, KEY.encode()) for path, file in desired.items()):
        return False
    if not service:
        return True
    running = state.services.get(service.get("name", ""))
    if service.get("listener") or running is None or not (running.active and running.enabled):
        return False
    read = [path for path, file in desired.items() if file and is_read_by_service(path, service.get("on_change", ""))]
    return all(state.files[path].mtime <= running.loaded_at for path in read)


def limits_up_to_date(state: HostState, limits: Limits) -> bool:
    """Return whether the limits are in effect; ``limits.kernel`` must be that of ``state``."""
    if not state.kernel or any(sysctl.current < sysctl.minimum for sysctl in limits.sysctls()):
        return False
    for name in limits.services:
        service = state.services.get(name)
        if service is None or (service.main_pid and state.open_files.get(name, 0) < limits.open_files):
            return False
    # The desired sysctl file depends on its current content: it stays empty or complete.
    previous = ("", " ".join(sysctl.name for sysctl in limits.sysctls()))
    return any(files_up_to_date(state, FileSet(Path("/"), limits.files(content))) for content in previous)


def uv_up_to_date(state: HostState, version: str, sources: Sources) -> bool:
    """Return whether this version of uv is installed and uses these sources. The host state does not cover wheelhouses."""
    files = FileSet(UV_ENVIRONMENT.parent, sources.files())
    return state.uv == version and sources.wheelhouse is None and files_up_to_date(state, files)
