"""The programs that listen on the TCP ports of a host."""

from __future__ import annotations

import contextlib
import ipaddress
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import PROC, ip_address, name, socket_inodes

#: Columns of /proc/net/tcp, and the state of a listener: proc(5) and the kernel's tcp_states.h.
_LOCAL, _STATE, _INODE, _LISTEN = 1, 3, 9, "0A"

#: An address of ``listen``, such as ``80``, ``*:80``, ``[::]:80`` or ``192.0.2.1:80``: the host, if any, and the port.
_ADDRESS = re.compile(r"(?:(?!unix:)(.*):)?(\d+)")

#: All addresses of IPv4.
_ALL = str(ipaddress.IPv4Address(0))


@dataclass(frozen=True)
class Listener:
    """A program that listens on a port of an IP address, which is that of all interfaces or of one.

    ``unit`` is its systemd unit, empty if it has none, and ``user`` its numeric user id.
    """

    address: str
    port: int
    process: str
    pid: int
    unit: str
    user: int

    def __str__(self) -> str:
        """Return it in words."""
        return f"{self.process} (pid {self.pid}{f', {self.unit}' if self.unit else ''})"


def tcp_listeners(proc: Path = PROC) -> list[Listener]:
    """Return a listener of each address and port, sorted by port. Sockets of the kernel and of other containers are omitted."""
    sockets = dict(_listening(proc))
    found: dict[tuple[int, str], Listener] = {}
    for pid in sorted(int(path.name) for path in proc.iterdir() if path.name.isdigit()):
        if len(found) == len(set(sockets.values())):
            break
        for inode in socket_inodes(pid, proc) & sockets.keys():
            if sockets[inode] not in found:
                with contextlib.suppress(OSError):  # it has exited
                    found[sockets[inode]] = _listener(proc / str(pid), *sockets[inode])
    return [found[key] for key in sorted(found)]


def first_unprivileged_port(proc: Path = PROC) -> int:
    """Return the first port that a program can listen on without CAP_NET_BIND_SERVICE: 1024, or what a kernel setting says."""
    setting = proc / "sys/net/ipv4/ip_unprivileged_port_start"
    return int(setting.read_text(encoding="utf-8")) if setting.exists() else 1024


def port_conflicts(listeners: Sequence[Listener], listen: Mapping[str, Sequence[str]], service: str) -> Iterator[str]:
    """Yield the ports of a service on which another program listens, with the remedy; ``listen`` are addresses by variable.

    Programs that listen on the same port of different addresses do not conflict.
    """
    # PID 1 listens for HAProxy, which a socket unit activates.
    others = [
        listener
        for listener in listeners
        if listener.unit != f"{service}.service" and (listener.pid != 1 or service != "haproxy")
    ]
    for variable, addresses in listen.items():
        desired = [match.groups() for address in addresses if (match := _ADDRESS.fullmatch(address))]
        found: dict[int, Listener] = {}
        for listener in others:
            if any(int(port) == listener.port and _overlaps(listener, host) for host, port in desired):
                found.setdefault(listener.port, listener)
        for port, listener in sorted(found.items()):
            stop = f"systemctl disable --now {listener.unit}" if listener.unit.endswith(".service") else "stop it"
            yield f"{variable}: port {port} is in use by {listener}; {stop}, or choose other ports in {variable}"


def _overlaps(listener: Listener, host: str | None) -> bool:
    """Return whether a service at ``host``, which may be missing, ``*`` or a name, needs an address of a listener.

    A listener on all addresses of IPv6 counts for IPv4 too, although it may have asked the kernel for IPv6 alone: proc(5) omits
    that. The services of the collection do ask for it.
    """
    bound = ipaddress.ip_address(listener.address)
    try:
        address = ipaddress.ip_address(_ALL if host in (None, "", "*") else str(host).strip("[]"))
    except ValueError:
        return True  # a name
    if bound.version != address.version:
        return bound.version == 6 and bound.is_unspecified
    return bound == address or bound.is_unspecified or address.is_unspecified


def _listening(proc: Path) -> Iterator[tuple[int, tuple[int, str]]]:
    """Yield the inode, and the port and the address, of each listening socket."""
    for table in (proc / "net/tcp", proc / "net/tcp6"):
        for line in table.read_text(encoding="utf-8").splitlines()[1:] if table.exists() else ():
            row = line.split()
            if row[_STATE] == _LISTEN:
                address, port = row[_LOCAL].split(":")
                yield int(row[_INODE]), (int(port, 16), str(ip_address(address)))


def _listener(process: Path, port: int, address: str) -> Listener:
    groups = (process / "cgroup").read_text(encoding="utf-8", errors="replace")
    units = re.findall(r"/([^/\n]+\.(?:service|scope))", groups)
    user = re.search(r"^Uid:\t\d+\t(\d+)", (process / "status").read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return Listener(
        address=address,
        port=port,
        process=name(int(process.name), process.parent),
        pid=int(process.name),
        unit=units[-1] if units else "",
        user=int(user[1]) if user else 0,
    )
