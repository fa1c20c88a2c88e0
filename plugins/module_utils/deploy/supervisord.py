"""Talk to supervisord over its unix socket, with the standard library alone, and about one group at a time.

The interface is documented at http://supervisord.org/api.html. What restarts more than one group (``reload``, ``update``
without a name) is not offered here.
"""

from __future__ import annotations

import http.client
import xmlrpc.client
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import UnixHTTPConnection

#: Where the collection's supervisor role puts the socket.
SOCKET = Path("/run/supervisor.sock")

#: Fault codes of supervisor/xmlrpc.py.
_BAD_NAME = 10
_ALREADY_ADDED = 90


class SupervisorError(Exception):
    """supervisord cannot be reached or refuses. The message says what was asked of it and why it was not done."""


@dataclass(frozen=True)
class ConfigChanges:
    """Names of the groups whose configuration differs from what runs; none of them has been touched."""

    added: list[str]
    changed: list[str]
    removed: list[str]


@dataclass(frozen=True)
class ProcessInfo:
    """A process of a group. ``state`` is supervisord's (``RUNNING``, ``FATAL``, ...), ``pid`` 0 while there is none."""

    name: str
    group: str
    state: str
    pid: int
    error: str


class _Transport(xmlrpc.client.Transport):
    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__()
        self._path = path
        self._timeout = timeout

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        return UnixHTTPConnection(self._path, self._timeout, str(host))


def connect(path: Path = SOCKET, *, timeout: float = 30.0) -> xmlrpc.client.ServerProxy:
    """Return a client for the supervisord that listens at ``path``; each answer may take ``timeout`` seconds.

    Nothing is sent yet. The functions below take what is returned.
    """
    return xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(path, timeout))


def reload_config(server: xmlrpc.client.ServerProxy) -> ConfigChanges:
    """Let supervisord read its configuration files; that alone starts and stops nothing.

    :raises SupervisorError: when they are wrong, with supervisord's reason.
    """
    (added, changed, removed), *_rest = _call(server, "reloadConfig")
    return ConfigChanges(added, changed, removed)


def add_group(server: xmlrpc.client.ServerProxy, name: str) -> None:
    """Take a group from the configuration files; its processes start if they are set to. Once more does nothing.

    :raises SupervisorError: when the files are wrong or do not define the group.
    """
    reload_config(server)
    _call(server, "addProcessGroup", name, accept=_ALREADY_ADDED)


def remove_group(server: xmlrpc.client.ServerProxy, name: str) -> None:
    """Stop all processes of a group, wait until they have ended, and forget the group. Once more does nothing.

    The wait is bounded by the client's ``timeout``: let that exceed the group's ``stopwaitsecs``.

    :raises SupervisorError: when a process does not end.
    """
    if process_infos(server, name):
        _call(server, "stopProcessGroup", name)
        _call(server, "removeProcessGroup", name, accept=_BAD_NAME)


def slot_groups(server: xmlrpc.client.ServerProxy, name: str) -> list[str]:
    """Return the groups of a slot that supervisord knows: ``name``, and those of its workers, ``name.<type>``."""
    known = {info["group"] for info in _call(server, "getAllProcessInfo")}
    return sorted(group for group in known if group.partition(".")[0] == name)


def process_infos(server: xmlrpc.client.ServerProxy, group: str) -> list[ProcessInfo]:
    """Return the processes of a group, or nothing if supervisord does not know it."""
    return [
        ProcessInfo(info["name"], info["group"], info["statename"], info["pid"], info["spawnerr"])
        for info in _call(server, "getAllProcessInfo")
        if info["group"] == group
    ]


def _call(server: xmlrpc.client.ServerProxy, method: str, *arguments: Any, accept: int | None = None) -> Any:
    """Call a method of supervisord; a fault with code ``accept`` counts as done."""
    asked = f"{method}({', '.join(map(str, arguments))})"
    try:
        return getattr(server.supervisor, method)(*arguments)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode == accept:
            return None
        raise SupervisorError(f"supervisord refuses {asked}: {fault.faultString}") from fault
    except TimeoutError as error:
        raise SupervisorError(f"supervisord did not answer {asked} in time") from error
    except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
        raise SupervisorError(f"supervisord cannot be asked for {asked}: {error}") from error
