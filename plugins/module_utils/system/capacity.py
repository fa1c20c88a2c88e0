"""The maximum of open files that a host allows for a service."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits

#: The limit of open files if the host allows it.
DEFAULT_OPEN_FILES = 50_000

#: Bit of CAP_SYS_RESOURCE in the capability sets of /proc/PID/status (capabilities(7)).
_CAP_SYS_RESOURCE = 1 << 24


@dataclass(frozen=True)
class Capacity:
    """Limits of the open files of a service on this host.

    ``can_raise``: whether PID 1, and thus its services, may exceed its hard limit, up to ``nr_open``.
    """

    nr_open: int
    init_hard: int
    can_raise: bool

    @classmethod
    def of_host(cls, proc: Path = Path("/proc")) -> Capacity:
        """Read the capacity from the proc file system."""
        status = (proc / "1/status").read_text(encoding="utf-8")
        effective = next(line.split()[1] for line in status.splitlines() if line.startswith("CapEff:"))
        # The kernel requires the capability in the initial user namespace.
        initial_namespace = (proc / "self/uid_map").read_text(encoding="utf-8").split() == ["0", "0", "4294967295"]
        return cls(
            nr_open=int((proc / "sys/fs/nr_open").read_text(encoding="utf-8")),
            init_hard=open_file_limits(1, proc)[1],
            can_raise=initial_namespace and bool(int(effective, 16) & _CAP_SYS_RESOURCE),
        )

    @property
    def max_open_files(self) -> int:
        """The highest possible limit of open files of a service."""
        return self.nr_open if self.can_raise else min(self.nr_open, self.init_hard)

    def problem(self, open_files: int) -> str:
        """Return why this host does not allow ``open_files``; empty if it does."""
        if open_files <= self.max_open_files:
            return ""
        if self.max_open_files == self.nr_open:
            reason, remedy = f"fs.nr_open is {self.nr_open}", "fs.nr_open"
        else:
            reason = f"PID 1's hard limit is {self.init_hard} and it lacks CAP_SYS_RESOURCE"
            remedy = "the container's limit"
        return (
            f"limits_open_files: {open_files} exceeds the maximum of this host: {reason}; "
            f"set at most {self.max_open_files}, or raise {remedy}"
        )
