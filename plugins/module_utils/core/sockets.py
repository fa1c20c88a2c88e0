"""What the kernel and HTTP say of a process's address: who listens, who is connected, what it answers."""

from __future__ import annotations

import http.client
import io
import ipaddress
import json
import re
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc

#: Seconds that an answer may take, all of it. Longer ones count as none: a process that serves answers its health path at once.
TIMEOUT = 5.0

#: The kernel's tables of sockets, proc(5).
NET = Path("/proc/net")

#: Column and value of a connected unix socket in /proc/net/unix (SS_CONNECTED of the kernel's net.h).
UNIX_STATE, UNIX_CONNECTED, UNIX_PATH = 5, "03", 7

#: Columns of /proc/net/tcp, and the states of connections and listeners (the kernel's tcp_states.h).
TCP_LOCAL, TCP_STATE, TCP_INODE = 1, 3, 9
TCP_ESTABLISHED, TCP_LISTEN = "01", "0A"

#: What a listener on every address is bound to.
ALL_ADDRESSES = (ipaddress.IPv4Address(0), ipaddress.IPv6Address(0))

#: Bytes of an answer's body that are looked at, and of all that a process may say before: interim answers, headers, chunks.
ANSWER_SIZE = 65_536
HEAD_SIZE = 65_536

#: A release's id, as far as it can be told from other things that an app may call its release.
RELEASE_ID = re.compile(r"[0-9a-f]{12}")

Address: TypeAlias = "Path | tuple[str, int]"


class UnixHTTPConnection(http.client.HTTPConnection):
    """HTTP over a unix socket."""

    def __init__(self, path: Path, timeout: float = TIMEOUT, host: str = "localhost") -> None:
        """Talk to ``path`` as if to ``host``; ``timeout`` is in seconds and bounds each single operation."""
        super().__init__(host, timeout=timeout)
        self.path = path

    def connect(self) -> None:
        """Connect to the socket instead of to the host."""
        self.sock = connect(self.path, self.timeout or TIMEOUT)


def connect(address: Address, timeout: float = TIMEOUT) -> socket.socket:
    """Return a connection to ``address``.

    :raises OSError: when nobody listens there; it names the path of a unix socket, as the kernel does not.
    """
    if isinstance(address, tuple):
        return socket.create_connection(address, timeout=timeout)
    connection = socket.socket(socket.AF_UNIX)
    connection.settimeout(timeout)
    try:
        connection.connect(str(address))
    except OSError as error:
        connection.close()
        raise OSError(error.errno, error.strerror, str(address)) from error
    return connection


@dataclass(frozen=True)
class ProbeResult:
    """What a process says to its health path: the status, and the id of the release it believes to be, if it tells one."""

    status: int
    release: str | None = None

    @property
    def healthy(self) -> bool:
        """Whether it is a success."""
        return 200 <= self.status < 400


class _Received(io.RawIOBase):
    """What a connection brings until a deadline, and ``size`` bytes of it at most: then it ends, whatever else there is."""

    def __init__(self, connection: socket.socket, deadline: float, size: int) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left = size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        """Wait for some bytes.

        :raises TimeoutError: when there are none before the deadline.
        """
        self._connection.settimeout(_left(self._deadline))
        count = self._connection.recv_into(memoryview(buffer)[: self._left])
        self._left -= count
        return count

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return a file, as http.client asks a socket for it."""
        return io.BufferedReader(self)


def probe(address: Address, path: str, host: str, timeout: float = TIMEOUT) -> ProbeResult:
    """Return the answer to ``GET path``, which may take ``timeout`` seconds with all that comes before and after it.

    The release is that of the header X-Release, or of the key ``release`` in JSON. A process can answer anything: bytes and
    seconds have limits for the whole of it, of a long body only the beginning is looked at.

    :raises OSError: when there is no answer.
    """
    deadline = time.monotonic() + timeout
    with connect(address, timeout) as connection:
        connection.settimeout(_left(deadline))
        connection.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept-Encoding: identity\r\nConnection: close\r\n\r\n".encode()
        )
        received = _Received(connection, deadline, HEAD_SIZE + ANSWER_SIZE)
        try:
            with http.client.HTTPResponse(cast(socket.socket, received), method="GET") as response:
                response.begin()
                return ProbeResult(response.status, _release(response.headers["X-Release"], _body(response)))
        except (http.client.HTTPException, ValueError) as error:
            raise OSError("no HTTP answer") from error


def _left(deadline: float) -> float:
    """Return the seconds until a deadline.

    :raises TimeoutError: when there are none.
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("no answer in time")
    return left


def _body(response: http.client.HTTPResponse) -> bytes:
    try:
        return response.read(ANSWER_SIZE)
    except http.client.IncompleteRead as error:  # more chunks than bytes, or the end of what is looked at
        return error.partial


def _release(header: str | None, body: bytes) -> str | None:
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        data = None
    named = header or (data.get("release") if isinstance(data, dict) else None)
    return named if isinstance(named, str) and RELEASE_ID.fullmatch(named) else None


def listener_pid(address: Address, supervised: int) -> int | None:
    """Return the process that listens on ``address`` if it is ``supervised`` or a descendant of it.

    The kernel names the listener of a unix socket (SO_PEERCRED, unix(7)). That of a port is who has the socket open that is
    bound to the address, a numeric one, or to all; to any if the address stands for all.
    """
    if isinstance(address, tuple):
        host = ipaddress.ip_address(address[0])
        rows = _tcp_rows({address[1]}, TCP_LISTEN)
        inodes = {int(row[TCP_INODE]) for row in rows if host.is_unspecified or _bound(row) in (host, *ALL_ADDRESSES)}
        owners = (pid for pid in proc.pids() if supervised in proc.ancestry(pid) and proc.holds_socket(pid, inodes))
        return next(owners, None)
    with connect(address) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    listener = int(struct.unpack("3i", credentials)[0])
    return listener if supervised in proc.ancestry(listener) else None


def count_connections(directory: Path, ports: set[int], names: set[str] | None = None) -> int:
    """Return how many connections are open to the unix sockets in ``directory`` and to ``ports``.

    A connection that a process accepted has the path to which its listener was bound, whatever that was renamed to.

    :arg names: only those bound to these names in ``directory``; all of them if unset.
    """
    count = 0
    for row in _rows(NET / "unix"):
        if len(row) > UNIX_PATH and row[UNIX_STATE] == UNIX_CONNECTED:
            path = Path(row[UNIX_PATH])
            count += path.parent == directory and (names is None or path.name in names)
    return count + sum(1 for _row in _tcp_rows(ports, TCP_ESTABLISHED))


def _tcp_rows(ports: set[int], state: str) -> Iterator[list[str]]:
    """Yield the rows of sockets in ``state`` at these local ports."""
    for name in ("tcp", "tcp6") if ports else ():
        for row in _rows(NET / name):
            if row[TCP_STATE] == state and int(row[TCP_LOCAL].rpartition(":")[2], 16) in ports:
                yield row


def _bound(row: list[str]) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Return the local address of a row, which the kernel shows as words of 32 bits in the order of the machine."""
    words = bytes.fromhex(row[TCP_LOCAL].rpartition(":")[0])
    found = ipaddress.ip_address(struct.pack(f">{len(words) // 4}I", *struct.unpack(f"={len(words) // 4}I", words)))
    return getattr(found, "ipv4_mapped", None) or found


def _rows(table: Path) -> Iterator[list[str]]:
    """Yield the rows of one of the kernel's tables, without the heading."""
    if table.exists():
        yield from (line.split() for line in table.read_text(errors="surrogateescape").split("\n")[1:-1])
