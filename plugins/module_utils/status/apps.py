"""Status of the apps of a host: live releases, processes and certificates, from slots, supervisord and the kernel."""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.building.manifest import content_hash, read_manifest
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc, tree
from ansible_collections.funnel.tornado.plugins.module_utils.core.layout import SLOTS, Layout
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.core.sockets import count_connections
from ansible_collections.funnel.tornado.plugins.module_utils.deploy import front_door_check, history, supervisord
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.health import MAX_CONCURRENT_CHECKS, ask
from ansible_collections.funnel.tornado.plugins.module_utils.deploy.process_group import ProcessGroup
from ansible_collections.funnel.tornado.plugins.module_utils.push import policy
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd
from ansible_collections.funnel.tornado.plugins.module_utils.tls import certbot, lineage_files, renewal_information
from ansible_collections.funnel.tornado.plugins.module_utils.tls.certificate import CertificateRequest
from ansible_collections.funnel.tornado.plugins.module_utils.tls.issuance import last_failure
from ansible_collections.funnel.tornado.plugins.module_utils.tls.store import CertificateFiles, is_any_newer
from ansible_collections.funnel.tornado.plugins.module_utils.tls.x509 import format_date, read_pair

#: Maximum number of bytes read from a file of process starts: tens of thousands of lines.
MAX_STARTS_SIZE = 1_000_000

#: Maximum size of an environment's pyvenv.cfg, and number of directory entries read of its packages.
MAX_CONFIG_SIZE = 65_536
MAX_PACKAGES = 20_000

#: Errors raised by malformed files of an app.
MALFORMED = (AttributeError, KeyError, TypeError, ValueError)

#: Commands by which the services that read certificates report an invalid configuration.
CONFIGURATION_CHECKS = {"nginx": "nginx -t", "haproxy": "haproxy -c -f /etc/haproxy/haproxy.cfg"}


@dataclass(frozen=True)
class AppStatus:
    """The live release of an app; empty fields without one.

    ``content`` is a hash of the release without the host's Python and number of CPUs: with the same desired state, it is the same
    on all hosts. ``since`` and ``by`` are those of the deploy; ``processes`` is the number that the build configured; ``undone``
    are the releases that were rolled back or undone in favor of this one, with the reasons; ``maintenance`` is the time since
    which the app is in maintenance mode; ``awaited`` marks an app that awaits its first push;
    ``front_door`` is why clients do not reach the app.
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
    undone: list[str] = field(default_factory=list)
    maintenance: str = ""
    awaited: bool = False
    front_door: str = ""

    @property
    def problem(self) -> str:
        """The problem, if any, in words."""
        if self.front_door:
            return f"{self.app}: {self.front_door}"
        if self.release or self.awaited:
            return ""
        return f"{self.app}: has no live release{''.join(f'; {reason}' for reason in self.undone[:1])}"


@dataclass(frozen=True)
class ProcessStatus:
    """A process: ``uptime`` in seconds, ``rss`` in bytes; ``health`` is the HTTP status of the health check, 0 for no answer.

    ``rss`` is the sum over the process and its children; ``open_files`` is that of the one that has the most open.
    ``accepted`` is whether ``health.status`` contains it. ``live`` is true in the live slot. ``worker`` is the process type of a
    worker, which has no connections and no health check.
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
    accepted: bool = False

    @property
    def problem(self) -> str:
        """The problem of a process that does not run or, unless it is a worker, fails its health check."""
        healthy = self.state == "RUNNING" and (self.worker or self.accepted)
        return "" if healthy else f"{self.app}: process {self.slot}/{self.name} is {self.state}, health {self.health}"

    @property
    def name(self) -> str:
        """The name of the process within its slot."""
        return f"{self.worker}.{self.process}" if self.worker else str(self.process)


@dataclass(frozen=True)
class Failure:
    """An app or a process whose status cannot be determined."""

    problem: str


def process_statuses(layouts: Sequence[Layout], server: Any) -> Iterator[ProcessStatus | Failure]:
    """Yield the status of all processes in all slots of the apps, checked concurrently; an app that fails affects no other.

    :raises SupervisorError: when supervisord does not answer.
    """
    members = proc.process_groups()
    with ThreadPoolExecutor(MAX_CONCURRENT_CHECKS) as pool:
        checks: list[tuple[Layout, Future[ProcessStatus]]] = []
        for layout in layouts:
            try:
                checks += [(layout, pool.submit(_process_status, *process, members)) for process in _supervised(layout, server)]
            except (OSError, *MALFORMED) as error:
                yield Failure(f"{layout.app}: cannot read its processes: {error}")
        for layout, check in checks:
            try:
                with contextlib.suppress(OSError):  # the process has ended, or its slot was cleared, meanwhile
                    yield check.result()
            except MALFORMED as error:
                yield Failure(f"{layout.app}: cannot read one of its processes: {error}")


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


