"""Limits of a host: open files of services, and the backlog of their listeners."""

from __future__ import annotations

import configparser
import resource
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File, FileSet, FileSetResult, converge

#: The kernel settings that cap them.
SOMAXCONN, FILE_MAX = "net.core.somaxconn", "fs.file-max"

#: Options of the module.
ARGUMENTS = {
    "open_files": {"type": "int", "required": True},
    "backlog": {"type": "int", "default": 4096},
    "services": {"type": "list", "elements": "str", "default": []},
}

LIMITS_FILE = "/etc/security/limits.d/50-funnel.conf"
SYSCTL_FILE = "/etc/sysctl.d/50-funnel.conf"
DROP_IN = "50-funnel-limits.conf"

#: Directories of units: systemd applies the drop-ins of all of them in the order of their names. Of several with the same name,
#: it applies the first one only, and none if that is a link to /dev/null, systemd.unit(5).
UNIT_DIRECTORIES = ("etc/systemd/system", "run/systemd/system", "usr/local/lib/systemd/system", "usr/lib/systemd/system")


class LimitsError(Exception):
    """The host does not allow the limits, and nothing was changed. The message contains both values."""


@dataclass(frozen=True)
class Sysctl:
    """A kernel setting that must be at least ``minimum``; a higher value is kept.

    ``cached`` is its current value if it was already read.
    """

    name: str
    variable: str
    minimum: int
    proc: Path = Path("/proc")
    cached: int | None = None

    @property
    def path(self) -> Path:
        """Its file in the proc file system."""
        return self.proc / "sys" / self.name.replace(".", "/")

    @property
    def current(self) -> int:
        """Its current value."""
        return int(self.path.read_text(encoding="utf-8")) if self.cached is None else self.cached

    def problem(self) -> str:
        """Return why it cannot be set; empty if it can."""
        if self.current >= self.minimum or _is_writable(self.path):
            return ""
        return (
            f"{self.variable}: requires {self.name} >= {self.minimum}, but it is {self.current} and read-only; "
            f"lower the value, or raise the setting on the host of this container"
        )


@dataclass(frozen=True)
class Limits:
    """Desired limits: open files per process of ``services``, and connections in the backlog of a listener.

    ``kernel`` contains current values of kernel settings, by name; missing ones are read from ``proc``.
    """

    open_files: int
    backlog: int
    services: Sequence[str]
    proc: Path = field(default=Path("/proc"))
    kernel: Mapping[str, int] = field(default_factory=dict)

    def sysctls(self) -> list[Sysctl]:
        """Return the required kernel settings."""
        return [
            Sysctl(SOMAXCONN, "limits_backlog", self.backlog, self.proc, self.kernel.get(SOMAXCONN)),
            # nginx and an app may both reach their limit.
            Sysctl(FILE_MAX, "limits_open_files", 2 * self.open_files, self.proc, self.kernel.get(FILE_MAX)),
        ]

    def problems(self) -> list[str]:
        """Return why this host does not allow the limits."""
        problems = [Capacity.of_host(self.proc).problem(self.open_files), *(sysctl.problem() for sysctl in self.sysctls())]
        return [problem for problem in problems if problem]

    def files(self, sysctl_file: str) -> list[File]:
        """Return the files that persist the limits; ``sysctl_file`` is the current content of the file of kernel settings.

        The drop-ins set the hard limit to the maximum, as which systemd interprets ``infinity``: the soft limit of a running
        service can then be raised without a restart and without CAP_SYS_RESOURCE.
        """
        logins = [f"{domain:4} {kind} nofile {self.open_files}\n" for domain in ("*", "root") for kind in ("soft", "hard")]
        # A sufficient setting is omitted, unless this very file may have raised it.
        somaxconn, *others = self.sysctls()
        required = [somaxconn, *(sysctl for sysctl in others if sysctl.current < sysctl.minimum or sysctl.name in sysctl_file)]
        settings = [f"{sysctl.name} = {max(sysctl.current, sysctl.minimum)}\n" for sysctl in required]
        drop_in = f"[Service]\nLimitNOFILE={self.open_files}:infinity\n"
        contents = {LIMITS_FILE: "".join(logins), SYSCTL_FILE: "".join(settings)}
        contents |= {f"/etc/systemd/system/{name}.service.d/{DROP_IN}": drop_in for name in self.services}
        return [File(path, f"# Ansible managed\n{content}".encode()) for path, content in contents.items()]


