"""What a host has told of itself in this run: it is not asked again for what is as it has to be.

That is so to judge as the host itself would. Whatever it has not told of counts as different, so that it is asked.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import (
    FileSet,
    FileState,
    is_read_by_service,
    is_up_to_date,
)
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.systemd import ServiceState
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Sources

#: The variable that has it, from `look` (module_utils/look.py); empty as soon as something else changes what hosts have.
VARIABLE = "host_known"

#: What hosts make digests with: whoever sees what a host has told cannot guess from it the passwords that are in its files.
#: Ansible reads this file before it forks a process for each task, so they all have the same key.
KEY = secrets.token_hex(32)


@dataclass(frozen=True)
class Known:
    """What a host has: files by path and where all of them are told of, states of services by name, and the rest of `look`."""

    directories: Sequence[Path]
    files: Mapping[Path, FileState]
    services: Mapping[str, ServiceState]
    open_files: Mapping[str, int]
    kernel: Mapping[str, int]
    uv: str

    @classmethod
    def of(cls, templar: Any, variables: Mapping[str, Any]) -> Known:
        """Return what `VARIABLE` has; if that is unset or empty, nothing is known."""
        told: Mapping[str, Any] = templar.resolve_variable_expression(VARIABLE) if VARIABLE in variables else {}
        return cls(
            directories=[Path(one) for one in told.get("directories", ())],
            files={Path(path): FileState(**file) for path, file in told.get("files", {}).items()},
            services={name: ServiceState(**state) for name, state in told.get("services", {}).items()},
            open_files=told.get("open_files", {}),
            kernel=told.get("kernel", {}),
            uv=told.get("uv", ""),
        )

    def has_files(self, file_set: FileSet, service: Mapping[str, str] | None = None) -> bool:
        """Tell whether the files are right and the service, if there is one, runs with them and is enabled.

        :arg service: the option of the module file_set; of sockets that systemd listens at for it nothing is known.
        """
        if any("**" in pattern for pattern in file_set.owns):  # which is no more than * to match()
            return False
        patterns = [file_set.root / pattern for pattern in file_set.owns]
        wanted = file_set.desired(self._glob)
        if not all(any(path.is_relative_to(one) for one in self.directories) for path in (*wanted, *patterns)):
            return False
        if not all(is_up_to_date(self.files.get(path), file, KEY.encode()) for path, file in wanted.items()):
            return False
        if not service:
            return True
        state = self.services.get(service.get("name", ""))
        if service.get("listener") or state is None or not (state.active and state.enabled):
            return False
        read = [path for path, file in wanted.items() if file and is_read_by_service(path, service.get("on_change", ""))]
        return all(self.files[path].mtime <= state.loaded_at for path in read)

    def has_limits(self, limits: Limits) -> bool:
        """Tell whether the limits are given; ``limits`` has to have what is known of the kernel."""
        if not self.kernel or any(sysctl.current < sysctl.minimum for sysctl in limits.sysctls()):
            return False
        for name in limits.services:
            state = self.services.get(name)
            if state is None or (state.main_pid and self.open_files.get(name, 0) < limits.open_files):
                return False
        # The file of the kernel settings depends on what it has: either way it is as it has to be.
        before = ("", " ".join(sysctl.name for sysctl in limits.sysctls()))
        return any(self.has_files(FileSet(Path("/"), limits.files(one))) for one in before)

    def has_uv(self, version: str, sources: Sources) -> bool:
        """Tell whether this version of uv is the one that is there, and fetches from there; of a wheelhouse nothing is known."""
        files = FileSet(UV_ENVIRONMENT.parent, sources.files())
        return self.uv == version and sources.wheelhouse is None and self.has_files(files)

    def _glob(self, directory: Path, pattern: str) -> Iterator[Path]:
        return (path for path in self.files if PurePosixPath(path).match(str(directory / pattern)))
