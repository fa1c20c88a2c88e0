"""What the apps of a host are doing: read from their slots and certificates, supervisord and the kernel, as they are now."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import ReleaseManifest, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import count_connections, probe
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import history, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import (
    EXPIRY_WARNING_DAYS,
    CertificateFiles,
    format_date,
    is_any_newer,
    read_pair,
)

#: Bytes that are read of a file of starts: tens of thousands of lines.
STARTS_SIZE = 1_000_000

#: Bytes that a file may have which says how an environment was made, and entries that are looked at in its packages.
ENVIRONMENT_SIZE = 65_536
PACKAGES = 20_000

#: Processes that are asked at the same time: those that do not answer hold up few others.
ASKED_AT_ONCE = 64

#: How the files of an app fail that are not what they should be.
UNREADABLE = (AttributeError, KeyError, TypeError, ValueError)

#: How the services that read certificates say what they cannot read.
SELF_CHECKS = {"nginx": "nginx -t", "haproxy": "haproxy -c -f /etc/haproxy/haproxy.cfg"}

#: Digits of a hash that hosts are compared by.
CONTENT_DIGITS = 12

#: Fields of a release's manifest that may differ between hosts with the same desired state.
HOSTS_OWN = frozenset({"id", "processes", "built", "by"})


@dataclass(frozen=True)
class App:
    """What is served of an app: the release, since when and by whom, and versions of what it runs with.

    ``content`` is a hash of all that makes the release, but for the host's Python and number of CPUs: hosts that were told the
    same of the app, and have another one, serve something else. ``processes`` are those that it is to have by its build;
    ``maintenance`` says since when nginx answers that it is being worked on, if it does. Without a release all is empty, and
    ``awaited`` tells whether it is to be pushed.
    """

    app: str
    release: str = ""
    revision: str = ""
    content: str = ""
    slot: str = ""
    since: str = ""
    by: str = ""
    processes: int = 0
    tornado: str = ""
    python: str = ""
    maintenance: str = ""
    awaited: bool = False

    @property
    def problem(self) -> str:
        """What is not as it has to be."""
        return "" if self.release or self.awaited else f"{self.app}: is not served"


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
    def problem(self) -> str:
        """What is not as it has to be: it runs and, if it is served, answers its health path with success."""
        well = self.state == "RUNNING" and (self.worker or 200 <= self.health < 400)
        return "" if well else f"{self.app}: process {self.slot}/{self.name} is {self.state}, health {self.health}"

    @property
    def name(self) -> str:
        """What it is called within its slot."""
        return f"{self.worker}.{self.process}" if self.worker else str(self.process)


@dataclass(frozen=True)
class Failure:
    """An app, or a part of it, that cannot be read."""

    problem: str


def look(layouts: Sequence[Layout], server: Any) -> Iterator[Process | Failure]:
    """Yield the processes of every slot of the apps.

    All are asked side by side, and what cannot be read of one app costs nothing but that.

    :raises SupervisorError: when supervisord does not answer.
    """
    with ThreadPoolExecutor(ASKED_AT_ONCE) as pool:
        asked: list[tuple[Layout, Future[Process]]] = []
        for layout in layouts:
            try:
                asked += [(layout, pool.submit(_process, *one)) for one in _supervised(layout, server)]
            except (OSError, *UNREADABLE) as error:
                yield Failure(f"{layout.app}: its processes cannot be read: {error}")
        for layout, answer in asked:
            try:
                with contextlib.suppress(OSError):  # it has ended, or its slot has been cleared, since we asked
                    yield answer.result()
            except UNREADABLE as error:
                yield Failure(f"{layout.app}: one of its processes cannot be read: {error}")


def _supervised(layout: Layout, server: Any) -> Iterator[tuple[ProcessGroup, str, supervisord.ProcessInfo]]:
    """Yield the supervised processes of an app, each with its process group and, for a worker, its process type."""
    for slot in SLOTS:
        release = layout.slot_release(slot)
        if release is None:
            continue
        process_group = ProcessGroup(layout, slot, release, server)
        for group in supervisord.slot_groups(server, layout.group(slot)):
            worker = group.removeprefix(layout.group(slot)).removeprefix(".")
            for info in supervisord.process_infos(server, group):
                yield process_group, worker, info


def abandoned(names: list[str], base: Path = Path("/")) -> list[str]:
    """Return the apps that this host has and that are none of ``names``."""
    found = (path.parent.name for path in base.glob("srv/*/history.json"))
    return sorted(app for app in found if app not in names)


def look_at_apps(layouts: Sequence[Layout]) -> Iterator[App | Failure]:
    """Yield what is served of each app, or why it cannot be read."""
    for layout in layouts:
        try:
            yield look_at_app(layout)
        except (OSError, *UNREADABLE) as error:
            yield Failure(f"{layout.app}: what is served of it cannot be read: {error}")


def look_at_app(layout: Layout) -> App:
    """Return what is served of an app."""
    maintenance = iso(layout.maintenance.stat().st_mtime) if layout.maintenance.exists() else ""
    release, slot = layout.live_release(), layout.live_slot()
    if release is None or slot is None:
        return App(layout.app, maintenance=maintenance, awaited=policy.entry(layout.app).exists())
    manifest = read_manifest(layout, release)
    served = next((entry for entry in reversed(history.read(layout)) if entry.release == release), None)
    environment = layout.environments / (layout.release(release) / "venv").readlink().name
    return App(
        app=layout.app,
        release=release,
        revision=manifest.revision,
        content=content(layout, manifest),
        slot=slot,
        since=served.at if served else "",
        by=served.by if served else "",
        processes=manifest.processes,
        tornado=_tornado_version(layout, environment),
        python=_python_version(layout, environment),
        maintenance=maintenance,
    )


def content(layout: Layout, manifest: ReleaseManifest) -> str:
    """Return a hash of what a release is on every host that was told the same of its app."""
    directory = layout.release(manifest.id)
    told = {key: value for key, value in asdict(manifest).items() if key not in HOSTS_OWN}
    programs = [directory / "launch.py", *directory.glob("runner.py"), *sorted(directory.glob("runner/*.py"))]
    files = [path.read_text() for path in (directory / "secrets.json", *programs)]
    return hashlib.sha256(json.dumps([told, files], sort_keys=True).encode()).hexdigest()[:CONTENT_DIGITS]


def _tornado_version(layout: Layout, environment: Path) -> str:
    """Return the version of Tornado that an environment has by the names of its packages, which a build can choose."""
    with contextlib.suppress(OSError, tree.TreeError):
        for python in tree.names(environment / "lib", PACKAGES, trusted=layout.environments):
            packages = environment / "lib" / python / "site-packages"
            for name in tree.names(packages, PACKAGES, trusted=layout.environments):
                if found := re.fullmatch(r"tornado-([\w.+!-]{1,40})\.dist-info", name, re.ASCII):
                    return found[1]
    return ""


def _python_version(layout: Layout, environment: Path) -> str:
    """Return the version that an environment was made with, from the file that says so (the module venv's documentation)."""
    try:
        data = tree.read(environment / "pyvenv.cfg", ENVIRONMENT_SIZE, trusted=layout.environments)
    except (OSError, tree.TreeError):
        return ""
    lines = data.decode(errors="replace").splitlines()
    settings = {key.strip(): value.strip() for key, _colon, value in (line.partition("=") for line in lines)}
    found = settings.get("version_info") or settings.get("version", "")
    return found if re.fullmatch(r"[\w.+]{1,40}", found, re.ASCII) else ""


def iso(moment: float) -> str:
    """Return a unix time in the format of ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


@dataclass(frozen=True)
class CertificateState:
    """The certificate of an app: who it is to be from, and what is there; ``days`` are left until it ends.

    ``kind`` is C(temporary) while an ACME server has not issued any, and C(missing) without one that can be used. ``lacking``
    are domains that it is not for; ``stale`` are services that have not read it yet.
    """

    app: str
    kind: str
    names: list[str]
    issuer: str
    until: str
    days: int
    lacking: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """What is not as it has to be."""
        if self.kind == "missing":
            return f"{self.app}: its certificate is missing, or its key; site.yml makes one"
        if self.kind == "temporary":
            return f"{self.app}: its certificate is a temporary one; site.yml says why none was issued"
        if self.lacking:
            return f"{self.app}: its certificate is not for {', '.join(self.lacking)}; site.yml says why there is no other"
        if self.stale:
            which, why = " and ".join(self.stale), " and ".join(SELF_CHECKS[name] for name in self.stale)
            return f"{self.app}: {which} still serves the certificate of before; {why} says why, site.yml reloads it"
        if self.days < EXPIRY_WARNING_DAYS:
            return f"{self.app}: its certificate ends on {self.until}, in {self.days} days; it should have been renewed"
        return ""


def certificates(
    wanted: Mapping[str, CertificateRequest], of: str, readers: Mapping[str, float], base: Path = Path("/")
) -> Iterator[CertificateState]:
    """Yield the certificate of each app that has one, or has to have one.

    :arg of: the set that they are in.
    :arg readers: the services that read them, and when each last did, in unix time.
    :raises CommandError: when the host has no openssl.
    """
    for app, one in wanted.items():
        place = CertificateFiles(of, app, base)
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
            until=format_date(found.expires),
            days=found.days_left(time.time()),
            lacking=found.missing(one.domains),
            stale=[name for name, read_at in readers.items() if is_any_newer([place.chain], read_at)],
        )


def _process(process_group: ProcessGroup, worker: str, info: supervisord.ProcessInfo) -> Process:
    layout, slot, number = process_group.layout, process_group.slot, int(info.name)
    alive = info.pid > 0 and proc.stat(info.pid) is not None
    return Process(
        app=layout.app,
        slot=slot,
        live=layout.live_slot() == slot,
        worker=worker,
        process=number,
        release=process_group.release,
        state=info.state,
        pid=info.pid,
        uptime=proc.uptime(info.pid) if alive else 0,
        restarts=_restarts(layout, layout.starts(slot, number, worker)),
        connections=0 if worker else _connections(process_group, number, info.pid),
        open_files=proc.count_open_files(info.pid),
        open_files_limit=open_file_limits(info.pid)[0] if alive else 0,
        rss=proc.rss(info.pid),
        health=0 if worker else _health(process_group, number),
    )


def _restarts(layout: Layout, starts: Path) -> int:
    """Return how often a process was started after the first time: the launcher adds a line to this file each time.

    The directory is the app's, which could put anything there, such as a pipe that nobody writes to.
    """
    try:
        return max(tree.read_end(starts, STARTS_SIZE, trusted=layout.slots).count(b"\n") - 1, 0)
    except (OSError, tree.TreeError):
        return 0


def _connections(process_group: ProcessGroup, number: int, pid: int) -> int:
    port = process_group.port(number)
    ports = {port} if port else set()
    # The runner binds its socket to a hidden name made of its pid; other programs bind it to its own.
    return count_connections(process_group.layout.run(process_group.slot), ports, {f".{pid}", f"{number}.sock"})


def _health(process_group: ProcessGroup, number: int) -> int:
    try:
        return probe(process_group.address(number), process_group.manifest.health.path, process_group.manifest.host).status
    except OSError:
        return 0
