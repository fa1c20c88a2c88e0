"""XML-RPC client for supervisord over its unix socket, limited to the standard library and to single process groups.

The API is documented at http://supervisord.org/api.html. Calls that restart several groups (``reload``, ``update`` without a
name) are deliberately missing.
"""

from __future__ import annotations

import http.client
import xmlrpc.client
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import UnixHTTPConnection
from ansible_collections.funnel.tornado.plugins.module_utils.system.existing_programs import SOCKET

#: Fault codes of supervisor/xmlrpc.py.
_BAD_NAME = 10
_ALREADY_ADDED = 90

#: States of processes that a stop affects, and of those that have ended: supervisor/states.py.
_RUNNING = frozenset({"STARTING", "RUNNING", "BACKOFF"})
_STOPPED = frozenset({"STOPPED", "EXITED", "FATAL", "UNKNOWN"})

#: Argument of stopProcessGroup: return before the processes have ended.
_NO_WAIT = False

#: Seconds that a killed process may take to end, and between two checks of stopping processes.
_KILL_SECONDS = 10
_INTERVAL = 0.1


class SupervisorError(Exception):
    """supervisord is unreachable or refuses a call. The message has the call and the reason."""


@dataclass(frozen=True)
class ConfigChanges:
    """Names of the groups whose configuration differs from the running one; all of them still run unchanged."""

    added: list[str]
    changed: list[str]
    removed: list[str]


@dataclass(frozen=True)
class ProcessInfo:
    """A process of a group: ``state`` as in supervisord (``RUNNING``, ``FATAL``, ...), ``pid`` 0 while it does not run."""

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
    """Return a client for the supervisord that listens at ``path``, to pass to the functions below.

    It connects at its first call; ``timeout`` bounds each response in seconds.
    """
    return xmlrpc.client.ServerProxy("http://localhost", transport=_Transport(path, timeout))


def reload_config(server: xmlrpc.client.ServerProxy) -> ConfigChanges:
    """Make supervisord read its configuration files, without starting or stopping anything.

    :raises SupervisorError: when the files are invalid, with supervisord's reason.
    """
    (added, changed, removed), *_rest = _call(server, "reloadConfig")
    return ConfigChanges(added, changed, removed)


def add_group(server: xmlrpc.client.ServerProxy, name: str) -> None:
    """Add a configured group, which starts its processes unless its configuration says otherwise; idempotent.

    :raises SupervisorError: when the files are invalid or do not define the group.
    """
    reload_config(server)
    _call(server, "addProcessGroup", name, accept=_ALREADY_ADDED)


def stop_groups(server: xmlrpc.client.ServerProxy, names: Collection[str]) -> bool:
    """Ask the running processes of groups to stop, without waiting; return whether all of them have stopped."""
    infos = [info for name in names for info in process_infos(server, name)]
    for name in sorted({info.group for info in infos if info.state in _RUNNING}):
        _call(server, "stopProcessGroup", name, _NO_WAIT)
    return all(info.state in _STOPPED for info in infos)


def remove_groups(server: xmlrpc.client.ServerProxy, names: Collection[str], timeout: float) -> None:
    """Stop the processes of groups concurrently, wait for their end, and remove the groups; idempotent.

    :arg timeout: seconds after which supervisord has killed the processes that did not stop.
    :raises SupervisorError: when a process does not end.
    """
    if not poll(lambda: stop_groups(server, names), bool, timeout=timeout + _KILL_SECONDS, interval=_INTERVAL):
        raise SupervisorError(f"a process of {', '.join(names)} does not end after {timeout:.0f} s, although it was killed")
    for name in names:
        _call(server, "removeProcessGroup", name, accept=_BAD_NAME)


def slot_groups(server: xmlrpc.client.ServerProxy, name: str) -> list[str]:
    """Return the running groups of a slot: ``name``, and those of its workers, ``name.<type>``."""
    groups = {info["group"] for info in _call(server, "getAllProcessInfo")}
    return sorted(group for group in groups if group.partition(".")[0] == name)


def process_infos(server: xmlrpc.client.ServerProxy, group: str) -> list[ProcessInfo]:
    """Return the processes of a group; none if supervisord does not run the group."""
    return [
        ProcessInfo(info["name"], info["group"], info["statename"], info["pid"], info["spawnerr"])
        for info in _call(server, "getAllProcessInfo")
        if info["group"] == group
    ]


def _call(server: xmlrpc.client.ServerProxy, method: str, *arguments: Any, accept: int | None = None) -> Any:
    """Call a method of supervisord; treat a fault with the code ``accept`` as success."""
    call = f"{method}({', '.join(map(str, arguments))})"
    try:
        return getattr(server.supervisor, method)(*arguments)
    except xmlrpc.client.Fault as fault:
        if fault.faultCode == accept:
            return None
        raise SupervisorError(f"supervisord refused {call}: {fault.faultString}") from fault
    except TimeoutError as error:
        raise SupervisorError(f"supervisord did not answer {call} in time") from error
    except (OSError, http.client.HTTPException, xmlrpc.client.ProtocolError) as error:
        raise SupervisorError(f"cannot call {call} of supervisord: {error}") from error
