"""Bring a systemd service to its new configuration, and see that it took it."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run

#: What to do when the files of a service changed. ``restart_if_idle`` restarts a supervisor only while it runs nothing.
OnChange = Literal["reload", "restart", "restart_if_idle", "none"]

#: Those that take up a change of the service's unit as well, which a reload does not.
RESTARTING = frozenset({"restart", "restart_if_idle"})

#: Seconds a service may take to start or reload, unless it is known to need longer.
START_SECONDS = 120.0

#: Seconds a service may take to show that it runs with its new configuration.
CONFIRM_SECONDS = 10.0

#: When a unit became active last, and when its state changed last, a reload included: microseconds since boot.
_BEGAN, _SETTLED = "ActiveEnterTimestampMonotonic", "StateChangeTimestampMonotonic"


class ServiceError(Exception):
    """A service is not there, or did not come up with its configuration. The message holds its last words."""


@dataclass(frozen=True)
class ServiceSpec:
    """How a service is told that its files changed, and where it shows the result.

    ``log`` is a file the service writes its errors to when that is not the journal; ``socket`` is a unix socket that
    accepts connections once the service is ready, ``udp_port`` one that it then has for itself. ``listener`` is the unit of
    the sockets that systemd listens at for it. ``timeout`` is how many seconds it may take to start or reload; its unit may
    say less.
    """

    name: str
    on_change: OnChange = "none"
    log: Path | None = None
    socket: Path | None = None
    udp_port: int | None = None
    listener: str = ""
    timeout: float = START_SECONDS


@dataclass(frozen=True)
class ServiceState:
    """What systemd says of a unit; of unix time, it started last at ``started_at``, was reloaded or started at ``loaded_at``."""

    exists: bool
    active: bool
    enabled: bool
    main_pid: int
    started_at: float
    loaded_at: float


def unit_name(name: str) -> str:
    """Return the unit that is called ``name``: a service's, unless it says otherwise."""
    return name if name.endswith((".timer", ".socket")) else f"{name}.service"


def query(name: str) -> ServiceState:
    """Return the state of a service.

    :raises ServiceError: when systemd does not run this host.
    """
    properties = ("LoadState", "ActiveState", "UnitFileState", "MainPID", _BEGAN, _SETTLED)
    try:
        shown = run(["systemctl", "show", f"--property={','.join(properties)}", unit_name(name)]).output
    except CommandError as error:
        raise ServiceError(str(error)) from error
    value = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
    booted = time.time() - time.clock_gettime(time.CLOCK_MONOTONIC)
    return ServiceState(
        exists=value["LoadState"] != "not-found",
        active=value["ActiveState"] in {"active", "reloading"},
        enabled=value["UnitFileState"] in {"enabled", "enabled-runtime", "static", "alias", "generated"},
        main_pid=int(value.get("MainPID", 0)),  # a timer has none
        started_at=booted + int(value[_BEGAN]) / 1e6,
        loaded_at=booted + int(value[_SETTLED]) / 1e6,
    )


def required_action(wanted: ServiceSpec, state: ServiceState, *, changed: bool, listener_changed: bool = False) -> str:
    """Return what has to be done: ``start``, ``reload``, ``restart``, ``enable``, ``deferred`` or nothing (``""``).

    ``deferred``: the service runs children that must not be restarted, so the change waits for its next start.
    ``listener_changed``: the unit of the sockets it is handed is not the one that systemd listens by.
    """
    if listener_changed:
        return "restart"
    if not state.active:
        return "start"
    if changed and wanted.on_change == "restart_if_idle":
        return "deferred" if proc.children(state.main_pid) else "restart"
    if changed and wanted.on_change != "none":
        return wanted.on_change
    return "" if state.enabled else "enable"


def activate(wanted: ServiceSpec, before: ServiceState, action: str) -> None:
    """Do ``action`` (of :func:`required_action`), enable the service, and confirm that it runs as now configured.

    :raises ServiceError: with the last lines of the service's journal and log.
    """
    began = time.time()
    log_size = wanted.log.stat().st_size if wanted.log and wanted.log.exists() else 0
    try:
        if not before.enabled:
            run(["systemctl", "enable", unit_name(wanted.name)])
        if action in {"start", "reload", "restart"}:
            old_workers = set(_serving_workers(before.main_pid))
            listener = [wanted.listener] if wanted.listener and action == "restart" else []
            run(["systemctl", action, *listener, unit_name(wanted.name)], timeout=wanted.timeout)
            _confirm(wanted, old_workers)
    except (CommandError, ServiceError) as error:
        raise ServiceError(f"{error}\n{_last_words(wanted, began, log_size)}".rstrip()) from error


def _confirm(wanted: ServiceSpec, old_workers: set[int]) -> None:
    """Wait until the service is active, answers on its socket, and no worker of before takes new connections."""
    give_up = time.monotonic() + CONFIRM_SECONDS
    while missing := next(_missing(wanted, old_workers), ""):
        if time.monotonic() > give_up:
            raise ServiceError(f"{wanted.name}: {missing} within {CONFIRM_SECONDS:g} s")
        time.sleep(0.05)


def _missing(wanted: ServiceSpec, old_workers: set[int]) -> Iterator[str]:
    state = query(wanted.name)
    if not state.active:
        yield "it was not active"
    elif wanted.socket and not _accepts(wanted.socket):
        yield f"{wanted.socket} did not accept a connection"
    elif wanted.udp_port and not _has_udp_port(state.main_pid, wanted.udp_port):
        yield f"it did not get UDP port {wanted.udp_port}"
    elif old_workers:
        # `systemctl reload nginx` only sends a signal; the master then either starts new workers and tells the old ones
        # to shut down, or logs an error and keeps the old ones.
        workers = set(_serving_workers(state.main_pid))
        if not workers or workers & old_workers:
            yield "its workers were not replaced by new ones"


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _has_udp_port(pid: int, port: int) -> bool:
    """Tell whether a process has a UDP socket of that port: proc(5), /proc/net/udp."""
    rows = [line.split() for path in Path("/proc/net").glob("udp*") for line in path.read_text().splitlines()[1:]]
    inodes = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(f":{port:04X}")}
    with contextlib.suppress(OSError):
        return any(str(file.readlink()) in inodes for file in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _serving_workers(pid: int) -> Iterator[int]:
    """Yield the children of a master that are workers taking new connections.

    nginx says by their titles which are; of HAProxy's, one that is replaced is named in the arguments of its successor (-sf).
    """
    titles = {child: _title(child) for child in (proc.children(pid) if pid else ())}
    replaced = {word for title in titles.values() for word in title.partition(" -sf ")[2].split()}
    for child, title in titles.items():
        nginx = "worker process" in title and "shutting down" not in title
        if nginx or ("haproxy " in title and str(child) not in replaced):
            yield child


def _title(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _last_words(wanted: ServiceSpec, began: float, log_size: int) -> str:
    """Return what the journal has of the service since ``began``, and what its log has after its first bytes."""
    words = ""
    # An error is being reported here: it must not be hidden by another one.
    with contextlib.suppress(CommandError):
        units = [f"--unit={unit_name(name)}" for name in (wanted.name, wanted.listener) if name]
        query = [*units, "--since", f"@{began - 1:.0f}", "--no-pager", "--output", "cat"]
        words = run(["journalctl", *query]).output
    if wanted.log:
        with contextlib.suppress(OSError), wanted.log.open(errors="replace") as log:
            log.seek(log_size)
            words += log.read()
    return last_lines("\n".join(dict.fromkeys(words.splitlines())))  # nginx says five times that an address is in use
