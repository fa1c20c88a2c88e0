"""State of systemd services, and starts, reloads and restarts that are confirmed to have taken effect."""

from __future__ import annotations

import contextlib
import operator
import socket
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import poll

#: Directories of unit files, which systemd must reload instead of the service.
UNIT_DIRECTORIES = (Path("/etc/systemd/system"),)

#: Action after a change of the service's files. ``restart_if_idle`` restarts a supervisor only if it has no child processes.
OnChange = Literal["reload", "restart", "restart_if_idle", "none"]

#: Actions that also apply changes of the service's unit.
RESTARTING = frozenset({"restart", "restart_if_idle"})

#: Default timeout in seconds of a start or reload.
START_SECONDS = 120.0

#: Seconds within which a service must run with its new configuration.
CONFIRM_SECONDS = 10.0

#: When a unit last became active, and when its state last changed, including reloads: microseconds since boot.
_STARTED, _LOADED = "ActiveEnterTimestampMonotonic", "StateChangeTimestampMonotonic"


class ServiceError(Exception):
    """A service is missing, or did not start with its configuration. The message contains its last log lines."""


@dataclass(frozen=True)
class ServiceSpec:
    """How to apply changes to a service, and how to confirm that they took effect.

    ``log`` is the error log of a service that does not log to the journal. Once the service is ready, it accepts connections on
    the Unix socket ``socket`` and has bound ``udp_port``. ``listener`` is the socket unit that activates it. ``timeout`` limits a
    start or reload in seconds; the unit may set a shorter limit.
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
    """State of a unit; ``started_at`` and ``loaded_at`` (last start or reload) are Unix times."""

    exists: bool
    active: bool
    enabled: bool
    main_pid: int
    started_at: float
    loaded_at: float
    masked: bool = False


def unit_name(name: str) -> str:
    """Return the full name of a unit: a service unless the suffix differs."""
    return name if name.endswith((".service", ".timer", ".socket")) else f"{name}.service"


def query(name: str) -> ServiceState:
    """Return the state of a unit.

    :raises ServiceError: if systemd is not the init system of this host.
    """
    properties = ("LoadState", "ActiveState", "UnitFileState", "MainPID", _STARTED, _LOADED)
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
        main_pid=int(value.get("MainPID", 0)),  # timers have none
        started_at=booted + int(value[_STARTED]) / 1e6,
        loaded_at=booted + int(value[_LOADED]) / 1e6,
        masked=value["UnitFileState"] == "masked",  # an interrupted installation masks until the next boot: masked-runtime
    )


def masked_problem(name: str) -> str:
    """Return the message about a unit that the administrator has masked."""
    return f"{unit_name(name)} is masked, and so cannot start; systemctl unmask {unit_name(name)} allows it"


def age(state: ServiceState) -> float:
    """Return the seconds since a unit became active."""
    return time.time() - state.started_at


def required_action(service: ServiceSpec, state: ServiceState, *, changed: bool, listener_changed: bool = False) -> str:
    """Return the required action: ``start``, ``reload``, ``restart``, ``enable``, ``deferred`` or none (``""``).

    ``deferred``: the service has child processes that must not be restarted, so the change is applied at its next start.

    :arg listener_changed: systemd does not yet use the current version of its socket unit.
    :raises ServiceError: if the unit is masked.
    """
    if state.masked:
        raise ServiceError(masked_problem(service.name))
    if listener_changed:
        return "restart"
    if not state.active:
        return "start"
    if changed and service.on_change == "restart_if_idle":
        if not proc.children(state.main_pid):
            return "restart"
        return "deferred" if state.enabled else "enable"  # the next run finds the change that is still deferred
    if changed and service.on_change != "none":
        return service.on_change
    return "" if state.enabled else "enable"


def activate(service: ServiceSpec, before: ServiceState, action: str) -> None:
    """Perform ``action`` (see :func:`required_action`), enable the service, and confirm that the action took effect.

    :raises ServiceError: with the last lines of the service's journal and log.
    """
    started = time.time()
    log_size = service.log.stat().st_size if service.log and service.log.exists() else 0
    try:
        if not before.enabled:
            run(["systemctl", "unmask", "--runtime", unit_name(service.name)])  # of an interrupted installation
            run(["systemctl", "enable", unit_name(service.name)])
        if action in {"start", "reload", "restart"}:
            old_workers = set(_serving_workers(before.main_pid))
            listener = [service.listener] if service.listener and action == "restart" else []
            run(["systemctl", action, *listener, unit_name(service.name)], timeout=service.timeout)
            _confirm(service, old_workers)
    except (CommandError, ServiceError) as error:
        raise ServiceError(f"{error}\n{_last_log_lines(service, started, log_size)}".rstrip()) from error


def _confirm(service: ServiceSpec, old_workers: set[int]) -> None:
    """Wait until the service is active and ready, and none of its old workers accepts new connections."""
    problem = poll(lambda: _problem(service, old_workers), operator.not_, timeout=CONFIRM_SECONDS, interval=0.05)
    if problem:
        raise ServiceError(f"{service.name}: {problem} within {CONFIRM_SECONDS:g} s")


def _problem(service: ServiceSpec, old_workers: set[int]) -> str:
    state = query(service.name)
    if not state.active:
        return "it did not become active"
    if service.socket and not _accepts(service.socket):
        return f"{service.socket} did not accept a connection"
    if service.udp_port and not _has_udp_port(state.main_pid, service.udp_port):
        return f"it did not bind UDP port {service.udp_port}"
    # `systemctl reload nginx` only sends a signal: the master replaces the workers, or logs an error and keeps them.
    workers = set(_serving_workers(state.main_pid)) if old_workers else set()
    if old_workers and (not workers or workers & old_workers):
        return "its workers were not replaced"
    return ""


def _accepts(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(1.0)
        try:
            client.connect(str(path))
        except OSError:
            return False
        return True


def _has_udp_port(pid: int, port: int) -> bool:
    """Return whether a process has bound a UDP port, according to /proc/net/udp."""
    rows = [line.split() for path in Path("/proc/net").glob("udp*") for line in path.read_text(encoding="utf-8").splitlines()[1:]]
    inodes = {int(row[9]) for row in rows if row[1].endswith(f":{port:04X}")}
    return proc.holds_socket(pid, inodes)


def _serving_workers(pid: int) -> Iterator[int]:
    """Yield the worker processes of a master that accept new connections.

    Workers of nginx that shut down have another title; replaced workers of HAProxy are arguments (-sf) of their successors.
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


def _last_log_lines(service: ServiceSpec, since: float, log_size: int) -> str:
    """Return the last lines of the service's journal since a Unix time, and of its log after an offset."""
    text = ""
    with contextlib.suppress(CommandError):  # the original error must be reported
        units = [f"--unit={unit_name(name)}" for name in (service.name, service.listener) if name]
        text = run(["journalctl", *units, "--since", f"@{since - 1:.0f}", "--no-pager", "--output", "cat"]).output
    if service.log:
        with contextlib.suppress(OSError), service.log.open(encoding="utf-8", errors="replace") as log:
            log.seek(log_size)
            text += log.read()
    return last_lines("\n".join(dict.fromkeys(text.splitlines())))  # nginx repeats that an address is in use


def reload_units(paths: Iterable[Path]) -> None:
    """Reload the units of systemd if one of the changed files belongs to one."""
    if any(map(is_unit, paths)):
        run(["systemctl", "daemon-reload"])


def is_unit(path: Path) -> bool:
    """Return whether a file belongs to a systemd unit."""
    return any(path.is_relative_to(directory) for directory in UNIT_DIRECTORIES)
