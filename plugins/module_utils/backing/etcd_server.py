"""A temporary etcd, reachable by root of this host only, that creates the users in new or restored data before it is served.

It runs in a network namespace of its own as a transient unit, which systemd stops at the latest. All file operations in the
data directory, which is owned by etcd, run as that user.
"""

from __future__ import annotations

import contextlib
import ctypes
import grp
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ansible_collections.funnel.tornado.plugins.module_utils.backing.etcd_model import (
    CLIENT_PORT,
    PEER_PORT,
    Client,
    EtcdError,
    UnreachableError,
    User,
    apply_users,
    clear_revoked,
)
from ansible_collections.funnel.tornado.plugins.module_utils.core.command import CommandError, last_lines, run
from ansible_collections.funnel.tornado.plugins.module_utils.core.polling import retry
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: User and group of etcd.
USER = "etcd"

#: Command prefix that runs a program as that user.
AS_ETCD = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--")

UNIT = "etcd-bootstrap"

#: Timeout until it answers, and after which systemd stops it.
START_TIMEOUT = 60.0
MAX_RUNTIME = 600

INTERVAL = 0.2

#: Its client and peer URLs in the network namespace.
CLIENT_URL = f"http://127.0.0.1:{CLIENT_PORT}"
PEER_URL = f"http://127.0.0.1:{PEER_PORT}"

NAMESPACE = Path("/proc/self/ns/net")


@dataclass(frozen=True)
class Bootstrap:
    """Creation of data in a temporary directory, ``data`` with the suffix ``.new``."""

    name: str
    data: Path
    root_password: str = field(repr=False)
    users: Mapping[str, User]
    quota: int

    def found(self, peer_url: str) -> None:
        """Create the data of a new cluster, with its users and with authentication enabled.

        :arg peer_url: URL of this member for other members.
        :raises EtcdError: if that fails; no data is created then.
        """
        with self._temporary_data() as new:
            with self._serving(new) as client:
                apply_users(client, self.root_password, self.users, reachable=False)
                root = client.login("root", self.root_password)
                (own,) = root.call("cluster/member/list")["members"]
                root.call("cluster/member/update", ID=own["ID"], peerURLs=[peer_url])
            run([*AS_ETCD, "mv", "--no-target-directory", str(new), str(self.data)])

    def replace_users(self, snapshot: Path, root_password: str, target: Path) -> None:
        """Copy a snapshot to ``target`` and replace its users by those of this object.

        :arg snapshot: a file that etcd can read.
        :arg root_password: password of root in the snapshot.
        :arg target: a file, readable by etcd, in a directory that is owned by root.
        :raises EtcdError: if the snapshot is invalid, or the password is wrong.
        """
        with self._temporary_data() as new:
            tool = shutil.which("etcdutl") or "etcdctl"
            restore = [tool, "snapshot", "restore", str(snapshot), f"--data-dir={new}", f"--name={self.name}"]
            restore += [f"--initial-cluster={self.name}={PEER_URL}", f"--initial-advertise-peer-urls={PEER_URL}"]
            run([*AS_ETCD, *restore], environment=_environment(), timeout=MAX_RUNTIME)
            with self._serving(new) as client:
                self._replace_users(client, root_password)
                login = {"ETCDCTL_USER": "root", "ETCDCTL_PASSWORD": self.root_password} if self.root_password else {}
                save = ["etcdctl", f"--endpoints={CLIENT_URL}", "snapshot", "save", str(target)]
                run(save, environment=_environment() | login, timeout=MAX_RUNTIME)
            os.chown(target, 0, grp.getgrnam(USER).gr_gid)
            target.chmod(0o640)

    def _replace_users(self, client: Client, root_password: str) -> None:
        try:
            root = client.login("root", root_password)
        except UnreachableError:
            raise
        except EtcdError as error:
            raise EtcdError(
                "etcd_restore_root_password: is not the password of root in the snapshot; set it to the password of root at "
                f"the time of the snapshot ({error})"
            ) from error
        if root.token and not self.root_password:
            raise EtcdError("etcd_root_password: is missing, but the snapshot is from a cluster that requires passwords")
        if root.token and root_password != self.root_password:
            root.call("auth/user/changepw", name="root", password=self.root_password)
        apply_users(client, self.root_password, self.users, reachable=False)
        clear_revoked(client.login("root", self.root_password))

    @contextlib.contextmanager
    def _temporary_data(self) -> Iterator[Path]:
        """Yield the temporary data directory, and remove it afterwards."""
        new = self.data.with_name(f"{self.data.name}.new")
        remove = [*AS_ETCD, "rm", "--recursive", "--force", str(new)]
        try:
            run(["systemctl", "stop", UNIT], check=False)  # left by an interrupted run
            run(remove)
            yield new
        except CommandError as error:
            raise EtcdError(f"etcd_users: the users cannot be created in the data of etcd: {error}") from error
        finally:
            run(["systemctl", "stop", UNIT], check=False)
            run(remove, check=False)

    @contextlib.contextmanager
    def _serving(self, data: Path) -> Iterator[Client]:
        """Run etcd on ``data`` and enter its network namespace."""
        started = time.time()
        properties = {"User": USER, "Group": USER, "PrivateNetwork": "yes", "RuntimeMaxSec": str(MAX_RUNTIME)}
        unit = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--service-type=exec"]
        options = {
            "name": self.name,
            "data-dir": str(data),
            "listen-client-urls": CLIENT_URL,
            "advertise-client-urls": CLIENT_URL,
            "listen-peer-urls": PEER_URL,
            "initial-advertise-peer-urls": PEER_URL,
            "initial-cluster": f"{self.name}={PEER_URL}",
            "quota-backend-bytes": str(self.quota),  # a quota alarm would become part of the data
            # The cluster ID derives from the token and the URL, which is the same for all clusters here.
            "initial-cluster-token": secrets.token_hex(16),
        }
        run(
            [
                *unit,
                *(f"--property={name}={value}" for name, value in properties.items()),
                "etcd",
                *(f"--{name}={value}" for name, value in options.items()),
            ]
        )
        with _network_of(systemd.query(UNIT).main_pid):
            client = Client(CLIENT_URL)
            _wait_until_ready(client, started)
            yield client
        run(["systemctl", "stop", UNIT])


