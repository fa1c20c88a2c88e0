"""The programs that listen on the TCP ports of a host."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import PROC, socket_inodes

#: Columns of /proc/net/tcp, and the state of a listener: proc(5) and the kernel's tcp_states.h.
_LOCAL, _STATE, _INODE, _LISTEN = 1, 3, 9, "0A"


@dataclass(frozen=True)
class Listener:
    """A program that listens on a port; ``unit`` is its systemd unit, empty if it has none, and ``user`` its numeric user id."""

    port: int
    process: str
    pid: int
    unit: str
    user: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.process} (pid {self.pid}{f', {self.unit}' if self.unit else ''})"


def tcp_listeners(proc: Path = PROC) -> list[Listener]:
    """Return a listener of each port, sorted by port. Sockets of the kernel and of other containers are omitted."""
    ports = dict(_listening(proc))
    found: dict[int, Listener] = {}
    for pid in sorted(int(path.name) for path in proc.iterdir() if path.name.isdigit()):
        if len(found) == len(set(ports.values())):
            break
        for inode in socket_inodes(pid, proc) & ports.keys():
            if ports[inode] not in found:
                with contextlib.suppress(OSError):  # it has exited
                    found[ports[inode]] = _listener(proc / str(pid), ports[inode])
    return [found[port] for port in sorted(found)]


def first_unprivileged_port(proc: Path = PROC) -> int:
    """Return the first port that a program can listen on without CAP_NET_BIND_SERVICE: 1024, or what a kernel setting says."""
    setting = proc / "sys/net/ipv4/ip_unprivileged_port_start"
    return int(setting.read_text(encoding="utf-8")) if setting.exists() else 1024


def port_conflicts(listeners: Sequence[Listener], listen: Mapping[str, Sequence[str]], service: str) -> Iterator[str]:
    """Yield the ports of a service on which another program listens, with the remedy; ``listen`` are addresses by variable."""
    found = {listener.port: listener for listener in listeners}
    for variable, addresses in listen.items():
        for port in sorted({int(match[0]) for address in addresses if (match := re.search(r"\d+\Z", address))}):
            listener = found.get(port)
            # PID 1 listens for HAProxy, which a socket unit activates.
            if listener and listener.unit != f"{service}.service" and (listener.pid != 1 or service != "haproxy"):
                stop = f"systemctl disable --now {listener.unit}" if listener.unit.endswith(".service") else "stop it"
                yield f"{variable}: port {port} is in use by {listener}; {stop}, or choose other ports in {variable}"


def _listening(proc: Path) -> Iterator[tuple[int, int]]:
    """Yield the inode and the port of each listening socket."""
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        for line in table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else ():
            row = line.split()
            if row[_STATE] == _LISTEN:
                yield int(row[_INODE]), int(row[_LOCAL].rpartition(":")[2], 16)


def _listener(process: Path, port: int) -> Listener:
    groups = (process / "cgroup").read_text(encoding="utf-8", errors="replace")
    units = re.findall(r"/([^/\n]+\.(?:service|scope))", groups)
    status = (process / "status").read_text(encoding="utf-8", errors="replace")
    name, user = (re.search(pattern, status, re.MULTILINE) for pattern in (r"^Name:\t(.*)", r"^Uid:\t\d+\t(\d+)"))
    return Listener(
        port=port,
        process=name[1] if name else "",
        pid=int(process.name),
        unit=units[-1] if units else "",
        user=int(user[1]) if user else 0,
    )
