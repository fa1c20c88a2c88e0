"""Status of a host apart from its apps: resources, services, HAProxy servers and floating IPs."""

from __future__ import annotations

import ipaddress
import os
import platform
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ansible_collections.funnel.tornado.plugins.module_utils.backing import mongodb_client
from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    CLIENT_PORT,
    Client,
    EtcdError,
    UnreachableError,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core import proc
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import run
from ansible_collections.funnel.tornado.plugins.module_utils.core.proc import open_file_limits
from ansible_collections.funnel.tornado.plugins.module_utils.network.keepalived import LOOPBACK, interfaces
from ansible_collections.funnel.tornado.plugins.module_utils.sites import haproxy_runtime
from ansible_collections.funnel.tornado.plugins.module_utils.system import packages, reboot, systemd

#: The services of a fleet and the packages that provide them; a program may also be installed without a package.
PACKAGES = {
    "etcd": "etcd-server",
    "haproxy": "haproxy",
    "keepalived": "keepalived",
    "mongod": "mongodb-org-server",
    "nginx": "nginx",
    "rsyslog": "rsyslog",
    "supervisor": "supervisor",
}

#: Services whose worker processes count as the service; the children of supervisord are apps.
WITH_WORKERS = frozenset({"haproxy", "nginx"})

#: Directories to which releases, logs and databases are written.
DATA_DIRECTORIES = ("/", "/srv", "/var", "/var/lib", "/var/log")

#: Free bytes below which a disk is a problem. A release with its environment takes some hundred MiB, as does a day of logs.
MIN_FREE = 1 << 30


#: Seconds by which the clocks of a host and the controller may differ: more than the module needs to start.
MAX_CLOCK_DIFFERENCE = 60


@dataclass(frozen=True)
class MachineStatus:
    """Versions and resources of a host; times in seconds, sizes in bytes.

    ``distribution`` includes the point release; ``load`` is the average of the last minute; ``disk`` is the one of
    `DATA_DIRECTORIES` with the least free space; ``backlog`` is the maximum of pending connections of a listener; ``reboot``
    lists the reasons to reboot.
    """

    distribution: str
    kernel: str
    python: str
    cpus: int
    load: float
    memory: int
    memory_free: int
    disk: str
    disk_size: int
    disk_free: int
    backlog: int
    uptime: int
    reboot: list[str] = field(default_factory=list)

    @property
    def problem(self) -> str:
        """The problem, if any, in words."""
        if self.disk_free >= MIN_FREE:
            return ""
        return f"{self.disk} has only {self.disk_free >> 20} MiB left; releases, logs and databases may run out of space"


