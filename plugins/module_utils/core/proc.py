"""Processes of the host, read from proc(5)."""

from __future__ import annotations

import contextlib
import ipaddress
import os
import re
import signal
import struct
import time
from collections.abc import Iterator
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable

PROC = Path("/proc")

#: Nice value of builds, whose priority for the disk follows from it.
NICE = 5

#: Fields of /proc/PID/stat, counted from the one after the command name.
STATE, PARENT, GROUP, START = 0, 1, 2, 19


@contextlib.contextmanager
def low_priority() -> Iterator[None]:
    """Give way to other processes, such as apps; child processes do so until they end."""
    before = os.getpriority(os.PRIO_PROCESS, 0)
    os.setpriority(os.PRIO_PROCESS, 0, max(before, NICE))
    try:
        yield
    finally:
        with contextlib.suppress(PermissionError):  # some containers do not allow raising it
            os.setpriority(os.PRIO_PROCESS, 0, before)


def stat(pid: int) -> list[str] | None:
    """Return the fields of /proc/PID/stat after the command name, which may contain spaces; None if the process has exited."""
    try:
        # The command name may contain any bytes.
        fields = (PROC / str(pid) / "stat").read_text(errors="replace", encoding="utf-8").rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[STATE] == "Z" else fields


def name(pid: int, proc: Path = PROC) -> str:
    """Return the name of a process, which it chooses itself, escaped for a line.

    :raises OSError: if it has exited.
    """
    return printable((proc / str(pid) / "comm").read_text(errors="replace", encoding="utf-8").removesuffix("\n"), line=True)


def parent(pid: int) -> int:
    """Return the parent of a process; 0 if it has none."""
    fields = stat(pid)
    return int(fields[PARENT]) if fields else 0


def process_group(pid: int) -> int:
    """Return the process group of a process; 0 if it has exited."""
    fields = stat(pid)
    return int(fields[GROUP]) if fields else 0


def process_groups() -> dict[int, list[int]]:
    """Return the processes of each process group."""
    groups: dict[int, list[int]] = {}
    for pid in pids():
        groups.setdefault(process_group(pid), []).append(pid)
    return groups


def uptime(pid: int) -> int:
    """Return the age of a process in seconds; 0 if it has exited."""
    fields = stat(pid)
    started = int(fields[START]) / os.sysconf("SC_CLK_TCK") if fields else time.clock_gettime(time.CLOCK_BOOTTIME)
    return int(time.clock_gettime(time.CLOCK_BOOTTIME) - started)


def cpu_wait(pid: int) -> float:
    """Return the seconds that a process, or one of its threads or descendants, was ready to run without a free CPU.

    It is the longest such time, not the sum, so it is at most the age of the process.
    """
    waits = [0.0]
    for process in descendants(pid):
        for task in (PROC / str(process) / "task").glob("*/schedstat"):
            with contextlib.suppress(OSError):  # ended meanwhile
                waits.append(int(task.read_text(encoding="utf-8").split()[1]) / 1e9)
    return max(waits)


def count_open_files(pid: int) -> int:
    """Return the number of open files of a process; 0 if it has exited."""
    try:
        return len(list((PROC / str(pid) / "fd").iterdir()))
    except OSError:
        return 0


def holds_flock(pid: int, descriptor: int) -> bool:
    """Return whether a process holds a lock of flock(2) on the file that ``descriptor`` of this process refers to."""
    wanted, directory = os.fstat(descriptor), PROC / str(pid)
    with contextlib.suppress(OSError):
        for path in (directory / "fd").iterdir():
            with contextlib.suppress(OSError):  # closed meanwhile
                if os.path.samestat(path.stat(), wanted):
                    return "FLOCK" in (directory / "fdinfo" / path.name).read_text(encoding="utf-8")
    return False


def open_file_limits(pid: int, proc: Path = PROC) -> tuple[int, int]:
    """Return the soft and hard limits of open files of a process, proc_pid_limits(5)."""
    lines = (proc / str(pid) / "limits").read_text(encoding="utf-8").splitlines()
    soft, hard = next(line.split()[3:5] for line in lines if line.startswith("Max open files"))
    return int(soft), int(hard)