def _wait_until_ready(client: Client, started: float) -> None:
    try:
        retry(
            lambda: client.call("cluster/member/list"),
            EtcdError,
            lambda _error: systemd.query(UNIT).active,
            timeout=START_TIMEOUT,
            interval=INTERVAL,
        )
    except EtcdError as error:
        journal = ["journalctl", f"--unit={UNIT}", f"--since=@{started - 1:.0f}", "--output=cat", "--no-pager"]
        raise EtcdError(f"etcd does not start with its new data:\n{last_lines(run(journal).output, 5)}") from error


@contextlib.contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Enter the network namespace of a process, and return to our own afterwards.

    :raises EtcdError: if the process shares our namespace: systemd ignores PrivateNetwork= in containers without permission.
    """
    try:
        own, other = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (NAMESPACE, f"/proc/{pid}/ns/net"))
    except OSError as error:
        raise EtcdError(f"etcd does not start: {error}") from error
    try:
        if os.path.sameopenfile(own, other):
            raise EtcdError(
                "etcd_root_password: systemd cannot create a network namespace (PrivateNetwork=) on this host, which isolates "
                "etcd while its users are created; if the host is a container, allow it to create namespaces"
            )
        _enter(other)
        try:
            yield
        finally:
            _enter(own)
    finally:
        os.close(own)
        os.close(other)


def _enter(namespace: int) -> None:
    """Call setns(2); the os module has it since Python 3.12 only."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        error = ctypes.get_errno()
        raise EtcdError(f"the network namespace of etcd cannot be entered: {os.strerror(error)}")


def _environment() -> dict[str, str]:
    return {"ETCDCTL_API": "3", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
