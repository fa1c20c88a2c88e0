"""A host of the fleet beside its apps: what the machine is, and how the services do that have to run on it."""

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

#: What the services of the fleet are in, where it is Debian's or the vendor's package.
PACKAGES = {
    "etcd": "etcd-server",
    "haproxy": "haproxy",
    "keepalived": "keepalived",
    "mongod": "mongodb-org-server",
    "nginx": "nginx",
    "rsyslog": "rsyslog",
    "supervisor": "supervisor",
}

#: Services whose work is done by children of their main process; supervisord's children are the apps.
WITH_WORKERS = frozenset({"haproxy", "nginx"})

#: Directories that releases, logs and databases are written to.
WRITTEN = ("/", "/srv", "/var", "/var/lib", "/var/log")

#: Bytes that have to be free there. A release with its environment takes some hundred MiB, and so does a day of logs.
LEAST_FREE = 1 << 30


@dataclass(frozen=True)
class Machine:
    """What a host is: times in seconds, sizes in bytes.

    ``debian`` is its version of Debian, or the name of what it runs in its place; ``load`` is the average of the last minute;
    ``disk`` is the directory of `WRITTEN` whose file system has the least room; ``backlog`` connections may wait at a listener;
    ``reboot`` is why the host should be rebooted.
    """

    debian: str
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
        """What is not as it has to be."""
        if self.disk_free >= LEAST_FREE:
            return ""
        return f"{self.disk} has {self.disk_free >> 20} MiB left; a release, a log or a database may find no room"


def look_at_machine(base: Path = Path("/")) -> Machine:
    """Return what this host is."""
    memory = dict(re.findall(r"^(MemTotal|MemAvailable):\s+(\d+) kB", (base / "proc/meminfo").read_text(), re.MULTILINE))
    rooms = {name: shutil.disk_usage(base / name.lstrip("/")) for name in WRITTEN if (base / name.lstrip("/")).is_dir()}
    fullest = min(rooms, key=lambda name: rooms[name].free)
    return Machine(
        debian=_release(base),
        kernel=platform.release(),
        python=platform.python_version(),
        cpus=len(os.sched_getaffinity(0)),
        load=os.getloadavg()[0],
        memory=int(memory["MemTotal"]) << 10,
        memory_free=int(memory["MemAvailable"]) << 10,
        disk=fullest,
        disk_size=rooms[fullest].total,
        disk_free=rooms[fullest].free,
        backlog=int((base / "proc/sys/net/core/somaxconn").read_text()),
        uptime=proc.uptime(1),
        reboot=list(reboot.reboot_reasons(base)),
    )


def _release(base: Path) -> str:
    """Return what the host runs: of Debian the version with its point release, which os-release(5) does not have."""
    found = packages.Distribution.of_host(base)
    return found.name if found.id == "ubuntu" else (base / "etc/debian_version").read_text().strip()


