"""What the kernel and HTTP say of a process's address: who listens, who is connected, what it answers."""

from __future__ import annotations

import http.client
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

#: Seconds that an answer may take. Longer ones count as none: a process that serves answers its health path at once.
TIMEOUT = 5.0

#: Column and value of a connected unix socket in /proc/net/unix (SS_CONNECTED of the kernel's net.h).
UNIX_STATE, UNIX_CONNECTED, UNIX_PATH = 5, "03", 7

#: Column and value of an established connection in /proc/net/tcp (TCP_ESTABLISHED of the kernel's tcp_states.h).
TCP_LOCAL, TCP_STATE, TCP_ESTABLISHED = 1, 3, "01"

Address = Path | tuple[str, int]


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


def get_status(address: Address, path: str, host: str) -> int:
    """Return the status of ``GET path``.

    :raises OSError: when there is no answer.
    """
    if isinstance(address, tuple):
        connection = http.client.HTTPConnection(*address, timeout=TIMEOUT)
    else:
        connection = UnixHTTPConnection(address)
    try:
        connection.request("GET", path, headers={"Host": host, "Connection": "close"})
        return connection.getresponse().status
    except http.client.HTTPException as error:
        raise OSError(f"no HTTP answer: {error}") from error
    finally:
        connection.close()


def listener_pid(address: Address, supervised: int) -> int | None:
    """Return the process that listens on ``address`` if it is ``supervised`` or a descendant of it.

    The kernel names the listener of a unix socket (SO_PEERCRED, unix(7)). It does not name that of a port, so there only
    whether the supervised process lives is seen: its port was free when it was started.
    """
    if isinstance(address, tuple):
        return supervised if Path(f"/proc/{supervised}").exists() else None
    with connect(address) as connection:
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    listener = int(struct.unpack("3i", credentials)[0])
    return listener if supervised in _ancestry(listener) else None


def _ancestry(pid: int) -> Iterator[int]:
    while pid > 1:
        yield pid
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        pid = int(stat.rpartition(")")[2].split()[1])


def connections(directory: Path, ports: set[int], names: set[str] | None = None, proc: Path = Path("/proc/net")) -> int:
    """Return how many connections are open to the unix sockets in ``directory`` and to ``ports``.

    A connection that a process accepted has the path to which its listener was bound, whatever that was renamed to.

    :arg names: only those bound to these names in ``directory``; all of them if unset.
    """
    count = 0
    for row in _rows(proc / "unix"):
        if len(row) > UNIX_PATH and row[UNIX_STATE] == UNIX_CONNECTED:
            path = Path(row[UNIX_PATH])
            count += path.parent == directory and (names is None or path.name in names)
    for name in ("tcp", "tcp6") if ports else ():
        count += sum(
            1
            for row in _rows(proc / name)
            if row[TCP_STATE] == TCP_ESTABLISHED and int(row[TCP_LOCAL].rpartition(":")[2], 16) in ports
        )
    return count


def _rows(table: Path) -> Iterator[list[str]]:
    """Yield the rows of one of the kernel's tables, without the heading."""
    if table.exists():
        yield from (line.split() for line in table.read_text().splitlines()[1:])