def apply(limits: Limits, *, check_mode: bool = False) -> FileSetResult:
    """Apply the limits to configuration files, the kernel and running services.

    Limits of running processes are only raised; a lower limit applies from the next start.

    :raises LimitsError: if the host does not allow them; nothing was changed.
    """
    if problems := limits.problems():
        raise LimitsError("; ".join(problems))
    sysctl_file = Path(SYSCTL_FILE)
    files = limits.files(sysctl_file.read_text(encoding="utf-8") if sysctl_file.exists() else "")
    result = converge(FileSet(Path("/"), files), check_mode=check_mode)
    for sysctl in limits.sysctls():
        if sysctl.current < sysctl.minimum:
            result.files.append(str(sysctl.path))
            if not check_mode:
                sysctl.path.write_text(f"{sysctl.minimum}\n", encoding="utf-8")
    for name in limits.services:
        found = overriding_drop_in(name)
        if found and found.soft < limits.open_files:
            limit = f"{found.path} sets a limit of {found.soft} open files instead of {limits.open_files}"
            result.warnings.append(f"{name}: {limit}; remove the line")
            continue
        pid = systemd.query(name).main_pid
        if pid:
            raise_process_limit(name, pid, limits.open_files, result, check_mode=check_mode)
    return result


@dataclass(frozen=True)
class DropIn:
    """A file of the host that sets the limit of open files of a service after that of the collection, and so overrides it."""

    path: str
    soft: int
    hard: int

    def problem(self, minfds: int, capacity: Capacity) -> str:
        """Return why supervisord could not start again with ``minfds``, and the remedy; empty if it can."""
        if self.hard >= minfds or capacity.can_raise:
            return ""
        reason = f"supervisord cannot start with {self.hard} open files, which {self.path} sets"
        return f"supervisor_minfds: requires {minfds}: {reason}; remove the line there, or set at most {self.hard}"


def overriding_drop_in(name: str, base: Path = Path("/")) -> DropIn | None:
    """Return the drop-in of a service that overrides the collection's limit of open files."""
    kinds = (f"{name}.service.d", "service.d")  # the second applies to all services
    directories = [base / directory / kind for kind in kinds for directory in UNIT_DIRECTORIES]
    applied: dict[str, Path] = {}
    for path in (path for directory in directories for path in directory.glob("*.conf") if path.name > DROP_IN):
        applied.setdefault(path.name, path)
    found = [(applied[key], limit) for key in sorted(applied) if (limit := unit_limit(applied[key]))]
    return DropIn(f"/{found[-1][0].relative_to(base)}", *found[-1][1]) if found else None


def unit_limit(path: Path) -> tuple[int, int] | None:
    """Return the soft and the hard limit of open files that a unit file sets; without a number, it counts as no limit."""
    parser = configparser.RawConfigParser(strict=False)
    try:
        parser.read_string(path.read_text(encoding="utf-8", errors="replace"))
    except (OSError, configparser.Error):
        return None
    values = [
        int(value) if value.isdigit() else sys.maxsize for value in parser.get("Service", "LimitNOFILE", fallback="").split(":")
    ]
    return (values[0], values[-1]) if parser.has_option("Service", "LimitNOFILE") else None


def raise_process_limit(name: str, pid: int, open_files: int, result: FileSetResult, *, check_mode: bool) -> None:
    """Raise the limit of a running process, but not of its children, and record that in ``result``."""
    soft, hard = open_file_limits(pid)
    if soft >= open_files:
        return
    if not check_mode:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files, max(hard, open_files)))
        except PermissionError:
            result.warnings.append(
                f"{name} (pid {pid}) keeps its limit of {soft} open files until its next start: its hard limit is {hard}, "
                "and raising it, or the limit of a process of another user, requires CAP_SYS_RESOURCE, which root lacks "
                "on this host"
            )
            return
        confirmed = open_file_limits(pid)[0]
        if confirmed < open_files:
            raise LimitsError(f"{name} (pid {pid}) has a limit of {confirmed} open files after it was set to {open_files}")
    result.files.append(f"/proc/{pid}/limits")


def _is_writable(path: Path) -> bool:
    """Return whether root can write a file, which may be on a read-only mount in a container."""
    try:
        with path.open("r+", encoding="utf-8"):
            return True
    except OSError:
        return False