@dataclass(frozen=True)
class Service:
    """A service that has to run; ``uptime`` in seconds, ``rss`` in bytes.

    ``open_files``, with the limit that goes with it, is that of its process that has the most. ``role`` is what it is among
    its like, such as ``primary``; ``problem`` what is not as it has to be with that.
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


def look_at_services(names: Sequence[str], *, mongodb_port: int) -> list[Service]:
    """Return how the services do that have to run on this host, of those in `PACKAGES`.

    :raises ServiceError: when systemd does not run this host.
    :raises CommandError: when the host has no dpkg.
    """
    versions = packages.installed_versions([PACKAGES[name] for name in names]) if names else {}
    return [_look_at_service(name, versions.get(PACKAGES[name], ""), mongodb_port) for name in names]


def _look_at_service(name: str, version: str, mongodb_port: int) -> Service:
    state = systemd.query(name)
    if not state.active:
        return Service(name, version, active=False, problem=f"{name}: is {'not running' if state.exists else 'not installed'}")
    pid = state.main_pid
    processes = [pid, *(proc.children(pid) if name in WITH_WORKERS else [])]
    fullest = max(processes, key=proc.count_open_files)
    role, problem = _member(name, mongodb_port)
    return Service(
        name=name,
        version=version or _own_version(pid),
        active=True,
        pid=pid,
        uptime=proc.uptime(pid),
        open_files=proc.count_open_files(fullest),
        open_files_limit=open_file_limits(fullest)[0],
        rss=sum(map(proc.rss, processes)),
        role=role,
        problem=f"{name}: {problem}" if problem else "",
    )


def _own_version(pid: int) -> str:
    """Return the version that a running program, which no package has, says to be."""
    found = re.search(r"\d+(\.\d+)+", run([str(proc.PROC / str(pid) / "exe"), "--version"], check=False).output)
    return found[0] if found else ""


def _member(name: str, mongodb_port: int) -> tuple[str, str]:
    """Return what a service is among its like on other hosts, and what is wrong with that."""
    try:
        if name == "mongod":
            address = mongodb_client.local_address(mongodb_port)
            return mongodb_role(mongodb_client.hello(address, mongodb_client.PROBE_TIMEOUT))
        if name == "etcd":
            return etcd_role(_etcd_status())
    except (mongodb_client.MongodbError, EtcdError) as error:
        return "", str(error)
    return "", ""


def mongodb_role(said: Mapping[str, Any]) -> tuple[str, str]:
    """Return what a mongod is by its answer to C(hello), and what is wrong with that."""
    name = said.get("setName")
    if name is None:
        return "alone", ""
    role = "primary" if said.get("isWritablePrimary") else "secondary" if said.get("secondary") else ""
    if not role:
        return "", f"is neither primary nor secondary of {name}"
    return role, "" if said.get("primary") else f"knows of no primary of {name}; are more than half of its members up?"


def etcd_role(said: Mapping[str, Any]) -> tuple[str, str]:
    """Return what an etcd is by its C(maintenance/status), and what is wrong with that."""
    if not int(said.get("leader", 0)):
        return "", "knows of no leader; are more than half of its members up?"
    if said.get("isLearner"):
        return "learner", "has no vote yet; site.yml gives it one"
    return "leader" if said["leader"] == said["header"]["member_id"] else "follower", ""


def _etcd_status() -> dict[str, Any]:
    # It is told no secrets: any certificate will do.
    secure, plain = (Client(f"{scheme}://127.0.0.1:{CLIENT_PORT}", insecure=True) for scheme in ("https", "http"))
    try:
        return secure.call("maintenance/status")
    except UnreachableError:
        return plain.call("maintenance/status")


#: What is said of a server that HAProxy does not have, and of one that the inventory does not have.
MISSING, UNKNOWN = "missing", "unknown"


@dataclass(frozen=True)
class Server:
    """A server of HAProxy's; ``status`` is HAProxy's word for it, such as ``UP``, ``DOWN`` or ``DRAIN``, or one of ours.

    ``check`` says why.
    """

    backend: str
    server: str
    status: str
    check: str = ""
    sessions: int = 0
    weight: int = 0

    @property
    def problem(self) -> str:
        """What is not as it has to be."""
        if self.status.startswith(("UP", "no check")):
            return ""
        if self.status == MISSING:
            return f"haproxy: {self.backend} has no server {self.server}, which the inventory has; site.yml adds it"
        if self.status == UNKNOWN:
            return f"haproxy: {self.backend} has a server {self.server}, which the inventory has not; site.yml removes it"
        reason = f", {self.check}" if self.status.startswith("DOWN") and self.check else ""
        return f"haproxy: server {self.server} of {self.backend} is {self.status}{reason}"


def look_at_servers(backends: Mapping[str, Mapping[str, Any]]) -> list[Server]:
    """Return the servers of this host's HAProxy, and those of the ``backends`` that it does not have.

    :raises HaproxyError: when it does not answer.
    """
    found = [
        Server(one["backend"], one["server"], one["status"], one["check"], one["sessions"], one["weight"])
        for one in haproxy_runtime.list_servers()
    ]
    return compare(found, backends)


def compare(found: Sequence[Server], backends: Mapping[str, Mapping[str, Any]]) -> list[Server]:
    """Return the servers that were found, as they compare with the inventory's ``backends``, and those that are missing.

    Backends that the inventory does not have are not judged.
    """
    wanted = {(name, server) for name, backend in backends.items() for server in backend["servers"]}
    known = {(one.backend, one.server) for one in found}
    judged = [
        replace(one, status=UNKNOWN) if one.backend in backends and (one.backend, one.server) not in wanted else one
        for one in found
    ]
    return [*judged, *(Server(backend, server, MISSING) for backend, server in sorted(wanted - known))]


@dataclass(frozen=True)
class FloatingAddress:
    """An IP address that one of several hosts has; ``held``: it is this one, now."""

    address: str
    held: bool
    problem: str = ""


def look_at_address(floating: str) -> FloatingAddress:
    """Return whether this host has an IP address, which may come with the length of its prefix.

    :raises CommandError: when the host has no iproute2.
    """
    address = ipaddress.ip_interface(floating).ip
    # On the loopback interface it is that of a host which is about to get it.
    own = {info["local"] for one in interfaces() if one.get("ifname") != LOOPBACK for info in one.get("addr_info", ())}
    return FloatingAddress(str(address), str(address) in own)
