"""Listeners and connections of Unix and TCP sockets, and HTTP health probes."""

from __future__ import annotations

import contextlib
import ctypes
import http.client
import io
import ipaddress
import json
import pwd
import re
import socket
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, cast

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import Deadline
from ansible_collections.funnel.tornado.plugins.module_utils.core.printable import printable
from ansible_collections.funnel.tornado.plugins.module_utils.core.unix_sockets import ESTABLISHED, LISTENING, unix_sockets

#: Seconds within which a health probe must complete.
TIMEOUT = 5.0

#: The kernel's tables of TCP sockets, proc(5).
NET = Path("/proc/net")

#: Columns of /proc/net/tcp, and the states of connections and listeners (the kernel's tcp_states.h).
TCP_LOCAL, TCP_STATE, TCP_INODE = 1, 3, 9
TCP_ESTABLISHED, TCP_LISTEN = "01", "0A"

#: The addresses of a listener on all interfaces.
ALL_ADDRESSES = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))

#: Maximum bytes that are read of a response body, and of all that precedes it: interim responses, headers, chunk sizes.
MAX_BODY_BYTES = 65_536
MAX_HEAD_BYTES = 65_536

#: Characters of a response body that a message quotes.
QUOTED_LENGTH = 200

#: Format of release ids: an app may report a release of its own instead.
RELEASE_ID = re.compile(r"[0-9a-f]{12}")

Address: TypeAlias = "Path | tuple[str, int]"


def url_host(address: str) -> str:
    """Return an address for use in a URL: IPv6 addresses are put in brackets."""
    return f"[{address}]" if ":" in address else address


class UnixHTTPConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = TIMEOUT, host: str = "localhost") -> None:
        """Send requests for ``host`` to the socket ``path``; ``timeout`` is in seconds and applies to each operation."""
        super().__init__(host, timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket instead of to the host."""
        self.sock = connect(self.path, self.timeout or TIMEOUT)


def connect(address: Address, timeout: float = TIMEOUT, user: str = "") -> socket.socket:
    """Connect to ``address``.

    :arg user: connect to a Unix socket with the permissions of this user instead of those of root.
    :raises OSError: if there is no listener; for a Unix socket, with its path, which the kernel omits.
    """
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        with _file_access_of(user):
            connection.connect(str(address))
    except OSError as error:
        connection.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return connection


@contextlib.contextmanager
def _file_access_of(user: str) -> Iterator[None]:
    """Access files with the permissions of a user, and of its primary group, in this thread only: setfsuid(2)."""
    if not user:
        yield
        return
    account, libc = pwd.getpwnam(user), ctypes.CDLL(None)
    group = libc.setfsgid(account.pw_gid)
    owner = libc.setfsuid(account.pw_uid)  # without root's identity, the kernel also ignores root's capabilities
    try:
        yield
    finally:
        libc.setfsuid(owner)
        libc.setfsgid(group)


@dataclass(frozen=True)
class ProbeResult:
    """Response to a health probe; ``release`` is the id that the process reports, if any."""

    status: int
    reason: str = ""
    release: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    body: bytes = b""

    @property
    def status_line(self) -> str:
        """The status and its reason, without control characters."""
        return printable(f"{self.status} {self.reason}".rstrip(), line=True)

    def __str__(self) -> str:
        """Return the status line and the beginning of a text body, on one line and without control characters."""
        text = " ".join(self.body[: 4 * QUOTED_LENGTH].decode(errors="replace").split())
        if len(text) > QUOTED_LENGTH:
            text = f"{text[:QUOTED_LENGTH]}..."
        return self.status_line + (f": {printable(text, line=True)}" if text else "")


class _Received(io.RawIOBase):
    """Data received on a connection until a deadline; end of file after ``size`` bytes."""

    def __init__(self, connection: socket.socket, deadline: Deadline, size: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self._remaining = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Receive bytes.

        :raises TimeoutError: if none arrive before the deadline.
        """
        _apply_timeout(self._connection, self._deadline)
        count = self._connection.recv_into(memoryview(buffer)[: self._remaining])
        self._remaining -= count
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a buffered reader, as http.client expects from a socket."""
        return io.BufferedReader(self)


def probe(
    address: Address,
    path: str,
    host: str,
    timeout: float = TIMEOUT,
    *,
    headers: Mapping[str, str] | None = None,
    user: str = "",
) -> ProbeResult:
    """Send ``GET path`` and return the response, within ``timeout`` seconds in total.

    :arg headers: further headers; they replace those of the same name.
    :arg user: see :func:`connect`.
    :raises OSError: if there is no response.
    """
    deadline = Deadline(timeout)
    with connect(address, timeout, user) as connection:
        return exchange(connection, path, {"Host": host} | dict(headers or {}), deadline)


def exchange(connection: socket.socket, path: str, headers: Mapping[str, str], deadline: Deadline) -> ProbeResult:
    """Send ``GET path`` on a connection and return the response.

    The release is taken from the header X-Release or from the key ``release`` of a JSON body. Processes are not trusted: the
    response is bounded in bytes and time, and a long body is truncated.

    :raises OSError: if there is no response before the deadline.
    """
    fields = {name.title(): value for name, value in headers.items()} | {"Accept-Encoding": "identity", "Connection": "close"}
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields.items())
    _apply_timeout(connection, deadline)
    connection.sendall(f"GET {path} HTTP/1.1\r\n{lines}\r\n".encode())
    received = _Received(connection, deadline, MAX_HEAD_BYTES + MAX_BODY_BYTES)
    try:
        with http.client.HTTPResponse(cast(socket.socket, received), method="GET") as response:
            response.begin()
            body = _body(response)
            release = _release(response.headers["X-Release"], body)
            return ProbeResult(response.status, response.reason, release, dict(response.headers.items()), body)
    except (http.client.HTTPException, ValueError) as error:
        raise OSError("no HTTP response") from error


def _apply_timeout(connection: socket.socket, deadline: Deadline) -> None:
    """Limit the next operation on a connection to the time that remains.

    :raises TimeoutError: if the deadline has passed.
    """
    remaining = deadline.remaining
    if remaining == 0:
        raise TimeoutError("no response in time")
    connection.settimeout(remaining)


def _body(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(MAX_BODY_BYTES)
    except http.client.IncompleteRead as error:  # truncated by the process, or by the limit of bytes
        return error.partial


def _release(header: str | None, body: bytes) -> str | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    named = header or (data.get("release") if isinstance(data, dict) else None)
    return named if isinstance(named, str) and RELEASE_ID.fullmatch(named) else None


def listener_pid(address: Address, supervised: int) -> int | None:
    """Return the process that listens on ``address`` if it is ``supervised`` or one of its descendants.

    The kernel reports the listener of a Unix socket (SO_PEERCRED, unix(7)). The listener of a port is the process that holds the
    socket to which the kernel connects a client: bound to the numeric address, or else to all addresses, first to those of IPv4.
    If ``address`` is unspecified, it may be bound to any address.
    """
    if isinstance(address, tuple):
        host = ipaddress.ip_address(address[0])
        rows = list(_tcp_rows({address[1]}, TCP_LISTEN))
        bound = [host, *(every for every in ALL_ADDRESSES if every.version >= host.version)]
        candidates = [{int(row[TCP_INODE]) for row in rows if host.is_unspecified or _bound(row) == own} for own in bound]
        inodes = next(filter(None, candidates), set())
        return next((pid for pid in proc.descendants(supervised) if proc.holds_socket(pid, inodes)), None)
    with connect(address) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    listener = int(struct.unpack("3i", credentials)[0])
    return listener if supervised in proc.ancestry(listener) else None


def listening_addresses(pid: int) -> list[str]:
    """Return the addresses that a process and its descendants listen on: ``host:port``, or the name of a Unix socket."""
    inodes = set().union(*map(proc.socket_inodes, proc.descendants(pid)))
    found = {entry.path for entry in unix_sockets() if entry.state == LISTENING and entry.inode in inodes}
    for row in _tcp_rows(None, TCP_LISTEN):
        if int(row[TCP_INODE]) in inodes:
            host = _bound(row)
            found.add(f"{host if host.version == 4 else f'[{host}]'}:{_port(row)}")
    return sorted(found)


def count_connections(directory: Path, ports: set[int], names: set[str] | None = None) -> int:
    """Return the number of open connections to the Unix sockets in ``directory`` and to ``ports``.

    An accepted connection keeps the path to which its listener was bound, even if that was renamed.

    :arg names: count only sockets bound to these names in ``directory``; all if unset.
    """
    paths = (Path(entry.path) for entry in unix_sockets() if entry.state == ESTABLISHED and entry.path.startswith("/"))
    count = sum(1 for path in paths if path.parent == directory and (names is None or path.name in names))
    return count + sum(1 for _row in _tcp_rows(ports, TCP_ESTABLISHED))


def _tcp_rows(ports: set[int] | None, state: str) -> Iterator[list[str]]:
    """Yield the rows of sockets in ``state`` on these local ports; on all ports if None."""
    for name in ("tcp", "tcp6") if ports != set() else ():
        for row in _rows(NET / name):
            if row[TCP_STATE] == state and (ports is None or _port(row) in ports):
                yield row


def _port(row: list[str]) -> int:
    return int(row[TCP_LOCAL].rpartition(":")[2], 16)


def _bound(row: list[str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the local address of a row."""
    return proc.ip_address(row[TCP_LOCAL].rpartition(":")[0])


def _rows(table: Path) -> Iterator[list[str]]:
    """Yield the rows of a kernel table, without its heading."""
    if table.exists():
        yield from (line.split() for line in table.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[1:-1])