def rss(pid: int) -> int:
    """Return the resident memory of a process in bytes; 0 if it has exited."""
    try:
        return int((PROC / str(pid) / "statm").read_text(encoding="utf-8").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def pids() -> Iterator[int]:
    """Yield the ids of all processes."""
    yield from (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit())


def children(pid: int) -> list[int]:
    """Return the processes whose parent is ``pid``."""
    return [child for child in pids() if parent(child) == pid]


def descendants(pid: int) -> list[int]:
    """Return a process and its descendants, sorted; none for PID 1, or 0.

    Each process of the host is read once: an app can have thousands, each the child of another.
    """
    offspring: dict[int, list[int]] = {}
    for process in pids():
        offspring.setdefault(parent(process), []).append(process)
    found, remaining = [], [pid] if pid > 1 else []
    while remaining:
        found.append(remaining.pop())
        remaining += offspring.pop(found[-1], [])
    return sorted(found)


def ancestry(pid: int) -> Iterator[int]:
    """Yield a process and its ancestors, except PID 1."""
    while pid > 1:
        yield pid
        pid = parent(pid)


def pids_with_environment(uid: int, variables: dict[str, str]) -> list[int]:
    """Return the processes of a user that were started with all of ``variables`` in their environment."""
    return [pid for pid in pids_of_user(uid) if _has_environment(pid, variables)]


def send_signal(pid: int, number: signal.Signals, uid: int, variables: dict[str, str]) -> None:
    """Signal a process that :func:`pids_with_environment` found, but not another that has taken its id meanwhile.

    The descriptor (pidfd_open(2)) refers to one process; if that ends while another is examined, nothing is signaled.
    """
    with contextlib.suppress(ProcessLookupError):
        descriptor = os.pidfd_open(pid)
        try:
            if _has_uid(pid, uid) and _has_environment(pid, variables):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)


def pids_of_user(uid: int) -> list[int]:
    """Return the processes with ``uid`` as one of their user ids, except zombies."""
    return [pid for pid in pids() if _has_uid(pid, uid)]


def _has_environment(pid: int, variables: dict[str, str]) -> bool:
    """Return whether a process exists and was started with all of ``variables`` in its environment."""
    assignments = {f"{name}={value}".encode() for name, value in variables.items()}
    try:
        return assignments <= set((PROC / str(pid) / "environ").read_bytes().split(b"\0"))
    except OSError:
        return False


def _has_uid(pid: int, uid: int) -> bool:
    """Return whether a process exists, with ``uid`` as one of its user ids, and is no zombie.

    The owner of /proc/PID is unreliable: it is root for a process that is not dumpable.
    """
    try:
        lines = (PROC / str(pid) / "status").read_text(errors="replace", encoding="utf-8").splitlines()
    except OSError:
        return False
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    return str(uid) in fields["Uid"].split() and fields["State"].split()[0] not in ("Z", "X")


def ip_address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return an address in /proc/net/tcp or tcp6, where the kernel prints 32-bit words in host byte order.

    An IPv4 address that is mapped to IPv6 is returned as IPv4.
    """
    words = bytes.fromhex(text)
    address = ipaddress.ip_address(struct.pack(f">{len(words) // 4}I", *struct.unpack(f"={len(words) // 4}I", words)))
    return getattr(address, "ipv4_mapped", None) or address


def holds_socket(pid: int, inodes: set[int]) -> bool:
    """Return whether a process has one of these sockets open."""
    return not inodes.isdisjoint(socket_inodes(pid))


def socket_inodes(pid: int, base: Path | None = None) -> set[int]:
    """Return the inodes of the sockets that a process has open; ``base`` differs from `PROC` in tests only."""
    found = set()
    with contextlib.suppress(OSError):
        for descriptor in ((base or PROC) / str(pid) / "fd").iterdir():
            with contextlib.suppress(OSError):
                if match := re.fullmatch(r"socket:\[(\d+)\]", str(descriptor.readlink())):
                    found.add(int(match[1]))
    return found
