"""An etcd that only root of its host can reach, where data get their users before anybody is served by them.

It runs in a network of its own, as a transient unit that systemd ends if nobody else does. Below the directory of etcd's data,
which is etcd's own, everything is done as that user.
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
from ansible_collections.funnel.tornado.plugins.module_utils.system import systemd

#: The user and group that etcd runs as.
USER = "etcd"

#: The beginning of a command that runs as that user.
AS_ETCD = ("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--")

UNIT = "etcd-bootstrap"

#: Seconds in which it has to answer, and after which systemd ends it.
START_SECONDS = 60.0
LONGEST_SECONDS = 600

INTERVAL = 0.2

#: Its addresses, which are those of a network that has nothing else.
CLIENTS = f"http://127.0.0.1:{CLIENT_PORT}"
MEMBERS = f"http://127.0.0.1:{PEER_PORT}"

NAMESPACE = Path("/proc/self/ns/net")


@dataclass(frozen=True)
class Bootstrap:
    """Data in the making, beside those that are served: ``data`` with the suffix ``.new``."""

    name: str
    data: Path
    root_password: str = field(repr=False)
    users: Mapping[str, User]
    quota: int

    def found(self, peer_url: str) -> None:
        """Make the data of a new cluster, which have their users and ask for passwords.

        :arg peer_url: where other members will reach this one.
        :raises EtcdError: when that is not possible; there are no data then.
        """
        with self._beside() as new:
            with self._serving(new) as client:
                apply_users(client, self.root_password, self.users, served=False)
                root = client.login("root", self.root_password)
                (own,) = root.call("cluster/member/list")["members"]
                root.call("cluster/member/update", ID=own["ID"], peerURLs=[peer_url])
            run([*AS_ETCD, "mv", "--no-target-directory", str(new), str(self.data)])

    def give_users(self, snapshot: Path, root_password: str, target: Path) -> None:
        """Write to ``target`` what a snapshot holds, with these users instead of its own.

        :arg snapshot: a file that etcd may read.
        :arg root_password: of root in the snapshot.
        :arg target: a file in a directory that is root's; etcd may read it.
        :raises EtcdError: when it is no snapshot, or that is not its root's password.
        """
        with self._beside() as new:
            tool = shutil.which("etcdutl") or "etcdctl"
            restore = [tool, "snapshot", "restore", str(snapshot), f"--data-dir={new}", f"--name={self.name}"]
            restore += [f"--initial-cluster={self.name}={MEMBERS}", f"--initial-advertise-peer-urls={MEMBERS}"]
            run([*AS_ETCD, *restore], environment=_environment(), timeout=LONGEST_SECONDS)
            with self._serving(new) as client:
                self._replace_users(client, root_password)
                login = {"ETCDCTL_USER": "root", "ETCDCTL_PASSWORD": self.root_password} if self.root_password else {}
                save = ["etcdctl", f"--endpoints={CLIENTS}", "snapshot", "save", str(target)]
                run(save, environment=_environment() | login, timeout=LONGEST_SECONDS)
            os.chown(target, 0, grp.getgrnam(USER).gr_gid)
            target.chmod(0o640)

    def _replace_users(self, client: Client, root_password: str) -> None:
        try:
            root = client.login("root", root_password)
        except UnreachableError:
            raise
        except EtcdError as error:
            raise EtcdError(
                "etcd_restore_root_password: is not the password of root in the snapshot, which asks for it; set it to the one "
                f"that root had when the snapshot was taken ({error})"
            ) from error
        if root.token and not self.root_password:
            raise EtcdError("etcd_root_password: is missing, and the snapshot is of a cluster that asks for passwords")
        if root.token and root_password != self.root_password:
            root.call("auth/user/changepw", name="root", password=self.root_password)
        apply_users(client, self.root_password, self.users, served=False)
        clear_revoked(client.login("root", self.root_password))

    @contextlib.contextmanager
    def _beside(self) -> Iterator[Path]:
        """Give a directory to make data in, and remove what is left of it; what was to be done as etcd may have failed."""
        new = self.data.with_name(f"{self.data.name}.new")
        remove = [*AS_ETCD, "rm", "--recursive", "--force", str(new)]
        try:
            run(["systemctl", "stop", UNIT], check=False)  # of a run that was cut off
            run(remove)
            yield new
        except CommandError as error:
            raise EtcdError(f"etcd_users: etcd's data cannot be given their users: {error}") from error
        finally:
            run(["systemctl", "stop", UNIT], check=False)
            run(remove, check=False)

    @contextlib.contextmanager
    def _serving(self, data: Path) -> Iterator[Client]:
        """Run etcd on ``data``, and be in its network."""
        began = time.time()
        properties = {"User": USER, "Group": USER, "PrivateNetwork": "yes", "RuntimeMaxSec": str(LONGEST_SECONDS)}
        unit = ["systemd-run", "--quiet", "--collect", f"--unit={UNIT}", "--service-type=exec"]
        options = {
            "name": self.name,
            "data-dir": str(data),
            "listen-client-urls": CLIENTS,
            "advertise-client-urls": CLIENTS,
            "listen-peer-urls": MEMBERS,
            "initial-advertise-peer-urls": MEMBERS,
            "initial-cluster": f"{self.name}={MEMBERS}",
            "quota-backend-bytes": str(self.quota),  # an alarm about it would be part of the data
            # What tells clusters apart is made of this and the address, which all of them have in common here.
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
            client = Client(CLIENTS)
            _wait_for(client, began)
            yield client
        run(["systemctl", "stop", UNIT])


def _wait_for(client: Client, began: float) -> None:
    give_up = time.monotonic() + START_SECONDS
    while True:
        try:
            client.call("cluster/member/list")
        except EtcdError as error:
            if time.monotonic() > give_up or not systemd.query(UNIT).active:
                journal = ["journalctl", f"--unit={UNIT}", f"--since=@{began - 1:.0f}", "--output=cat", "--no-pager"]
                raise EtcdError(f"etcd does not start with its new data:\n{last_lines(run(journal).output, 5)}") from error
        else:
            return
        time.sleep(INTERVAL)


@contextlib.contextmanager
def _network_of(pid: int) -> Iterator[None]:
    """Be in the network of a process, and in one's own again.

    :raises EtcdError: when the process has none of its own: some containers may not make one, and systemd goes on without.
    """
    try:
        own, other = (os.open(path, os.O_RDONLY | os.O_CLOEXEC) for path in (NAMESPACE, f"/proc/{pid}/ns/net"))
    except OSError as error:
        raise EtcdError(f"etcd does not start: {error}") from error
    try:
        if os.path.sameopenfile(own, other):
            raise EtcdError(
                "etcd_root_password: this host does not let systemd make a network (PrivateNetwork=), where etcd gets its users "
                "while nobody else reaches it; allow namespaces to the container that it is"
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
    """Call setns(2), which Python has from 3.12 on."""
    if ctypes.CDLL(None, use_errno=True).setns(namespace, 0) != 0:
        error = ctypes.get_errno()
        raise EtcdError(f"etcd's network cannot be entered: {os.strerror(error)}")


def _environment() -> dict[str, str]:
    return {"ETCDCTL_API": "3", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin"}
