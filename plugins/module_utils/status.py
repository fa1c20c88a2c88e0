"""What an app is doing on a host: read from its slots, its certificate, supervisord and the kernel, as they are now."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils import proc, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.certificate_store import ALARM_DAYS, Place, date, newer, read_pair
from ansible_collections.funnel.tornado.plugins.module_utils.certificates import APP_SET, Request
from ansible_collections.funnel.tornado.plugins.module_utils.generation import Generation
from ansible_collections.funnel.tornado.plugins.module_utils.layout import SLOTS, Layout, port_of
from ansible_collections.funnel.tornado.plugins.module_utils.limits import open_files_of
from ansible_collections.funnel.tornado.plugins.module_utils.sockets import ask, connections

#: Bytes that are read of a file of starts: tens of thousands of lines.
STARTS_SIZE = 1_000_000

#: Headings of the table. ``conn`` are open connections; ``files`` the open ones of those allowed; ``MiB`` the resident memory.
HEADINGS = ("app", "slot", "process", "release", "state", "pid", "uptime", "restarts", "conn", "files", "MiB", "health")

#: Headings of the table of certificates. ``days`` are those that are left of it.
CERTIFICATE_HEADINGS = ("app", "certificate", "issuer", "until", "days", "names")


@dataclass(frozen=True)
class Process:
    """One process: ``uptime`` in seconds, ``rss`` in bytes; ``health`` is the status of its health path, 0 for no answer.

    ``live`` tells whether its slot is the one that is served. ``worker`` is the process type of one that is not served: it has
    no connections and no health.
    """

    app: str
    slot: str
    live: bool
    worker: str
    process: int
    release: str
    state: str
    pid: int
    uptime: int
    restarts: int
    connections: int
    open_files: int
    open_files_limit: int
    rss: int
    health: int

    @property
    def well(self) -> bool:
        """Whether it runs and, if it is served, answers its health path with success."""
        return self.state == "RUNNING" and (bool(self.worker) or 200 <= self.health < 400)

    @property
    def name(self) -> str:
        """What it is called within its slot."""
        return f"{self.worker}.{self.process}" if self.worker else str(self.process)

    def row(self) -> tuple[str, ...]:
        """Return what the table shows."""
        slot = f"{self.slot}{'' if self.live else ' (not live)'}"
        files = f"{self.open_files}/{self.open_files_limit}"
        uptime = time.strftime("%H:%M:%S", time.gmtime(self.uptime % 86400))
        days = f"{self.uptime // 86400}d " if self.uptime >= 86400 else ""
        megabytes = f"{self.rss / 2**20:.0f}"
        health = "" if self.worker else str(self.health or "no answer")
        cells = (self.app, slot, self.name, self.release, self.state, self.pid, days + uptime, self.restarts, self.connections)
        return (*map(str, cells), files, megabytes, health)


def look(layout: Layout, server: Any) -> Iterator[Process]:
    """Yield the processes of every slot of an app.

    :raises SupervisorError: when supervisord does not answer.
    """
    for slot in SLOTS:
        release = layout.slot_release(slot)
        if release is None:
            continue
        generation = Generation(layout, slot, release, server)
        for group in supervisord.groups(server, layout.group(slot)):
            worker = group.removeprefix(layout.group(slot)).removeprefix(".")
            for info in supervisord.process_infos(server, group):
                with contextlib.suppress(OSError):  # it has ended, or its slot has been cleared, since we asked
                    yield _process(generation, worker, info)


def abandoned(names: list[str], base: Path = Path("/")) -> list[str]:
    """Return the apps that this host has and that are none of ``names``."""
    found = (path.parent.name for path in base.glob("srv/*/history.json"))
    return sorted(app for app in found if app not in names)


def in_maintenance(layouts: Sequence[Layout]) -> dict[str, str]:
    """Return the apps of which nginx says that they are being worked on, and since when."""
    signs = {layout.app: layout.maintenance for layout in layouts if layout.maintenance.exists()}
    return {app: time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(sign.stat().st_mtime)) for app, sign in signs.items()}


@dataclass(frozen=True)
class CertificateState:
    """The certificate of an app: who it is to be from, and what is there; ``days`` are left until it ends.

    ``kind`` is C(temporary) while an ACME server has not issued any, and C(missing) without one that can be used. ``lacking``
    are domains that it is not for; it is ``served`` when nginx has read it.
    """

    app: str
    kind: str
    names: list[str]
    issuer: str
    until: str
    days: int
    lacking: list[str] = field(default_factory=list)
    served: bool = True

    @property
    def problem(self) -> str:
        """What is not as it has to be."""
        if self.kind == "missing":
            return f"{self.app}: its certificate is missing, or its key; site.yml makes one"
        if self.kind == "temporary":
            return f"{self.app}: its certificate is a temporary one; site.yml says why none was issued"
        if self.lacking:
            return f"{self.app}: its certificate is not for {', '.join(self.lacking)}; site.yml says why there is no other"
        if not self.served:
            return f"{self.app}: nginx still serves the certificate of before; nginx -t says why, site.yml reloads it"
        if self.days < ALARM_DAYS:
            return f"{self.app}: its certificate ends on {self.until}, in {self.days} days; it should have been renewed"
        return ""

    def row(self) -> tuple[str, ...]:
        """Return what the table shows."""
        if self.kind == "missing":
            return (self.app, self.kind, "", "", "", "")
        return (self.app, self.kind, self.issuer, self.until, str(self.days), ", ".join(self.names))


def certificates(wanted: Mapping[str, Request], read_at: float, base: Path = Path("/")) -> Iterator[CertificateState]:
    """Yield the certificate of each app that has one, or has to have one.

    :arg read_at: when nginx last read its files, in unix time.
    :raises CommandError: when the host has no openssl.
    """
    for app, one in wanted.items():
        place = Place(APP_SET, app, base)
        found = read_pair(place)
        if found is None:
            yield CertificateState(app, "missing", [], "", "", 0)
            continue
        kind = "temporary" if one.provider == "acme" and place.temporary else one.provider
        yield CertificateState(
            app=app,
            kind=kind,
            names=sorted(found.names),
            issuer=found.issuer,
            until=date(found.ends),
            days=found.days(time.time()),
            lacking=found.missing(one.domains),
            served=not newer([place.chain], read_at),
        )


def table(headings: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    """Return the rows as lines of a table; nothing without any."""
    if not rows:
        return []
    cells = [tuple(headings), *rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells]


def _process(generation: Generation, worker: str, info: supervisord.ProcessInfo) -> Process:
    layout, slot, number = generation.layout, generation.slot, int(info.name)
    alive = info.pid > 0 and proc.stat(info.pid) is not None
    directory = proc.PROC / str(info.pid)
    return Process(
        app=layout.app,
        slot=slot,
        live=layout.live_slot() == slot,
        worker=worker,
        process=number,
        release=generation.release,
        state=info.state,
        pid=info.pid,
        uptime=proc.uptime(info.pid) if alive else 0,
        restarts=_restarts(layout.starts(slot, number, worker)),
        connections=0 if worker else _connections(generation, number, info.pid),
        open_files=len(list((directory / "fd").iterdir())) if alive else 0,
        open_files_limit=open_files_of(info.pid)[0] if alive else 0,
        rss=int((directory / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if alive else 0,
        health=0 if worker else _health(generation, number),
    )


def _restarts(starts: Path) -> int:
    """Return how often a process was started after the first time: the launcher adds a line to this file each time.

    The directory is the app's, which could put anything there, such as a pipe that nobody writes to.
    """
    try:
        with os.fdopen(os.open(starts, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK), "rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            return max(file.read(STARTS_SIZE).count(b"\n") - 1, 0) if regular else 0
    except OSError:
        return 0


def _connections(generation: Generation, number: int, pid: int) -> int:
    first = generation.description["port"]
    ports = {port_of(first, generation.slot, number)} if first else set()
    # The runner binds its socket to a hidden name made of its pid; other programs bind it to its own.
    return connections(generation.layout.run(generation.slot), ports, {f".{pid}", f"{number}.sock"})


def _health(generation: Generation, number: int) -> int:
    try:
        return ask(generation.address(number), generation.description["health"]["path"], generation.description["host"]).status
    except OSError:
        return 0
