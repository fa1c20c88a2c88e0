"""HAProxy at run time: what its servers do, and drains and weights without a reload.

The commands are those of HAProxy's management guide, chapters 9.3 (a worker's socket) and 9.4 (the master's).
"""

from __future__ import annotations

import csv
import re
import socket
from pathlib import Path
from typing import Literal, TypedDict

#: Socket of the worker that takes new connections, as the role haproxy configures it: root's alone.
SOCKET = Path("/run/haproxy-funnel/admin.sock")
#: Socket of the master, as Debian's unit starts it. It reaches workers of before a reload, too.
MASTER = Path("/run/haproxy-master.sock")

#: Seconds that HAProxy may take to answer.
PATIENCE = 5.0

State = Literal["ready", "drain", "maint"]

#: Bits of srv_admin_state that stand for maintenance and for draining, whoever asked for it: "show servers state".
_MAINT, _DRAIN = 0x01 | 0x02 | 0x04 | 0x20 | 0x40, 0x08 | 0x10


class HaproxyError(Exception):
    """HAProxy cannot be asked, or refused. The message names its socket or has its words."""


class Server(TypedDict):
    """One server of one backend.

    ``state`` is what was asked for, ``status`` what HAProxy makes of it, checks included (``UP``, ``UP 1/2``, ``DOWN``,
    ``DRAIN``, ``MAINT``, ...). ``sticky`` is whether clients have its cookie. ``sessions`` are those in progress and those that
    wait for it.
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


def ask(command: str, path: Path = SOCKET) -> str:
    """Return the answer to one command, without the blank line that ends it.

    :raises HaproxyError: when nobody answers.
    """
    try:
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(PATIENCE)
            client.connect(str(path))
            client.sendall(f"{command}\n".encode())
            client.shutdown(socket.SHUT_WR)  # the master's socket else waits for another command
            parts = []
            while part := client.recv(65536):
                parts.append(part)
    except OSError as error:
        raise HaproxyError(f"{path}: HAProxy does not answer: {error}") from error
    return b"".join(parts).decode(errors="replace").strip()


def tell(command: str, path: Path = SOCKET) -> None:
    """Give a command that HAProxy answers only if something is wrong.

    :raises HaproxyError: with HAProxy's words then.
    """
    if words := ask(command, path):
        raise HaproxyError(f"{command}: {words}")


def servers(path: Path = SOCKET) -> list[Server]:
    """Return the servers of all backends, in the order of the configuration.

    :raises HaproxyError: when nobody answers.
    """
    states = {(row["be_name"], row["srv_name"]): row for row in _rows(ask("show servers state", path), " ")}
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
        for row in _rows(ask("show stat", path), ",")
        if (state := states.get((row["pxname"], row["svname"])))
    ]


def quiet_state(server: Server, state: State) -> State:
    """Return the state in which a server gets no new requests, if ``state`` is ``drain``, else ``state``.

    One that is drained still gets those of clients that have its cookie.
    """
    return "maint" if state == "drain" and server["sticky"] else state


def sessions(server: str, backends: list[str], path: Path = SOCKET, master: Path = MASTER) -> int:
    """Return how many sessions a server has in ``backends``, those of workers from before a reload included.

    :raises HaproxyError: when nobody answers.
    """
    answers = [ask("show stat", path), *(ask(f"@!{pid} show stat", master) for pid in old_workers(master))]
    return sum(
        _sessions(row) for stat in answers for row in _rows(stat, ",") if row["svname"] == server and row["pxname"] in backends
    )


def old_workers(master: Path = MASTER) -> list[int]:
    """Return the processes that finish what they had before a reload.

    :raises HaproxyError: when nobody answers.
    """
    old = ask("show proc", master).partition("# old workers")[2]
    return [int(pid) for pid in re.findall(r"^(\d+) +worker ", old, re.MULTILINE)]


def version(path: Path = SOCKET) -> str:
    """Return HAProxy's version, as ``2.6.12-1+deb12u4``.

    :raises HaproxyError: when nobody answers.
    """
    found = re.search(r"^Version: (.*)$", ask("show info", path), re.MULTILINE)
    return found[1] if found else ""


def _rows(text: str, separator: str) -> list[dict[str, str]]:
    """Return the rows of a table, whose head is a comment. A worker that has just ended answers without one."""
    table = text.partition("# ")[2]
    return list(csv.DictReader(table.splitlines(), delimiter=separator))


def _sessions(row: dict[str, str]) -> int:
    return int(row["scur"] or 0) + int(row["qcur"] or 0)


def _state(bits: int) -> State:
    if bits & _MAINT:
        return "maint"
    return "drain" if bits & _DRAIN else "ready"