def unlisted_apps(names: list[str], base: Path = Path("/")) -> list[str]:
    """Return the apps of this host that are not in ``names``."""
    return [app for app in live_apps(base) if app not in names]


def live_apps(base: Path = Path("/")) -> list[str]:
    """Return the apps of this host, sorted."""
    return sorted(path.parent.name for path in base.glob("srv/*/history.json"))


def app_statuses(layouts: Sequence[Layout]) -> Iterator[AppStatus | Failure]:
    """Yield the status of each app, or the reason why it cannot be read."""
    with ThreadPoolExecutor(MAX_CONCURRENT_CHECKS) as pool:
        yield from pool.map(_status_or_failure, layouts)


def _status_or_failure(layout: Layout) -> AppStatus | Failure:
    try:
        return app_status(layout)
    except (OSError, *MALFORMED) as error:
        return Failure(f"{layout.app}: cannot read its live release: {error}")


def app_status(layout: Layout) -> AppStatus:
    """Return the status of an app."""
    maintenance = iso_time(layout.maintenance.stat().st_mtime) if layout.maintenance.exists() else ""
    release, slot = layout.live_release(), layout.live_slot()
    undone = [f"release {entry.release}: {entry.reason}" for entry in history.recently_undone(layout)]
    if release is None or slot is None:
        awaited = policy.entry_file(layout.app).exists()
        return AppStatus(layout.app, undone=undone, maintenance=maintenance, awaited=awaited)
    manifest = read_manifest(layout, release)
    deployed = next((entry for entry in reversed(history.read(layout)) if entry.release == release), None)
    environment = layout.environments / (layout.release(release) / "venv").readlink().name
    return AppStatus(
        app=layout.app,
        release=release,
        revision=manifest.revision,
        content=content_hash(layout, manifest),
        slot=slot,
        since=deployed.at if deployed else "",
        by=deployed.by if deployed else "",
        processes=manifest.processes,
        tornado=_tornado_version(layout, environment),
        python=_python_version(layout, environment),
        undone=undone,
        maintenance=maintenance,
        front_door=front_door_check.problem(layout),
    )


def _tornado_version(layout: Layout, environment: Path) -> str:
    """Return the version of Tornado in an environment by its package directory, whose name a build controls."""
    with contextlib.suppress(OSError, tree.TreeError):
        for python in tree.names(environment / "lib", MAX_PACKAGES, trusted=layout.environments):
            packages = environment / "lib" / python / "site-packages"
            for name in tree.names(packages, MAX_PACKAGES, trusted=layout.environments):
                if found := re.fullmatch(r"tornado-([\w.+!-]{1,40})\.dist-info", name, re.ASCII):
                    return found[1]
    return ""


def _python_version(layout: Layout, environment: Path) -> str:
    """Return the version of Python in an environment, from its pyvenv.cfg, whose content a build controls."""
    try:
        data = tree.read(environment / "pyvenv.cfg", MAX_CONFIG_SIZE, trusted=layout.environments)
    except (OSError, tree.TreeError):
        return ""
    lines = data.decode(errors="replace").splitlines()
    settings = {key.strip(): value.strip() for key, _colon, value in (line.partition("=") for line in lines)}
    found = settings.get("version_info") or settings.get("version", "")
    return found if re.fullmatch(r"[\w.+]{1,40}", found, re.ASCII) else ""


