"""HAProxy's runtime API: server states, sessions, connection draining and weights, without a reload.

Commands: HAProxy Management Guide, chapters 9.3 (socket of a worker) and 9.4 (socket of the master).
"""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path
from typing import Literal, TypedDict

from ansible_collections.funnel.tornado.plugins.module_utils.sites.model import CHALLENGES

#: Socket of the worker that accepts new connections, as the role haproxy configures it: root only.
SOCKET = Path("/run/haproxy-funnel/admin.sock")
#: Socket of the master, as Debian's unit configures it. It also reaches workers from before a reload.
MASTER_SOCKET = Path("/run/haproxy-master.sock")

#: Seconds to wait for a response.
TIMEOUT = 5.0

State = Literal["ready", "drain", "maint"]

#: Bits of srv_admin_state in "show servers state" that mean maintenance and draining, whatever their source.
_MAINT, _DRAIN = 0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x08 | 0x10


class HaproxyError(Exception):
    """HAProxy is unreachable or rejected a command; the message has the socket, or the command and HAProxy's reason."""


class Server(TypedDict):
    """A server of a backend.

    ``state`` is the administrative state, ``status`` the operational one, health checks included (``UP``, ``UP 1/2``, ``DOWN``,
    ``DRAIN``, ``MAINT``, ...). ``sticky``: clients are bound to it by a cookie. ``sessions`` counts active and queued ones.
    """

    backend: str
    server: str
    address: str
    state: State
    status: str
    check: str
    sticky: bool
    sessions: int
    weight: int


def query(command: str, path: Path = SOCKET) -> str:
    """Return the response to a command, without the blank line that ends it.

    :raises HaproxyError: if HAProxy does not respond.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(TIMEOUT)
            client.connect(str(path))
            client.sendall(f"{command}\n".encode())
            client.shutdown(socket.SHUT_WR)  # otherwise, the master waits for another command
            parts = []
            while part := client.recv(65536):
                parts.append(part)
    except OSError as error:
        raise HaproxyError(f"{path}: HAProxy does not respond: {error}") from error
    return b"".join(parts).decode(errors="replace").strip()


def execute(command: str, path: Path = SOCKET) -> None:
    """Run a command whose response is empty on success.

    :raises HaproxyError: with HAProxy's response if it rejects the command.
    """
    if response := query(command, path):
        raise HaproxyError(f"{command}: {response}")


def list_servers(path: Path = SOCKET) -> list[Server]:
    """Return the servers of all backends, except ACME clients, in the order of the configuration.

    :raises HaproxyError: if HAProxy does not respond.
    """
    states = {(row["be_name"], row["srv_name"]): row for row in _rows(query("show servers state", path), " ")}
    return [
        {
            "backend": row["pxname"],
            "server": row["svname"],
            "address": row["addr"],
            "state": _state(int(state["srv_admin_state"])),
            "status": row["status"],
            "check": row["check_desc"],
            "sticky": row["cookie"] != "",
            "sessions": _sessions(row),
            "weight": int(state["srv_uweight"]),
        }
        for row in _rows(query("show stat", path), ",")
        if (state := states.get((row["pxname"], row["svname"]))) and not row["pxname"].endswith(CHALLENGES)
    ]


def effective_state(server: Server, state: State) -> State:
    """Return the state to set for ``state``: ``maint`` instead of ``drain`` if the server is sticky.

    A draining server still gets new requests from clients that have its cookie.
    """
    return "maint" if state == "drain" and server["sticky"] else state


def count_sessions(server: str, backends: list[str], path: Path = SOCKET, master: Path = MASTER_SOCKET) -> int:
    """Return the number of sessions of a server in ``backends``, including those of workers from before a reload.

    :raises HaproxyError: if HAProxy does not respond.
    """
    tables = [query("show stat", path), *(query(f"@!{pid} show stat", master) for pid in old_workers(master))]
    return sum(
        _sessions(row) for table in tables for row in _rows(table, ",") if row["svname"] == server and row["pxname"] in backends
    )


def old_workers(master: Path = MASTER_SOCKET) -> list[int]:
    """Return the workers from before a reload, which still finish their sessions.

    :raises HaproxyError: if HAProxy does not respond.
    """
    processes = query("show proc", master).partition("# old workers")[2]
    return [int(pid) for pid in re.findall(r"^(\d+) +worker ", processes, re.MULTILINE)]


def _rows(text: str, separator: str) -> list[dict[str, str]]:
    """Return the rows of a table whose header is a comment; a worker that has just exited sends neither."""
    table = text.partition("# ")[2]
    return list(csv.DictReader(table.splitlines(), delimiter=separator))


def _sessions(row: dict[str, str]) -> int:
    return int(row["scur"] or 0) + int(row["qcur"] or 0)


def _state(bits: int) -> State:
    if bits & _MAINT:
        return "maint"
    return "drain" if bits & _DRAIN else "ready"
