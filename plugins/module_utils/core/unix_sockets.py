"""Unix sockets of the host, as the kernel reports them: sock_diag(7).

The table /proc/net/unix is text, in which the name of a socket can contain newlines and so forge rows.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

#: States of a socket (the kernel's tcp_states.h).
ESTABLISHED, LISTENING = 1, 10

#: The kernel's table, for kernels without the module unix_diag: columns of flags, state, inode and path, and values of the first
#: two, of a listener (__SO_ACCEPTCON) and of a connected socket (SS_CONNECTED).
TABLE = Path("/proc/net/unix")
_FLAGS, _STATE, _INODE, _PATH = 3, 5, 6, 7
_LISTENS, _CONNECTED = "00010000", "03"

#: Constants of the kernel's netlink.h, sock_diag.h and unix_diag.h.
_NETLINK_SOCK_DIAG, _SOCK_DIAG_BY_FAMILY = 4, 20
_REQUEST, _DUMP = 0x1, 0x300
_ERROR, _DONE = 2, 3
_SHOW_NAME, _NAME = 1, 0
_ALL = 0xFFFFFFFF

#: Headers of a message and of an attribute, the code of an error, a request, and a reply: family, type, state, inode and cookie
#: of a socket.
_MESSAGE, _ATTRIBUTE, _CODE = struct.Struct("=IHHII"), struct.Struct("=HH"), struct.Struct("=i")
_QUERY, _REPLY = struct.Struct("=BBHIIIII"), struct.Struct("=BBBxIII")
_ALIGNMENT = 4

_MAX_MESSAGE = 1 << 16


@dataclass(frozen=True)
class UnixSocket:
    """A socket: its state, its inode, and the path to which it, or the listener that accepted it, was bound.

    The path may be relative; that of an abstract socket begins with ``@``, as in the kernel's table (unix(7)).
    """

    state: int
    inode: int
    path: str


def unix_sockets() -> list[UnixSocket]:
    """Return the sockets that are bound to a name, without connections that are not accepted yet."""
    try:
        entries = list(_query())
    except OSError:
        entries = list(_rows())
    return [entry for entry in entries if entry.path and entry.inode]


def _query() -> Iterator[UnixSocket]:
    """Yield the sockets of the host.

    :raises OSError: if the kernel lacks the module.
    """
    query = _QUERY.pack(socket.AF_UNIX, 0, 0, _ALL, 0, _SHOW_NAME, _ALL, _ALL)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_SOCK_DIAG) as kernel:
        kernel.send(_MESSAGE.pack(_MESSAGE.size + len(query), _SOCK_DIAG_BY_FAMILY, _REQUEST | _DUMP, 1, 0) + query)
        while data := kernel.recv(_MAX_MESSAGE):
            while data:
                size, kind, _flags, _sequence, _port = _MESSAGE.unpack_from(data)
                message, data = data[_MESSAGE.size : size], data[_aligned(size) :]
                if kind == _DONE:
                    return
                if kind == _ERROR:
                    (code,) = _CODE.unpack_from(message)
                    raise OSError(-code, os.strerror(-code))
                _family, _type, state, inode, _cookie, _high = _REPLY.unpack_from(message)
                yield UnixSocket(state, inode, _name(message[_REPLY.size :]))


def _name(attributes: bytes) -> str:
    """Return the name in the attributes of a reply; empty if there is none."""
    while attributes:
        size, kind = _ATTRIBUTE.unpack_from(attributes)
        if kind == _NAME:
            return os.fsdecode(attributes[_ATTRIBUTE.size : size].rstrip(b"\0").replace(b"\0", b"@"))
        attributes = attributes[_aligned(size) :]
    return ""


def _aligned(size: int) -> int:
    return -(-size // _ALIGNMENT) * _ALIGNMENT


def _rows() -> Iterator[UnixSocket]:
    """Yield the connected and the listening sockets in the table."""
    for line in TABLE.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[1:-1] if TABLE.exists() else ():
        row = line.split(maxsplit=_PATH)
        if len(row) > _PATH and row[_INODE].isdecimal():
            if row[_FLAGS] == _LISTENS:
                yield UnixSocket(LISTENING, int(row[_INODE]), row[_PATH])
            elif row[_STATE] == _CONNECTED:
                yield UnixSocket(ESTABLISHED, int(row[_INODE]), row[_PATH])