def machine_status(base: Path = Path("/")) -> MachineStatus:
    """Return the versions and resources of this host."""
    memory = dict(
        re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", (base / "proc/meminfo").read_text(encoding="utf-8"), re.MULTILINE)
    )
    disks = {name: shutil.disk_usage(base / name.lstrip("/")) for name in DATA_DIRECTORIES if (base / name.lstrip("/")).is_dir()}
    fullest = min(disks, key=lambda name: disks[name].free)
    return MachineStatus(
        distribution=_distribution(base),
        kernel=platform.release(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        memory=int(memory["MemTotal"]) << 10,
        memory_free=int(memory["MemAvailable"]) << 10,
        disk=fullest,
        disk_size=disks[fullest].total,
        disk_free=disks[fullest].free,
        backlog=int((base / "proc/sys/net/core/somaxconn").read_text(encoding="utf-8")),
        uptime=proc.uptime(1),
        reboot=list(reboot.reboot_reasons(base)),
    )


def clock_problem(controller: float, host: float) -> str:
    """Return the problem with the clock of the host, if any, in words.

    >>> clock_problem(1000, 1060), clock_problem(1000, 100)
    ('', "its clock is 900 s behind that of the controller; start a time service on both, such as systemd-timesyncd")
    """
    difference = round(host - controller)
    if abs(difference) <= MAX_CLOCK_DIFFERENCE:
        return ""
    direction = "ahead of" if difference > 0 else "behind"
    return (
        f"its clock is {abs(difference)} s {direction} that of the controller; start a time service on both, such as "
        "systemd-timesyncd"
    )


def _distribution(base: Path) -> str:
    """Return the name and version of the distribution, with the point release of Debian, which os-release(5) lacks."""
    distribution = packages.Distribution.of_host(base)
    if distribution.id == "ubuntu":
        return distribution.name
    return f"Debian {(base / 'etc/debian_version').read_text(encoding='utf-8').strip()}"


@dataclass(frozen=True)
class ServiceStatus:
    """A service that must run; ``uptime`` in seconds, ``rss`` in bytes.

    ``open_files`` and its limit are those of the process with the most open files. ``role`` is the role in a cluster, such as
    ``primary``; ``problem`` includes problems with that role.
    """

    name: str
    version: str
    active: bool
    pid: int = 0
    uptime: int = 0
    open_files: int = 0
    open_files_limit: int = 0
    rss: int = 0
    role: str = ""
    problem: str = ""


def service_statuses(names: Sequence[str], *, mongodb_port: int) -> list[ServiceStatus]:
    """Return the status of services in `PACKAGES`.

    :raises ServiceError: when systemd does not run this host.
    :raises CommandError: when the host has no dpkg.
    """
    versions = packages.installed_versions([PACKAGES[name] for name in names]) if names else {}
    return [_service_status(name, versions.get(PACKAGES[name], ""), mongodb_port) for name in names]


def _service_status(name: str, version: str, mongodb_port: int) -> ServiceStatus:
    state = systemd.query(name)
    if not state.active:
        return ServiceStatus(
            name, version, active=False, problem=f"{name}: is {'not running' if state.exists else 'not installed'}"
        )
    pid = state.main_pid
    processes = [pid, *(proc.children(pid) if name in WITH_WORKERS else [])]
    fullest = max(processes, key=proc.count_open_files)
    role, problem = _cluster_role(name, mongodb_port)
    return ServiceStatus(
        name=name,
        version=version or _program_version(pid),
        active=True,
        pid=pid,
        uptime=proc.uptime(pid),
        open_files=proc.count_open_files(fullest),
        open_files_limit=open_file_limits(fullest)[0],
        rss=sum(map(proc.rss, processes)),
        role=role,
        problem=f"{name}: {problem}" if problem else "",
    )


def _program_version(pid: int) -> str:
    """Return the version that a running program without a package prints."""
    found = re.search(r"\d+(\.\d+)+", run([str(proc.PROC / str(pid) / "exe"), "--version"], check=False).output)
    return found[0] if found else ""


def _cluster_role(name: str, mongodb_port: int) -> tuple[str, str]:
    """Return the role of a service in its cluster, and the problem with that role."""
    try:
        if name == "mongod":
            address = mongodb_client.local_address(mongodb_port)
            return mongodb_role(mongodb_client.hello(address, mongodb_client.PROBE_TIMEOUT))
        if name == "etcd":
            return etcd_role(_etcd_status())
    except (mongodb_client.MongodbError, EtcdError) as error:
        return "", str(error)
    return "", ""


def mongodb_role(reply: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role of a mongod by its reply to ``hello``, and the problem with it."""
    name = reply.get("setName")
    if name is None:
        return "alone", ""
    role = "primary" if reply.get("isWritablePrimary") else "secondary" if reply.get("secondary") else ""
    if not role:
        return "", f"is neither primary nor secondary of {name}"
    return role, "" if reply.get("primary") else f"sees no primary of {name}; is a majority of its members up?"


def etcd_role(reply: Mapping[str, Any]) -> tuple[str, str]:
    """Return the role of an etcd by its reply to ``maintenance/status``, and the problem with it."""
    if not int(reply.get("leader", 0)):
        return "", "sees no leader; is a majority of its members up?"
    if reply.get("isLearner"):
        return "learner", "is a learner without a vote; run site.yml to promote it"
    return "leader" if reply["leader"] == reply["header"]["member_id"] else "follower", ""


def _etcd_status() -> dict[str, Any]:
    # The request carries no secrets, so any certificate is accepted.
    secure, plain = (Client(f"{scheme}://127.0.0.1:{CLIENT_PORT}", insecure=True) for scheme in ("https", "http"))
    try:
        return secure.call("maintenance/status")
    except UnreachableError:
        return plain.call("maintenance/status")


#: The status of a server that only the inventory has, and of one that only HAProxy has.
MISSING, UNKNOWN = "missing", "unknown"


@dataclass(frozen=True)
class ServerStatus:
    """A server of HAProxy.

    ``status`` is that of HAProxy, such as ``UP``, ``DOWN`` or ``DRAIN``, or `MISSING` or `UNKNOWN`; ``check`` is the reason.
    """

    backend: str
    server: str
    status: str
    check: str = ""
    sessions: int = 0
    weight: int = 0

    @property
    def problem(self) -> str:
        """The problem, if any, in words."""
        if self.status.startswith(("UP", "no check")):
            return ""
        if self.status == MISSING:
            return f"haproxy: {self.backend} lacks the server {self.server} of the inventory; run site.yml to add it"
        if self.status == UNKNOWN:
            return f"haproxy: {self.backend} has a server {self.server} that is not in the inventory; run site.yml to remove it"
        reason = f", {self.check}" if self.status.startswith("DOWN") and self.check else ""
        return f"haproxy: server {self.server} of {self.backend} is {self.status}{reason}"


def server_statuses(backends: Mapping[str, Mapping[str, Any]]) -> list[ServerStatus]:
    """Return the servers of this host's HAProxy, and those that it lacks of the inventory's ``backends``.

    :raises HaproxyError: when it does not answer.
    """
    found = [
        ServerStatus(server["backend"], server["server"], server["status"], server["check"], server["sessions"], server["weight"])
        for server in haproxy_runtime.list_servers()
    ]
    return compare_servers(found, backends)


def compare_servers(found: Sequence[ServerStatus], backends: Mapping[str, Mapping[str, Any]]) -> list[ServerStatus]:
    """Return the servers with the status `UNKNOWN` for those that are not in the inventory's ``backends``, and missing ones.

    Servers of backends outside the inventory keep their status.
    """
    desired = {(name, server) for name, backend in backends.items() for server in backend["servers"]}
    present = {(server.backend, server.server) for server in found}
    compared = [
        replace(server, status=UNKNOWN)
        if server.backend in backends and (server.backend, server.server) not in desired
        else server
        for server in found
    ]
    return [*compared, *(ServerStatus(backend, server, MISSING) for backend, server in sorted(desired - present))]


@dataclass(frozen=True)
class FloatingIpStatus:
    """A floating IP, and whether this host holds it."""

    address: str
    held: bool
    problem: str = ""


def floating_ip_status(floating_ip: str) -> FloatingIpStatus:
    """Return the status of a floating IP, given with or without a prefix length.

    :raises CommandError: when the host has no iproute2.
    """
    address = ipaddress.ip_interface(floating_ip).ip
    # The loopback interface has the address while a handover to this host is in progress.
    own = {info["local"] for link in interfaces() if link.get("ifname") != LOOPBACK for info in link.get("addr_info", ())}
    return FloatingIpStatus(str(address), str(address) in own)
