"""The host state: files, services and limits of an app host, collected once a run so that tasks skip what is up to date."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import UV_ENVIRONMENT
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import ExistingFile, FileSetError, FileState
from ansible_collections.funnel.tornado.plugins.module_utils.system.limits import Limits
from ansible_collections.funnel.tornado.plugins.module_utils.system.protected_directories import is_protected
from ansible_collections.funnel.tornado.plugins.module_utils.system.uv import Uv

#: Directories that the roles of an app host manage files in.
DIRECTORIES = (
    Path("/etc/nginx"),
    Path("/etc/security/limits.d"),
    Path("/etc/supervisor"),
    Path("/etc/sysctl.d"),
    Path("/etc/systemd/system"),
    UV_ENVIRONMENT.parent,
)

#: Maximum number of files in a directory, and of bytes in all of them; a larger directory is omitted.
MAX_FILES = 500
MAX_BYTES = 10_000_000

#: The services of an app host.
SERVICES = ("nginx", "supervisor")


@dataclass(frozen=True)
class HostState:
    """The state of a host; an empty one stands for a state that was not collected.

    ``directories`` are those whose ``files`` were all collected; ``unprotected`` are directories of these files that users other
    than root can change; ``open_files`` are the limits of running services by name;
    ``kernel`` has the kernel settings; ``uv`` is the installed version; ``releases`` are the settled ones by app.
    """

    directories: Sequence[Path] = ()
    files: Mapping[Path, FileState] = field(default_factory=dict)
    services: Mapping[str, systemd.ServiceState] = field(default_factory=dict)
    open_files: Mapping[str, int] = field(default_factory=dict)
    kernel: Mapping[str, int] = field(default_factory=dict)
    uv: str = ""
    releases: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    unprotected: Sequence[Path] = ()

    @classmethod
    def from_data(cls, data: Mapping[str, Any]) -> HostState:
        """Return the host state that `to_data` has encoded."""
        return cls(
            directories=[Path(directory) for directory in data.get("directories", ())],
            files={Path(path): FileState(**file) for path, file in data.get("files", {}).items()},
            services={name: systemd.ServiceState(**state) for name, state in data.get("services", {}).items()},
            open_files=data.get("open_files", {}),
            kernel=data.get("kernel", {}),
            uv=data.get("uv", ""),
            releases=data.get("releases", {}),
            unprotected=[Path(directory) for directory in data.get("unprotected", ())],
        )

    def to_data(self) -> dict[str, Any]:
        """Return the host state as JSON-serializable data."""
        data = asdict(self)
        return data | {
            "directories": list(map(str, self.directories)),
            "unprotected": list(map(str, self.unprotected)),
            "files": {str(path): file for path, file in data["files"].items()},
        }


def collect_host_state(key: bytes, directories: Sequence[Path] = DIRECTORIES, services: Sequence[str] = SERVICES) -> HostState:
    """Return the state of this host; an empty one if something changes meanwhile or systemd does not run.

    :arg key: for the digests of files: without it, the digests reveal nothing about the contents.
    """
    try:
        found = {directory: files for directory in directories if (files := collect_files(directory, key)) is not None}
        states = {name: systemd.query(name) for name in services}
        return HostState(
            directories=list(found),
            files={path: file for files in found.values() for path, file in files.items()},
            services=states,
            open_files={name: proc.open_file_limits(state.main_pid)[0] for name, state in states.items() if state.main_pid},
            kernel={sysctl.name: sysctl.current for sysctl in Limits(0, 0, []).sysctls()},
            uv=Uv.installed_version(),
            unprotected=unprotected(path for files in found.values() for path in files),
        )
    except (OSError, systemd.ServiceError):
        return HostState()


def collect_files(directory: Path, key: bytes) -> dict[Path, FileState] | None:
    """Return the files and links below a directory; None if they exceed a bound, or JSON cannot represent a name.

    :raises OSError: when one is removed meanwhile.
    """
    paths = list(itertools.islice(_walk(directory), MAX_FILES + 1))
    if len(paths) > MAX_FILES or sum(path.lstat().st_size for path in paths) > MAX_BYTES:
        return None
    if not all(str(path).isprintable() for path in paths):
        return None
    return {path: existing.state(key) for path in paths if (existing := _existing(path))}


def unprotected(paths: Iterable[Path]) -> list[Path]:
    """Return the directories of files that users other than root can change; only those that a file set owns are repaired."""
    return sorted(directory for directory in {path.parent for path in paths} if not is_protected(directory))


def _walk(directory: Path) -> Iterator[Path]:
    for path in sorted(directory.iterdir()) if directory.is_dir() else ():
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)
        else:
            yield path


def _existing(path: Path) -> ExistingFile | None:
    """Return the file or link at a path; None for a device or a socket."""
    with contextlib.suppress(FileSetError):
        return ExistingFile.at(path)
    return None
