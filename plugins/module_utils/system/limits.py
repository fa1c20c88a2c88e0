"""How many files a service may hold open, and how many connections may wait: what a host can give, and giving it."""

from __future__ import annotations

import resource
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.system.capacity import Capacity
from ansible_collections.funnel.tornado.plugins.module_utils.system.file_set import File, FileSet, FileSetResult, converge

#: The kernel settings that bound it.
SOMAXCONN, FILE_MAX = "net.core.somaxconn", "fs.file-max"

#: The module's options.
ARGUMENTS = {
    "open_files": {"type": "int", "required": True},
    "backlog": {"type": "int", "default": 4096},
    "services": {"type": "list", "elements": "str", "default": []},
}

LIMITS_FILE = "/etc/security/limits.d/50-funnel.conf"
SYSCTL_FILE = "/etc/sysctl.d/50-funnel.conf"


class LimitsError(Exception):
    """The host cannot give what is wanted. The message holds both numbers, and nothing was changed."""


@dataclass(frozen=True)
class Sysctl:
    """A kernel setting that has to be at least ``wanted``; a higher one stays as it is."""

    name: str
    variable: str
    minimum: int
    proc: Path = Path("/proc")
    cached: int | None = None

    @property
    def path(self) -> Path:
        """Where it is read and set."""
        return self.proc / "sys" / self.name.replace(".", "/")

    @property
    def current(self) -> int:
        """Its present value: what is ``known`` of it, or what is read."""
        return int(self.path.read_text()) if self.cached is None else self.cached

    def problem(self) -> str:
        """Return why it cannot be set, or nothing."""
        if self.current >= self.minimum or _is_writable(self.path):
            return ""
        return (
            f"{self.variable}: needs {self.name} to be {self.minimum}, it is {self.current} and read-only here; "
            f"ask for less, or raise it on the host of this container"
        )


@dataclass(frozen=True)
class Limits:
    """What is wanted: open files per process, connections waiting at a listener, and the services meant.

    ``kernel`` are the present values of kernel settings that are known, by name; others are read from ``proc``.
    """

    open_files: int
    backlog: int
    services: Sequence[str]
    proc: Path = field(default=Path("/proc"))
    kernel: Mapping[str, int] = field(default_factory=dict)

    def sysctls(self) -> list[Sysctl]:
        """Return the kernel settings this takes."""
        return [
            Sysctl(SOMAXCONN, "limits_backlog", self.backlog, self.proc, self.kernel.get(SOMAXCONN)),
            # nginx and the app behind it may both be at their limit.
            Sysctl(FILE_MAX, "limits_open_files", 2 * self.open_files, self.proc, self.kernel.get(FILE_MAX)),
        ]

    def problems(self) -> list[str]:
        """Return why this host cannot give it."""
        found = [Capacity.of_host(self.proc).problem(self.open_files)]
        found += [sysctl.problem() for sysctl in self.sysctls()]
        return [problem for problem in found if problem]

    def files(self, sysctl_file: str) -> list[File]:
        """Return the files that make it last, ``sysctl_file`` being what the one of the kernel settings holds now.

        The drop-ins leave the hard limit at what systemd can give at most (it clamps ``infinity`` to that): so a
        later rise reaches the running service, by its soft limit, without a restart and without CAP_SYS_RESOURCE.
        """
        who = [f"{who:4} {kind} nofile {self.open_files}\n" for who in ("*", "root") for kind in ("soft", "hard")]
        # A setting that is high enough is left out, unless it may be so because of this very file.
        somaxconn, *others = self.sysctls()
        kept = [somaxconn, *(one for one in others if one.current < one.minimum or one.name in sysctl_file)]
        settings = [f"{one.name} = {max(one.current, one.minimum)}\n" for one in kept]
        drop_in = f"[Service]\nLimitNOFILE={self.open_files}:infinity\n"
        contents = {LIMITS_FILE: "".join(who), SYSCTL_FILE: "".join(settings)}
        contents |= {f"/etc/systemd/system/{name}.service.d/50-funnel-limits.conf": drop_in for name in self.services}
        return [File(path, f"# Ansible managed\n{content}".encode()) for path, content in contents.items()]


def apply(limits: Limits, *, check_mode: bool = False) -> FileSetResult:
    """Give the limits to the host: to its files, to the kernel, and to the services that are running.

    A running process is only ever raised; a lower limit holds from its next start.

    :raises LimitsError: when the host cannot give them; nothing was changed.
    """
    if problems := limits.problems():
        raise LimitsError("; ".join(problems))
    sysctl_file = Path(SYSCTL_FILE)
    files = limits.files(sysctl_file.read_text() if sysctl_file.exists() else "")
    outcome = converge(FileSet(Path("/"), files), check_mode=check_mode)
    for sysctl in limits.sysctls():
        if sysctl.current < sysctl.minimum:
            outcome.files.append(str(sysctl.path))
            if not check_mode:
                sysctl.path.write_text(f"{sysctl.minimum}\n")
    for name in limits.services:
        pid = systemd.query(name).main_pid
        if pid:
            raise_process_limit(name, pid, limits.open_files, outcome, check_mode=check_mode)
    return outcome


def raise_process_limit(name: str, pid: int, open_files: int, outcome: FileSetResult, *, check_mode: bool) -> None:
    """Raise a running process to ``open_files``, without touching its own children, and note that in ``outcome``."""
    soft, hard = open_file_limits(pid)
    if soft >= open_files:
        return
    if not check_mode:
        try:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, (open_files, max(hard, open_files)))
        except PermissionError:
            outcome.warnings.append(
                f"{name} (pid {pid}) keeps {soft} open files until its next start: its hard limit is {hard}, "
                "and root, here, lacks CAP_SYS_RESOURCE, which it takes to raise it or another user's"
            )
            return
        confirmed = open_file_limits(pid)[0]
        if confirmed < open_files:
            raise LimitsError(f"{name} (pid {pid}) was given {open_files} open files but has {confirmed}")
    outcome.files.append(f"/proc/{pid}/limits")


def _is_writable(path: Path) -> bool:
    """Tell whether root can write here: on a read-only mount, as containers have it, the mode bits say nothing."""
    try:
        with path.open("r+"):
            return True
    except OSError:
        return False