def iso_time(seconds: float) -> str:
    """Return a unix time in ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


@dataclass(frozen=True)
class CertificateStatus:
    """The certificate of an app.

    ``kind`` is the provider, ``temporary`` until an ACME server issues the first certificate, or ``missing`` without a usable
    one; ``days`` are left until it expires, which is ``overdue`` if too few; ``lacking`` are domains that it does not cover;
    ``stale`` are services that have not loaded it; ``failure`` is that of the last order; ``renewal`` is the problem with
    its renewal.
    """

    app: str
    kind: str
    names: list[str]
    issuer: str
    until: str
    days: int
    lacking: list[str] = field(default_factory=list)
    stale: list[str] = field(default_factory=list)
    overdue: bool = False
    failure: str = ""
    renewal: str = ""

    @property
    def problem(self) -> str:
        """The problem, if any, in words."""
        cure = self.failure or "run site.yml to issue one or to see why that fails"
        if self.kind == "missing":
            return f"{self.app}: the certificate or its key is missing; run site.yml to create them"
        if self.kind == "temporary":
            return f"{self.app}: the certificate is temporary; {cure}"
        if self.lacking:
            return f"{self.app}: the certificate does not cover {', '.join(self.lacking)}; {cure}"
        if self.stale:
            services, checks = " and ".join(self.stale), " and ".join(CONFIGURATION_CHECKS[name] for name in self.stale)
            return f"{self.app}: {services} still serves the previous certificate; {checks} shows why, site.yml reloads it"
        if self.overdue:
            return f"{self.app}: the certificate expires on {self.until}, in {self.days} days; its renewal is overdue"
        if self.failure:
            return f"{self.app}: the certificate could not be replaced; {self.failure}"
        return f"{self.app}: {self.renewal}; run site.yml to replace the certificate" if self.renewal else ""


def certificate_statuses(
    requests: Mapping[str, CertificateRequest], set_name: str, readers: Mapping[str, float], base: Path = Path("/")
) -> Iterator[CertificateStatus]:
    """Yield the status of each requested certificate.

    :arg set_name: the set of the certificates.
    :arg readers: unix time of the last (re)load of each service that reads certificates.
    :raises CommandError: when the host has no openssl.
    """
    renewals = certbot.failed_renewals() if any(request.provider == "acme" for request in requests.values()) else {}
    for app, request in requests.items():
        files = CertificateFiles(set_name, app, base)
        found = read_pair(files.chain, files.key)
        if found is None:
            yield CertificateStatus(app, "missing", [], "", "", 0)
            continue
        kind = "temporary" if request.provider == "acme" and files.temporary else request.provider
        yield CertificateStatus(
            app=app,
            kind=kind,
            names=sorted(found.names),
            issuer=found.issuer,
            until=format_date(found.expires),
            days=found.days_left(time.time()),
            lacking=found.missing(request.domains),
            overdue=found.is_overdue(time.time()),
            failure=_last_failure(files, renewals) if request.provider == "acme" else "",
            renewal=_renewal_problem(files) if kind == "acme" else "",
            stale=[name for name, read_at in readers.items() if is_any_newer([files.chain], read_at)],
        )


def _last_failure(files: CertificateFiles, renewals: Mapping[str, str]) -> str:
    """Return the failure of the last order or renewal of a certificate in words; an empty string after a success."""
    failure, reason = last_failure(files.record), renewals.get(files.lineage.name)
    if failure or reason is None or is_any_newer([files.lineage.chain], systemd.query(certbot.SERVICE).loaded_at):
        return failure
    return f"its renewal failed: {reason} {certbot.TIMER} repeats it; {certbot.LOG} shows why"


def _renewal_problem(files: CertificateFiles) -> str:
    """Return the problem with the renewal of a certificate; an empty string if certbot.timer renews it in time."""
    if damage := lineage_files.damage(files.lineage):
        return damage
    path = renewal_information.record_path(files.lineage.name, files.base)
    if not path.exists():
        return ""
    return renewal_information.load(path).of(renewal_information.identify(files.lineage.chain)).problem(time.time())


def _process_status(
    process_group: ProcessGroup, worker: str, info: supervisord.ProcessInfo, members: Mapping[int, Sequence[int]]
) -> ProcessStatus:
    layout, slot, number = process_group.layout, process_group.slot, int(info.name)
    alive = info.pid > 0 and proc.stat(info.pid) is not None
    # supervisord makes each process the leader of a process group, which has its children, such as the program of a shell.
    pids = members.get(info.pid, [])
    health = 0 if worker else _health(process_group, number)
    return ProcessStatus(
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
        open_files=max(map(proc.count_open_files, pids), default=0),
        open_files_limit=open_file_limits(info.pid)[0] if alive else 0,
        rss=sum(map(proc.rss, pids)),
        health=health,
        accepted=process_group.manifest.health.accepts(health),
    )


def _restarts(layout: Layout, starts: Path) -> int:
    """Return how often a process was restarted; the launcher appends a line to the file at each start.

    The app owns the directory and can replace the file, for instance by a pipe that would block a reader.
    """
    try:
        return max(tree.read_end(starts, MAX_STARTS_SIZE, trusted=layout.slots).count(b"\n") - 1, 0)
    except (OSError, tree.TreeError):
        return 0


def _connections(process_group: ProcessGroup, number: int, pid: int) -> int:
    port = process_group.port(number)
    ports = {port} if port else set()
    # The runner binds its socket to a hidden name with its PID; other programs bind the final name.
    return count_connections(process_group.layout.run(process_group.slot), ports, {f".{pid}", f"{number}.sock"})


def _health(process_group: ProcessGroup, number: int) -> int:
    try:
        return ask(process_group, number).status
    except OSError:
        return 0
